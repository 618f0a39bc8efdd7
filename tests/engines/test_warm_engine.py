"""Which engines one process keeps: protects sweeps against starts that they need not wait for, and against memory that
grows with every architecture."""

from pathlib import Path

import pyarrow as pa
import pytest

from engines.helpers import GREEDY, make_checkpoint
from fortifai_ray.engines import in_process
from fortifai_ray.engines.engine import EngineCall, EngineConfig
from fortifai_ray.engines.in_process import WarmEngine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``a0`` and ``a1`` of one architecture, ``b0`` and ``c0`` of others."""
    root = tmp_path_factory.mktemp("models")
    made = {
        name: make_checkpoint(root / name, place, tied=name[0] == "a") for place, name in enumerate(("a0", "a1", "b0"))
    }
    return {**made, "c0": make_checkpoint(root / "c0", 3, tied=False, heads=8)}


@pytest.mark.parametrize(
    ("most", "asked", "starts"),
    [
        (1, "a0 a1 a0", 1),  # weights are swapped
        (1, "a0 b0 a0 b0", 4),
        (2, "a0 b0 a1 b0 a0", 2),
        (2, "a0 b0 c0 b0 c0", 3),
        (2, "a0 b0 c0 a0", 4),  # a was not asked for the longest time
        (2, "a0 b0 a1 c0 a0", 3),
        (3, "a0 b0 c0 a1 b0 c0", 3),
    ],
)
def test_starts(most: int, asked: str, starts: int, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer is the one that a new engine gives."""
    monkeypatch.setattr(in_process, "MOST_ENGINES", most)
    seen = list[float]()
    engine = WarmEngine(on_start=seen.append)
    for name in asked.split():
        assert answer(engine, models[name]) == answer(WarmEngine(), models[name])
    assert len(seen) == starts
    assert len(engine._held) <= most


def test_another_configuration_is_another_engine(models: dict[str, Path]) -> None:
    """But for the number of rows of a call, which concerns the caller alone."""
    seen = list[float]()
    engine = WarmEngine(on_start=seen.append)
    for config in ({}, {"rows_per_call": 5}, {"max_num_seqs": 2}, {}):
        answer(engine, models["a0"], **config)
    assert len(seen) == 2


def test_a_gpu_has_room_for_one() -> None:
    assert WarmEngine(gpu_fraction=0.45)._most == 1


def answer(engine: WarmEngine, checkpoint: Path, **config: int) -> list[list[int]]:
    table = pa.table({"seed": [0, 1], "prompt_ids": pa.array([[5, 9, 40], [7, 8, 9]], pa.list_(pa.int32()))})
    asked = EngineConfig(kind="huggingface", **config)  # type: ignore[arg-type]
    call = EngineCall(checkpoint.name, str(checkpoint), checkpoint.name, table, GREEDY, asked)
    return engine.answer(call).generated_ids.to_pylist()
