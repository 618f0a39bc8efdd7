"""A chain: rows as the contract says, and a model that breaks is a finding."""

from pathlib import Path

import pytest

from fortifai_ray.chain.chain import ChainTask, run_chain
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import NotStored, StageStore
from fortifai_ray.study.study import make_study
from fortifai_ray.sweep.preflight import check_study

CONTENT = {
    "name": "tiny",
    "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}},
    "corpus": {"source": "pydoc", "train_tokens": 4096},
    "regime": {"kind": "mixed", "synthetic_ratio": 0.5},
    "generations": 2,
    "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
}


def task(root: Path, **changes: object) -> ChainTask:
    study = make_study({**CONTENT, **changes}, "tiny.yaml")
    return ChainTask.of(study, study.chains[0], check_study(study, StageStore(root)))


def test_a_loss_that_is_not_finite_is_recorded(tmp_path: Path) -> None:
    """A learning rate that blows the model up: a row with the reason, at its generation, and the chain ends."""
    broken = task(
        tmp_path, training={"learning_rate": 1e30, "max_grad_norm": 1e30, "schedule": "constant", "warmup_ratio": 0}
    )
    rows = [result.row for result in run_chain(broken, Steps(StageStore(tmp_path)), InProcess())]
    assert [row["generation"] for row in rows] == [0]
    assert "diverged" in rows[0]["collapse_reason"] or "not finite" in rows[0]["collapse_reason"]
    assert rows[0]["perplexity"] is None
    replayed = [result.row for result in run_chain(broken, Steps(StageStore(tmp_path), replay=True), InProcess())]
    assert [row["collapse_reason"] for row in replayed] == [rows[0]["collapse_reason"]]


def test_the_text_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials run in folders and on nodes of their own: once prepared, a corpus needs neither its path nor its files."""
    (tmp_path / "texts").mkdir()
    for name in ("a", "b"):
        (tmp_path / "texts" / f"{name}.txt").write_text(f"{name} document about nothing at all. " * 2000)
    monkeypatch.chdir(tmp_path)
    corpus = {"path": "texts", "train_tokens": 2048}
    prepared = task(tmp_path / "store", corpus=corpus, training={"batch_size": 4, "learning_rate": 1e30})
    (tmp_path / "texts" / "a.txt").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    rows = [result.row for result in run_chain(prepared, Steps(StageStore(tmp_path / "store")), InProcess())]
    assert rows[0]["human_size"] == 2048


def test_a_replay_computes_nothing(tmp_path: Path) -> None:
    """It names the first step that is missing, and leaves the store as it is."""
    with pytest.raises(NotStored, match="create the starting model"):
        list(run_chain(task(tmp_path), Steps(StageStore(tmp_path), replay=True), InProcess()))


@pytest.mark.parametrize(
    ("survival", "generations", "ended"),
    [
        ({}, 4, "horizon"),
        ({"never_recorded": True}, 3, "no_room_left"),
        ({"never_recorded": True, "largest_step": 5.0}, 1, "too_far"),
    ],
)
def test_a_chain_that_cannot_collapse_any_more_ends(
    tmp_path: Path, survival: dict[str, object], generations: int, ended: str
) -> None:
    """Only under the premises that a search's study vouches for, and its last row says which of them it was."""
    search = {"kind": "boundary", "over": "regime.synthetic_ratio", "low": 0, "high": 1, "tolerance": 0.1}
    content = {
        "name": "far",
        "family": {"kind": "diffusion", "data": {"source": "blobs"}},
        "training": {"epochs": 1},
        "samples_per_generation": 32,
        "regime": {"kind": "mixed"},
        "generations": 4,
        "collapse": {"metric": "wasserstein", "threshold": 1e6, "direction": "above", "relative_to": "absolute"},
        "search": {**search, "survival": survival},
    }
    study = make_study(content, "far.yaml")
    store = StageStore(tmp_path)
    chain = study.probe(study.cells[0], {"regime.synthetic_ratio": 1.0}, 0)
    searched = ChainTask.of(study, chain, check_study(study, store))
    rows = [result.row for result in run_chain(searched, Steps(store), InProcess())]
    assert [row["ended"] for row in rows] == [None] * (generations - 1) + [ended]
