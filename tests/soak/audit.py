"""What a storage shows after the kills: no step computed twice, nothing locked or half-written, the same tables."""

import fcntl
from pathlib import Path

import polars as pl
from faults.studies import clocks_left_out, completed
from polars.testing import assert_frame_equal

from .studies import SoakStudy

_TABLES = ("generations", "chains", "fidelity", "samples", "pictures", "details")


class Watch:
    """Completed steps as they are seen, to find one that is computed again."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self.seen: dict[str, int] = {}

    def look(self) -> int:
        """How many steps are complete. Raises ``AssertionError`` where one that was complete is not as it was."""
        now = completed(self._storage)
        changed = {name for name, inode in self.seen.items() if now.get(name) != inode}
        assert not changed, f"finished steps that were computed again or lost: {sorted(changed)}"
        self.seen = now
        return len(now)


def left_locked(storage: Path) -> list[str]:
    """Steps whose lock somebody still holds."""
    held = []
    for path in (storage / "stages" / ".locks").iterdir():
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.name)
    return held


def leftovers(storage: Path) -> list[str]:
    """Half-written steps, and steps that were set aside as damaged."""
    leftovers = [path for folder in (".partial", ".damaged") for path in (storage / "stages").glob(f"{folder}/*")]
    return [str(path.relative_to(storage)) for path in leftovers]


def assert_same_results(study: SoakStudy, one: Path, other: Path) -> int:
    """Every table of a study is the same in two storages but for clocks; returns the rows compared."""
    rows = 0
    for name in _TABLES:
        first, second = (storage / study.name / "results" / f"{name}.parquet" for storage in (one, other))
        assert first.exists() == second.exists(), name
        if first.exists():
            ours, theirs = (clocks_left_out(pl.read_parquet(path)) for path in (first, second))
            assert_frame_equal(ours, theirs, check_exact=True)
            rows += ours.height
    assert pl.read_parquet(one / study.name / "results" / "chains.parquet")["chain_id"].n_unique() == study.chains
    return rows


def unfinished_runs(study: SoakStudy, storage: Path) -> list[str]:
    """What is wrong with a study's runs in MLflow: chains without exactly one that has ended, or without its steps."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage.resolve() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(study.name)
    if experiment is None:
        return ["no experiment"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    chains = [run.data.tags["fortifai.chain_id"] for run in runs if "fortifai.chain_id" in run.data.tags]
    wrong = [f"{run.info.run_name}: {run.info.status}" for run in runs if run.info.status != "FINISHED"]
    if len(set(chains)) != study.chains or len(chains) != study.chains or len(runs) != study.chains + 1:
        wrong.append(f"{len(runs)} runs, {len(set(chains))} chains")
    return wrong
