"""Part 3: a training step of a Llama of 1B parameters: this project's trainer, and Hugging Face's with Liger.

Weights, gradients and Adam's moments are in float32, products in bfloat16. Text and weights are random: with TCE, γ is
the median probability of a target, so that half of them are kept.
"""

import tempfile
import time
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.llamas import make, training_flops
from benchmarks.gpu.record import Record, device, peak_flops, peak_memory, synchronise
from fortifai_ray.families.language.blocks import Blocks
from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.training import LanguageFit
from fortifai_ray.losses import CrossEntropy, Loss, TruncatedCrossEntropy
from fortifai_ray.losses.causal_lm import CausalLMObjective
from fortifai_ray.recipe.executor import Workers

SIZES: dict[str, dict[str, Any]] = {
    "real": {"size": "1B", "block": 2048, "batch": 16, "parts": 4, "steps": 4},
    "toy": {"size": "toy", "block": 32, "batch": 4, "parts": 2, "steps": 2},
}
WARM = 1  # steps before those that are timed
SHARE = 0.45  # of the card's peak
RATE = 1e-6  # a learning rate that leaves the model as it is, so that the kept fraction stays


def measure(record: Record, scale: str) -> None:
    """A row for each trainer, loss, and gradient checkpointing on and off."""
    sizes = SIZES[scale]
    record.note(**sizes, dtype="float32 weights, bfloat16 products")
    network = make(sizes["size"], sizes["block"])
    record.note(parameters=sum(weight.numel() for weight in network.parameters()))
    objective = CausalLMObjective(network)
    gamma = half_kept(objective, sizes)
    losses: dict[str, Loss] = {"cross_entropy": CrossEntropy(), "tce": TruncatedCrossEntropy(gamma=gamma)}
    for checkpointing in (False, True):
        for name, loss in losses.items():
            what = {"trainer": "ours", "loss": name, "gradient_checkpointing": checkpointing}
            record.attempt(partial(_ours, record, objective, loss, sizes, what), **what)
            record.goals(goals(record))
    del objective, network
    for checkpointing in (False, True):
        what = {"trainer": "Hugging Face", "loss": "cross_entropy", "gradient_checkpointing": checkpointing}
        record.attempt(partial(_theirs, record, sizes, what), **what)
    record.goals(goals(record))


def _tokens(sizes: dict[str, Any], rows: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, (rows, sizes["block"]), dtype=np.int32)


@torch.no_grad()
def half_kept(objective: CausalLMObjective, sizes: dict[str, Any]) -> float:
    """The median probability of a target."""
    tokens = torch.from_numpy(_tokens(sizes, 1, objective.model.config.vocab_size)).long().to(device())
    with torch.autocast(device(), torch.bfloat16):
        sums = objective(tokens, torch.tensor([sizes["block"]], device=device()), CrossEntropy())
    return float(sums.log_p.median().exp())


def _ours(
    record: Record, objective: CausalLMObjective, loss: Loss, sizes: dict[str, Any], what: dict[str, Any]
) -> None:
    network = objective.model
    network.zero_grad(set_to_none=True)
    if what["gradient_checkpointing"]:
        network.gradient_checkpointing_enable()
    training = TrainingConfig(
        batch_size=sizes["batch"],
        gradient_accumulation=sizes["parts"],
        block_size=sizes["block"],
        learning_rate=RATE,
        precision="bfloat16",
        gradient_checkpointing=what["gradient_checkpointing"],
    )
    workers = Workers(0, 1, torch.device(device()), lambda network: network)
    peak_memory(reset=True)
    for steps in (WARM, sizes["steps"]):
        rows = steps * sizes["batch"]
        tokens = _tokens(sizes, rows, network.config.vocab_size)
        fit = LanguageFit(objective, Blocks(tokens, np.full(rows, sizes["block"])), training, 0, workers)
        synchronise()
        started = time.perf_counter()
        report = fit.run(loss)
        synchronise()
        seconds = (time.perf_counter() - started) / steps
    record.add(**what, kept=report.kept_fraction, output_head=objective.output_head, **_rates(network, sizes, seconds))


def _theirs(record: Record, sizes: dict[str, Any], what: dict[str, Any]) -> None:
    """Hugging Face's Trainer with Liger's kernels, which need a GPU."""
    import transformers

    cuda = device() == "cuda"
    network = make(sizes["size"], sizes["block"])
    tokens = _tokens(sizes, (WARM + sizes["steps"]) * sizes["batch"], network.config.vocab_size).astype(np.int64)
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronise()
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=sizes["batch"] // sizes["parts"],
            gradient_accumulation_steps=sizes["parts"],
            max_steps=WARM + sizes["steps"],
            learning_rate=RATE,
            optim="adamw_torch_fused" if cuda else "adamw_torch",
            bf16=cuda,
            use_liger_kernel=cuda,
            use_cpu=not cuda,
            gradient_checkpointing=what["gradient_checkpointing"],
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        rows = [{"input_ids": row, "labels": row} for row in tokens]
        trainer = transformers.Trainer(model=network, args=settings, train_dataset=rows, callbacks=[Clock()])
        peak_memory(reset=True)
        trainer.train()
    seconds = (times[-1] - times[WARM - 1]) / sizes["steps"]
    record.add(**what, liger=cuda, **_rates(network, sizes, seconds))


def _rates(network: Any, sizes: dict[str, Any], seconds: float) -> dict[str, Any]:
    tokens, peak = sizes["batch"] * sizes["block"], peak_flops()
    flops = training_flops(network, sizes["block"]) * tokens / seconds
    return {
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "flops_per_second": flops,
        "share_of_peak": peak and flops / peak,
        "peak_bytes": peak_memory(),
    }


def goals(record: Record) -> dict[str, bool | None]:
    """The best of our rows under cross entropy reaches the share of the peak; ours is as fast as theirs."""
    measured = [row for row in record.rows if "seconds_per_step" in row]
    ours = [row for row in measured if row["trainer"] == "ours" and row["loss"] == "cross_entropy"]
    theirs = {row["gradient_checkpointing"]: row for row in measured if row["trainer"] != "ours"}
    shares = [row["share_of_peak"] for row in ours if row["share_of_peak"] is not None]
    pairs = [(row, theirs[row["gradient_checkpointing"]]) for row in ours if row["gradient_checkpointing"] in theirs]
    faster = all(a["seconds_per_step"] <= b["seconds_per_step"] for a, b in pairs)
    return {
        f"at least {SHARE:.0%} of the card's peak": max(shares) >= SHARE if shares else None,
        "no slower than Hugging Face's Trainer with Liger": faster if pairs and device() == "cuda" else None,
    }
