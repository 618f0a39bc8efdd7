"""The best epoch's model where several workers train it: whole copies or shards, adapters, a training that diverges.

Two processes over gloo, without Ray: what a worker does there is what it does in Ray Train's group.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from fortifai_ray.families.language.blocks import Blocks
from fortifai_ray.families.language.config import TrainingConfig
from fortifai_ray.families.language.keeping import BestEpoch, Measure
from fortifai_ray.families.language.scoring import perplexity_value
from fortifai_ray.families.language.training import train_loop
from fortifai_ray.losses import TruncatedCrossEntropy
from fortifai_ray.recipe.executor import Workers

WORKERS = 2
SETTINGS: dict[str, Any] = {"batch_size": 5, "block_size": 64, "schedule": "constant", "warmup_ratio": 0.0}
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp", "gradient_accumulation": 2},
    "lora-fsdp": {"lora": {"rank": 2}, "parallel": "fsdp"},
}
RISING = [8.0, 7.0, 9.0]  # of three epochs, the second is kept


def told(folder: Path, values: list[float], seen: str) -> float:
    """The next of ``values``, noted in the file ``seen``; draws from the generator, and the model can be read."""
    torch.rand(5)
    known = json.loads(Path(seen).read_text()) if Path(seen).exists() else []
    Path(seen).write_text(json.dumps([*known, sorted(file.name for file in folder.iterdir())]))
    return values[len(known)]


def trainings(folder: Path, held_out: np.ndarray) -> dict[str, tuple[dict[str, Any], Measure | None]]:
    """By name: what is set beside :data:`SETTINGS`, and what chooses."""
    found: dict[str, tuple[dict[str, Any], Measure | None]] = {}
    for way, keys in WAYS.items():
        rate = {"learning_rate": 1e-2 if "lora" in way else 1e-3}
        chooses = Measure(False, told, (RISING, str(folder / f"{way}.json")))
        found[way] = {**keys, **rate, "epochs": 3, "keep": "best"}, chooses
        found[f"{way}, two epochs"] = {**keys, **rate, "epochs": 2}, None
    by_perplexity = Measure(False, perplexity_value, (held_out,), {"batch_size": 4})
    found["perplexity"] = {**WAYS["fsdp"], "learning_rate": 3e-2, "epochs": 3, "keep": "best"}, by_perplexity
    found["diverged"] = {**WAYS["fsdp"], "learning_rate": 1e30, "epochs": 2, "keep": "best"}, by_perplexity
    return found


def worker(rank: int, folder: Path, model: Path, blocks: Blocks) -> None:
    """One worker's share of all trainings."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=WORKERS
    )
    workers = Workers(rank, WORKERS, torch.device("cpu"), DistributedDataParallel)
    for name, (keys, measure) in trainings(folder, blocks.tokens[:4]).items():
        train_loop(
            workers,
            model=model,
            output=folder / name,
            tokens=blocks.tokens,
            lengths=blocks.lengths,
            loss=TruncatedCrossEntropy(gamma=0.2, normaliser="kept"),
            training=TrainingConfig(**SETTINGS | keys),
            order_seed=7,
            end_of_text=None,
            measure=measure,
        )
    waiting: Any = BestEpoch(Measure(False, told), lambda _: None, folder / "waits", workers, None)._patient
    limit = waiting._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    (folder / "waits" / f"{rank}.json").write_text(json.dumps(limit))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outputs(model: Path, blocks: Blocks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of each training, by its name."""
    folder = tmp_path_factory.mktemp("group")
    for name in trainings(folder, blocks.tokens):
        (folder / name).mkdir()
    (folder / "waits").mkdir()
    torch.multiprocessing.spawn(worker, (folder, model, blocks), nprocs=WORKERS)
    return folder


def report(folder: Path) -> Mapping[str, Any]:
    return json.loads((folder / "training.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("way", WAYS)
def test_the_group_keeps_the_best_epoch_and_goes_on_as_if_nothing_had_been_measured(outputs: Path, way: str) -> None:
    """Rank 0 alone scores, each epoch once, a whole model; what stays is bit for bit that of a training of two epochs;
    what was measured beside it is gone."""
    found, plain = report(outputs / way), report(outputs / f"{way}, two epochs")
    assert (found["world_size"], found["kept_epoch"], found["epoch_values"]) == (WORKERS, 1, RISING)
    assert plain["kept_epoch"] is None
    assert found["held_share"] == pytest.approx(0.5 if "fsdp" in way else 1.0, abs=0.01)
    seen = json.loads((outputs / f"{way}.json").read_text())
    kept = {file.name for file in (outputs / way).iterdir()}
    assert len(seen) == 3
    assert all(kept >= {*names} for names in seen)
    assert "epochs" not in kept
    best, expected = weights(outputs / way), weights(outputs / f"{way}, two epochs")
    assert best.keys() == expected.keys()
    assert all(torch.equal(best[name], expected[name]) for name in expected)


def test_the_values_are_those_of_the_models_that_were_saved(outputs: Path, blocks: Blocks) -> None:
    """Held-out perplexity by shards' gathered weights: the smallest is the kept model's."""
    found = report(outputs / "perplexity")
    assert found["kept_epoch"] == int(np.argmin(found["epoch_values"]))
    own = perplexity_value(outputs / "perplexity", blocks.tokens[:4], batch_size=4)
    assert own == pytest.approx(min(found["epoch_values"]), rel=1e-6)


def test_a_training_that_diverges_ends_on_every_rank(outputs: Path) -> None:
    """No epoch ended, none is kept; the last weights are written, as without ``keep``."""
    found = report(outputs / "diverged")
    assert found["diverged"]
    assert (found["kept_epoch"], found["epoch_values"]) == (None, [])
    assert {"model.safetensors", "epochs"} & {file.name for file in (outputs / "diverged").iterdir()} == {
        "model.safetensors"
    }


def test_the_others_wait_as_long_as_scoring_takes(outputs: Path) -> None:
    """Not half an hour, after which Ray Train's own group gives up (PyTorch's NCCL: ten minutes), but days: a week of
    scoring is a fault, an hour is a benchmark of a large model."""
    limits = [json.loads((outputs / "waits" / f"{rank}.json").read_text()) for rank in range(WORKERS)]
    assert all(limit >= 24 * 3600 for limit in limits)
