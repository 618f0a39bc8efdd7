"""``fortifai gc``: what no study needs goes, and whatever is kept can be swept again without computing anything."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import fortifai_ray
from fortifai_ray.cli import main
from fortifai_ray.errors import UserError
from fortifai_ray.storage.gc import collect, plan_gc
from fortifai_ray.storage.links import link, links_folder
from fortifai_ray.storage.store import StageKey, StageStore, Storage


def key(seed: int) -> StageKey:
    return StageKey("fit", 1, {"seed": seed})


def write(folder: Path) -> dict[str, int]:
    (folder / "weights").write_bytes(b"\x00" * 1000)
    return {}


def study(storage: Path, name: str, *seeds: int, content: dict[str, object] | None = None) -> StageStore:
    """A study that needs the stages of ``seeds``."""
    store = StageStore(Storage.of(storage).for_study(name))
    for seed in seeds:
        store.step(key(seed), write)
    (storage / name).mkdir()
    (storage / name / "study.yaml").write_text(yaml.safe_dump({"name": name, **(content or {})}))
    return store


def stored(storage: Path) -> set[int]:
    """The seeds whose stages are there."""
    return {seed for seed in range(10) if (storage / "stages" / key(seed).hash / "manifest.json").is_file()}


def gc(storage: Path, *keep: str) -> list[str]:
    """Run it, on stages however young; returns what it removed."""
    return [removal.kind for removal in collect(plan_gc(storage, keep, min_age=0)).removals]


def test_what_only_a_removed_study_needed_goes(tmp_path: Path) -> None:
    """A stage that another study shares stays, and what is needed is named by kind and size."""
    study(tmp_path, "one", 0, 1)
    study(tmp_path, "two", 1, 2)
    assert gc(tmp_path) == []
    shutil.rmtree(tmp_path / "one")
    plan = plan_gc(tmp_path, min_age=0)
    assert [(removal.kind, removal.size > 1000) for removal in plan.removals] == [("fit", True)]
    assert (plan.kept, plan.stages) == (["two"], 2)
    assert stored(tmp_path) == {0, 1, 2}, "a plan removes nothing"
    assert gc(tmp_path) == ["fit"]
    assert stored(tmp_path) == {1, 2}
    assert not (tmp_path / "stages" / ".uses" / "one").exists()


def test_keep_lets_go_of_the_others(tmp_path: Path) -> None:
    """Their tables stay; a study that is not there is a mistake."""
    study(tmp_path, "one", 0, 1)
    study(tmp_path, "two", 1, 2)
    with pytest.raises(UserError, match=r"--keep three: there is no such study .*one, two"):
        plan_gc(tmp_path, ["three"])
    gc(tmp_path, "one")
    assert stored(tmp_path) == {0, 1}
    assert (tmp_path / "two" / "study.yaml").is_file()


def test_a_running_study_keeps_its_stages(tmp_path: Path) -> None:
    """Though it is not named, and has written no results yet; until it ends."""
    study(tmp_path, "one", 0)
    running = StageStore(Storage.of(tmp_path).for_study("two"))
    running.step(key(1), write)
    assert gc(tmp_path, "one") == []
    assert plan_gc(tmp_path, ["one"], 0).running == ["two"]
    del running
    assert gc(tmp_path, "one") == ["fit"]


_DIE = """
import os, signal, sys
from fortifai_ray.storage.links import link, links_folder
from fortifai_ray.storage.store import StageKey, StageStore, Storage

def compute(folder):
    (folder / "half").write_text("half")
    print("in the middle", flush=True)
    sys.stdin.read()

