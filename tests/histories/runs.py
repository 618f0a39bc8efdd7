"""Histories as people have them: cross entropy against TCE, whose perplexity grows by a factor a generation."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polars.testing import assert_frame_equal

from fortifai_ray.histories.analyse import History, analyse_history, read_history

GROWTH = {None: 1.6, 0.9: 1.3}
ASKED: dict[str, Any] = {
    "metric": "ppl",
    "step": "gen",
    "by": ["loss", "gamma"],
    "seed": "seed",
    "baseline": ["loss=ce"],
    "criteria": ["above 2x own generation 0"],
}


def rows(seeds: int = 3, generations: int = 6) -> Iterator[dict[str, Any]]:
    """A row per chain and generation: ``loss, gamma, seed, gen, ppl``."""
    for gamma, growth in GROWTH.items():
        for seed in range(seeds):
            for gen in range(generations):
                yield {
                    "loss": "ce" if gamma is None else "tce",
                    "gamma": gamma,
                    "seed": seed,
                    "gen": gen,
                    "ppl": 10 * (growth + 0.01 * seed) ** gen,
                }


def csv_lines(separator: str = ",", **changes: Any) -> list[str]:
    """The rows as lines of CSV, after their header."""
    lines = [separator.join("" if v is None else str(v) for v in row.values()) for row in rows(**changes)]
    return [separator.join(next(rows())), *lines]


def analysed(history: Any, storage: Path, **changes: Any) -> Path:
    """The folder of the judged history."""
    return analyse_history(history, storage=storage, **{**ASKED, **changes})


def read(history: Any, **changes: Any) -> History:
    """The history as it is checked, before anything is written."""
    return read_history(history, **{**ASKED, **changes})


Chains = dict[tuple[str, float | None, int], list[float]]


def chains() -> Chains:
    """The metric of each chain by generation."""
    found = defaultdict(list)
    for row in rows(seeds=2, generations=4):
        found[row["loss"], row["gamma"], row["seed"]].append(row["ppl"])
    return dict(found)


def name_of(loss: str, gamma: float | None, seed: int) -> str:
    return f"loss={loss}{'' if gamma is None else f' gamma={gamma}'} seed={seed}"


def same_as_csv(history: Path | str, tmp_path: Path, **changes: Any) -> None:
    """The history is the one that ``rows`` gives, up to the rounding of what holds float32."""
    (tmp_path / "plain.csv").write_text("\n".join(csv_lines(seeds=2, generations=4)))
    found, plain = read(history, **changes), read(tmp_path / "plain.csv")
    assert_frame_equal(found.generations, plain.generations, rel_tol=1e-6)
    assert found.terms == plain.terms
