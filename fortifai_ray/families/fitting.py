"""Ray Train for any family: how a train function is run, and the optimiser and precision that settings ask for."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fortifai_ray.storage.transfer import Folder, folder_here, written_for

if TYPE_CHECKING:
    import torch


class OptimizerConfig(BaseModel):
    """What is the same in every family's ``training:``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0.0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.05, ge=0.0, lt=1.0, description="share of the steps")
    weight_decay: float = Field(0.01, ge=0.0)
    max_grad_norm: float = Field(
        1.0, gt=0.0, allow_inf_nan=False, description="gradients are scaled down to it; 1.0e+9 clips nothing"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU that has it")


def run_on_ray_train(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    arrays: dict[str, Any],
    folders: Mapping[str, Folder],
    output: Path,
    *,
    workers: int,
    resources_per_worker: dict[str, float] | None,
) -> None:
    """Run ``loop(config)`` by a TorchTrainer: in this process for one worker (Ray Train's local mode), else in a group.

    ``arrays`` join the configuration; with several workers they go into the object store once, not once into each
    worker's configuration, and :func:`fetch` takes them out. So do ``folders`` that the loop reads and, as ``output``,
    the folder that rank 0 writes into: as paths (str) on the node that the worker runs on, which need not be this one.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    use_gpu = bool(resources_per_worker and resources_per_worker.get("GPU"))
    if workers == 1:
        config = {**config, **arrays, **_paths(folders), "output": str(output)}
        scaling = ray.train.ScalingConfig(num_workers=0, use_gpu=use_gpu)
        TorchTrainer(loop, train_loop_config=config, scaling_config=scaling).fit()
        return
    node = ray.get_runtime_context().get_node_id()

    def on_its_node(config: dict[str, Any]) -> None:
        with written_for(output, node) as folder:
            loop({**config, **_paths(folders), "output": str(folder)})

    scaling = ray.train.ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources_per_worker)
    config = {**config, **{name: ray.put(value) for name, value in arrays.items()}}
    with tempfile.TemporaryDirectory(prefix="fortifai-train-") as notes:  # Ray Train's own, of no use afterwards
        run_config = ray.train.RunConfig(storage_path=notes, name="fit")
        TorchTrainer(on_its_node, train_loop_config=config, scaling_config=scaling, run_config=run_config).fit()


def _paths(folders: Mapping[str, Folder]) -> dict[str, str]:
    return {name: str(folder_here(folder)) for name, folder in folders.items()}


def fetch(value: Any) -> Any:
    """One of the ``arrays`` of :func:`run_on_ray_train`, inside the train function."""
    import ray

    return ray.get(value) if isinstance(value, ray.ObjectRef) else value


def make_optimizer(
    network: "torch.nn.Module", training: OptimizerConfig, steps: int
) -> tuple["torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"]:
    """The optimiser and its schedule over ``steps`` steps."""
    import torch
    import transformers

    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[training.optimizer]
    optimizer = kind(network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)
    schedule = transformers.get_scheduler(
        training.schedule, optimizer, num_warmup_steps=round(training.warmup_ratio * steps), num_training_steps=steps
    )
    return optimizer, schedule


def use_bfloat16(training: OptimizerConfig, device: "torch.device") -> bool:
    """Whether to compute in bfloat16 on ``device``; weights stay in float32."""
    import torch

    if training.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return training.precision == "bfloat16"