StageStore(Storage.of(sys.argv[1]).for_study("two")).step(StageKey("fit", 1, {"seed": 1}), compute)
"""


@pytest.fixture
def computing(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a step."""
    process = subprocess.Popen(
        [sys.executable, "-c", _DIE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "in the middle"
    yield process
    process.kill()
    process.wait()


def test_what_is_being_computed_stays_and_what_the_dead_left_goes(
    tmp_path: Path, computing: subprocess.Popen[str]
) -> None:
    """The half-written step of a living process is left alone, that of a killed one is removed."""
    study(tmp_path, "one", 0)
    partial = tmp_path / "stages" / ".partial"
    assert gc(tmp_path) == []
    assert [file.name for file in partial.rglob("half")] == ["half"]
    os.kill(computing.pid, signal.SIGKILL)
    computing.wait()
    assert gc(tmp_path) == ["half-written"]
    assert not list(partial.iterdir())
    assert stored(tmp_path) == {0}


def test_a_damaged_stage_that_was_set_aside_goes(tmp_path: Path) -> None:
    """It was kept to be looked at."""
    store = study(tmp_path, "one", 0)
    (store.path(key(0).hash) / "weights").write_bytes(b"other")
    StageStore(tmp_path).step(key(0), write)
    assert gc(tmp_path) == ["damaged"]
    assert stored(tmp_path) == {0}


def test_what_is_young_stays(tmp_path: Path) -> None:
    """An hour is left to whoever computes without a study, or copies a storage."""
    study(tmp_path, "one", 0)
    StageStore(tmp_path).step(key(1), write)
    plan = plan_gc(tmp_path)
    assert (list(plan.removals), plan.young) == ([], 1)


def test_a_stage_that_comes_into_use_stays(tmp_path: Path) -> None:
    """A sweep that begins after the plan was made finds what it asks for."""
    study(tmp_path, "one", 0)
    StageStore(tmp_path).step(key(1), write)
    plan = plan_gc(tmp_path, min_age=0)
    begun = StageStore(Storage.of(tmp_path).for_study("two"))
    assert begun.find(key(1)) is not None
    assert [removal.kind for removal in plan.removals] == ["fit"]
    assert list(collect(plan).removals) == []
    assert stored(tmp_path) == {0, 1}


def test_the_study_whose_text_is_read_stays(tmp_path: Path) -> None:
    """Training on another study's text reads that study's corpus at every sweep."""
    study(tmp_path, "writer", 0)
    study(tmp_path, "reader", 1, content={"corpus": {"written_by": {"study": "runs/writer", "generation": 1}}})
    study(tmp_path, "other", 2)
    gc(tmp_path, "reader")
    assert stored(tmp_path) == {0, 1}


def test_a_study_of_unknown_needs_is_not_guessed_at(tmp_path: Path) -> None:
    """Results that were brought from elsewhere: nothing is removed before it is known what they need."""
    study(tmp_path, "one", 0)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "study.yaml").write_text("name: two\n")
    with pytest.raises(UserError, match=r"two: there is no record of the stages"):
        plan_gc(tmp_path)
    with pytest.raises(UserError, match="there are no stages there"):
        plan_gc(tmp_path / "one")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With --dry-run it only tells what it would do: how many stages of which step, and how much room."""

    def fortifai(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fortifai", "gc", str(tmp_path), "--min-age", "0", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    study(tmp_path, "one", 0)
    StageStore(tmp_path).step(key(1), write)
    told = fortifai("--dry-run")
    assert "Would be removed" in told
    assert "fit 1 1.3 kB all 1 1.3 kB" in told
    assert "Kept: 1 stages" in told
    assert "these studies need: one" in told
    assert stored(tmp_path) == {0, 1}
    assert "Removed from" in fortifai()
    assert stored(tmp_path) == {0}


STUDIES = {
    "gaussian": """
family: {kind: gaussian}
samples_per_generation: 50
generations: 6
vary: {seed: [0, 1, 2], regime: [{kind: replace}, {kind: accumulate}]}
collapse: {metric: trace_ratio, threshold: 0.5, direction: below}
""",
    # The baseline is no cell of the study, one chain's training diverges, and what is written is curated.
    "language": """
family: {kind: language, model: {preset: llama-tiny, vocab_size: 320}}
corpus: {source: pydoc, train_tokens: 2048}
regime: {kind: mixed, synthetic_ratio: 0.5}
curation: {kind: surplexity, keep: 0.5}
decoding: {temperature: 0.8, max_new_tokens: 24, context_tokens: 8}
training: {epochs: 1, batch_size: 8, block_size: 32, max_grad_norm: 1.0e+30, schedule: constant}
engine: {kind: huggingface}
evaluation: {sample_texts: 2, signs: {documents: 8}}
loss: {kind: tce, gamma: 0.5}
generations: 3
vary: {training.learning_rate: [1.0e-3, 1.0e+30]}
collapse: {metric: perplexity, threshold: 100.0, direction: above, confirm: 1}
""",
}


@pytest.mark.ray
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_that_is_kept_computes_nothing_again(name: str, tmp_path: Path, ray_instance: str) -> None:
    """Swept, cleaned up beside another study's stages, and swept again: every step is still there."""
    asked, storage = fortifai_ray.load_study({"name": name, **yaml.safe_load(STUDIES[name])}), tmp_path / "runs"

    def computed() -> int:
        swept = fortifai_ray.sweep(asked, storage, progress=False)
        assert (swept.failed, swept.unfinished) == ({}, [])
        return int(json.loads((storage / name / "results" / "summary.json").read_text())["stages_computed"])

    assert computed() > 0
    StageStore(storage).step(key(0), write)
    assert gc(storage) == ["fit"]
    assert computed() == 0
    assert gc(storage) == []


@pytest.mark.parametrize("links", [True, False])
def test_folders_of_links_last_as_long_as_their_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also where the disk has no links, and files are copied; a stage that went without gc is missed by the next."""
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "cache"))
    if not links:
        monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    storage = tmp_path / "runs"
    storage.mkdir()
    study(storage, "one", 0)
    study(storage, "two", 1, 2)
    store = StageStore(storage)

    def linked(seed: int) -> Path:
        stage = store.open(key(seed).hash)
        assert stage is not None
        folder = links_folder(stage.path)
        link(stage.path / "weights", folder / "weights")
        return folder

    folders = [linked(seed) for seed in (0, 1, 2)]
    assert linked(0) == folders[0]
    shutil.rmtree(storage / "one")
    plan_gc(storage, min_age=0)
    assert all((folder / "weights").exists() for folder in folders)
    assert gc(storage) == ["fit"]
    assert [folder.exists() for folder in folders] == [False, True, True]
    if links:
        shutil.rmtree(storage / "stages" / key(1).hash)
        linked(2)
        assert [folder.exists() for folder in folders] == [False, False, True]


def test_a_history_needs_no_stages(tmp_path: Path) -> None:
    """Results of runs that were made elsewhere lie beside the studies, and nothing of theirs is stored."""
    study(tmp_path, "one", 0)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "study.yaml").write_text(yaml.safe_dump({"name": "theirs", "history": {"source": "a.csv"}}))
    assert gc(tmp_path) == []
    shutil.rmtree(tmp_path / "one")
    assert gc(tmp_path) == ["fit"]
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "study.yaml").write_text("name: unknown\n")
    with pytest.raises(UserError, match="there is no record of the stages that this study needs"):
        gc(tmp_path)
