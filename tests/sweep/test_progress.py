"""The progress view: each event has its line, and a long wait never stays silent."""

import io
import time
from types import SimpleNamespace

import pytest
import ray
from ray.util import placement_group, remove_placement_group
from rich.console import Console

from fortifai_ray.sweep import progress
from fortifai_ray.sweep.progress import Board, SweepProgress

CHAINS = {"a": ("loss.kind=tce seed=0", 3), "b": ("loss.kind=tce seed=1", 3)}


def view(board: object = None) -> tuple[SweepProgress, io.StringIO]:
    out = io.StringIO()
    progress = SweepProgress(Console(file=out, width=200), board)
    for name, (label, generations) in CHAINS.items():
        progress.add(name, label, generations)
    return progress, out


def until(out: io.StringIO, text: str) -> str:
    deadline = time.monotonic() + 30
    while text not in out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.05)
    return out.getvalue()


def test_a_generation_has_one_line_with_its_metric() -> None:
    """A line for each generation; a collapse with its reason, a stage taken from the store as such."""
    sweep, out = view()
    with sweep:
        row: dict[str, object] = {"chain_id": "a", "generation": 0, "perplexity": 1234.5, "reused": True}
        sweep.generation("a", row, ["perplexity"])
        row = {
            "chain_id": "a",
            "generation": 1,
            "perplexity": None,
            "reused": False,
            "collapse_reason": "training diverged",
        }
        sweep.generation("a", row, ["perplexity"])
    assert out.getvalue().splitlines() == [
        "loss.kind=tce seed=0  generation 0  perplexity 1,234  (from the store)",
        "loss.kind=tce seed=0  generation 1    collapsed: training diverged",
    ]


def test_a_step_announced_again_keeps_its_beginning() -> None:
    """A wait is announced over and over with its seconds in brackets: it is one wait, that began once."""
    board = Board()
    board.write("a", "waiting for another chain to train generation 0 (1 s)")
    (_, since) = board.read()["a"]
    board.write("a", "waiting for another chain to train generation 0 (9 s)")
    assert board.read()["a"] == ("waiting for another chain to train generation 0 (9 s)", since)
    board.write("a", "train generation 0")
    assert board.read()["a"][1] > since


def test_only_what_is_new_is_read() -> None:
    """Of thousands of jobs, those that wrote since; an answer that was lost is given again."""
    board = Board()
    for number in range(100):
        board.write(str(number), "starting")
    seen, steps = board.news(0)
    assert steps == board.read()
    assert board.news(seen) == (seen, {})
    board.write("7", "train generation 0")
    board.write("3", "evaluate generation 0")
    board.write("7", "train generation 0 (again)")
    for _ in range(2):
        later, steps = board.news(seen)
        assert {job: step for job, (step, _) in steps.items()} == {
            "7": "train generation 0 (again)",
            "3": "evaluate generation 0",
        }
    assert board.news(later) == (later, {})


def test_a_step_that_comes_before_its_job_is_shown_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial writes on the board before the driver hears that it has started."""
    board, (sweep, _) = Board(), view()
    remote = SimpleNamespace(news=SimpleNamespace(remote=board.news))
    monkeypatch.setattr(sweep, "_board", remote)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    board.write("later", "train generation 0")
    board.write("a", "train generation 1")
    sweep._look()
    sweep.add("later", "a search's chain", 3)
    sweep._look()
    assert {job: sweep._jobs[job].step for job in ("a", "later")} == {
        "a": "train generation 1",
        "later": "train generation 0",
    }


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_a_long_wait_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain that waits for another, and a sweep whose chains cannot start, say so and say what there is."""
    monkeypatch.setattr(progress, "_LONG_WAIT", 1.0)
    board = ray.remote(Board).options(num_cpus=0).remote()
    sweep, out = view(board)
    with sweep:
        assert ": their processes are still starting" in until(out, "still starting")
        too_much = placement_group([{"CPU": 1000}], name="__tune_0__")
        assert "one needs 1000 CPU (2 there" in until(out, "one needs")
        remove_placement_group(too_much)
        ray.get(board.write.remote("a", "waiting for an engine (0 of 2 generation calls done)"))
        assert "loss.kind=tce seed=0: waiting for an engine (0 of 2" in until(out, "waiting for an engine")
        ray.get(board.write.remote("a", "train generation 1"))
        lines = out.getvalue().count("waiting for an engine")
        time.sleep(2.5)
        assert out.getvalue().count("waiting for an engine") <= lines + 1, "a wait that is over was still reported"
