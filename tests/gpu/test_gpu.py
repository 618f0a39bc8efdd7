"""The GPU's script, rehearsed where there is none: every part runs with the few packages that such a machine has, and
what was measured is on disk at every moment."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu import head, llamas, recursion, step
from benchmarks.gpu.__main__ import LIMITS, main, run, run_part
from benchmarks.gpu.record import Record, read

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "scripts" / "gpu_check.sh"
FEW_PACKAGES = {
    **os.environ,
    "FORTIFAI_LACKING": "1",
    "PYTHONPATH": f"{Path(__file__).parent / 'lacking'}{os.pathsep}{PROJECT}",
    "TRITON_INTERPRET": "1",
    "TORCHDYNAMO_DISABLE": "1",  # a compiled function is the function: no C++ compiler is waited for
    "OMP_NUM_THREADS": "1",
}


def started(out: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--scale", "toy", *options]
    return subprocess.Popen(
        command, cwd=PROJECT, env=FEW_PACKAGES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return json.loads(output.splitlines()[-1])


def test_the_whole_script_with_the_few_packages_of_such_a_machine(tmp_path: Path) -> None:
    """All five parts at toy sizes. Killed within the third, it leaves two parts whole and a third as far as it was, and
    no process; begun again with that part, it goes on to the end."""
    pytest.importorskip("triton")
    first = started(tmp_path)
    while first.poll() is None and not read(tmp_path / "step.json").get("rows"):
        time.sleep(0.05)
    assert first.poll() is None, first.communicate()[0]
    first.kill()
    first.communicate()
    left = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert {name: part["ended"] for name, part in left["summary"]["parts"].items()} == {
        "kernels": "done", "head": "done", "step": "running", "generation": "not begun", "recursion": "not begun",
    }, (tmp_path / "log.txt").read_text()  # fmt: skip
    assert left["kernels"]["goals"] == {"every test of the kernels passes": True}
    assert left["step"]["rows"][0]["trainer"] == "ours"
    gone = time.monotonic() + 20
    while any(str(tmp_path) in process.info["cmdline"] for process in psutil.process_iter(["cmdline"], ad_value=())):
        assert time.monotonic() < gone, "a part outlives the script"
        time.sleep(0.1)

    summary = ended(started(tmp_path, "--parts", "3,generation,5"))
    log = (tmp_path / "log.txt").read_text()
    assert {part["ended"] for part in summary["parts"].values()} == {"done"}, log
    assert "ray" not in summary["machine"]["versions"]
    check_rows({name: read(tmp_path / f"{name}.json")["rows"] for name in LIMITS}, log)
    assert len(list(tmp_path.iterdir())) <= 8, "a lent machine gives at most 8 files back"


def check_rows(rows: dict[str, list[dict[str, Any]]], log: str) -> None:
    """What each part's rows hold."""
    failed = [row for part in rows.values() for row in part if "failed" in row]
    assert not failed, log
    measured = {row["implementation"] for row in rows["head"] if "missing" not in row}
    assert {"two products", "cross_entropy", "compiled", *(f"fused k={kept}" for kept in head.KEPT)} <= measured
    assert {row["shape"] for row in rows["head"]} == set(head.SHAPES["toy"])
    trained = {(row["trainer"], row["loss"], row["gradient_checkpointing"]) for row in rows["step"]}
    both = [(loss, again) for loss in ("cross_entropy", "tce") for again in (False, True)]
    assert trained == {("ours", *each) for each in both} | {("Hugging Face", "cross_entropy", a) for a in (False, True)}
    assert all(0.3 <= row["kept"] <= 0.7 for row in rows["step"] if row["loss"] == "tce")
    assert {row.get("decoding") for row in rows["generation"]} == {None, "draws", "beams"}
    generations = {(row["loss"], row["generation"]) for row in rows["recursion"]}
    assert generations == {(loss, g) for loss in recursion.LOSSES for g in range(recursion.SIZES["toy"]["generations"])}
    assert all(row["perplexity"] > 1 and row["written"] for row in rows["recursion"])


def test_a_part_ends_at_its_limit_and_none_begins_without_time(tmp_path: Path) -> None:
    """The time of all parts together is bounded, so that a command that may take ten minutes ends by itself."""
    assert run_part("recursion", tmp_path, "toy", 0.3) == "ended at its limit of 0 s"
    summary = run(["kernels", "head"], tmp_path, "toy", 0.0)
    assert {part["ended"] for part in summary["parts"].values()} == {"not begun"}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", __file__], "--out .*: no folder can be made there"),
        (["--budget", "-5"], "--budget -5: a number of seconds above 0"),
        (["--budget", "nan"], "--budget nan: a number of seconds above 0"),
        (["--parts", "1,1"], "--parts 1,1: a part is named twice"),
        (["--parts", "1,kernels"], "a part is named twice"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    """In one line after the usage, before a part begins."""
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), *options])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert re.search(f"error: .*{said}", capsys.readouterr().err.splitlines()[-1])


def test_a_run_without_its_packages_is_refused(tmp_path: Path) -> None:
    """The script copied to where nothing was prepared."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    command = ["sh", str(tmp_path / "scripts" / SCRIPT.name), "run", "out"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "first sh scripts/gpu_check.sh prepare" in ran.stderr


def test_only_what_such_a_machine_has_can_be_imported() -> None:
    """The rehearsal proves nothing where the packages are merely unused."""
    names = ("ray", "vllm", "polars", "mlflow", "pyarrow", "datasets", "lm_eval", "sklearn", "torch", "pydantic")
    code = f"from importlib.util import find_spec; print([name for name in {names} if find_spec(name)])"
    ran = subprocess.run([sys.executable, "-c", code], env=FEW_PACKAGES, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['torch', 'pydantic']"


def test_a_record_is_whole_whenever_its_process_is_killed(tmp_path: Path) -> None:
    """Killed at five moments, none of them chosen; numbers that JSON does not know are null."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu.record import Record\n"
        "record = Record(Path(sys.argv[1]), {'part': 'x'})\n"
        "while True: record.add(number=len(record.rows), nan=float('nan'), deep=[{'inf': float('inf')}])"
    )
    for moment in range(5):
        path = tmp_path / f"{moment}.json"
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=PROJECT, stdout=subprocess.DEVNULL)
        while not read(path).get("rows"):
            time.sleep(0.01)
        time.sleep(0.013 * moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = json.loads(path.read_text())["rows"]
        assert rows == [{"number": i, "nan": None, "deep": [{"inf": None}]} for i in range(len(rows))]


def test_a_failure_is_a_row_and_the_next_is_measured(tmp_path: Path) -> None:
    """Out of memory at one shape, or another project's code that does not fit."""
    record = Record(tmp_path / "part.json", {})

    def fail() -> None:
        raise RuntimeError("out of memory\nand a long story")

    assert not record.attempt(fail, shape="1x2x3")
    assert record.attempt(lambda: record.add(shape="4x5x6"), shape="4x5x6")
    assert read(tmp_path / "part.json")["rows"] == [
        {"shape": "1x2x3", "failed": "RuntimeError: out of memory"},
        {"shape": "4x5x6"},
    ]


def recorded(tmp_path: Path, rows: list[dict[str, Any]]) -> Record:
    return Record(tmp_path / "part.json", {"rows": rows})


@pytest.mark.parametrize(
    ("share", "theirs", "expected"),
    [(0.45, 1.0, [True, True]), (0.44, 1.0, [False, True]), (0.5, 0.9, [True, False]), (None, None, [None, None])],
)
def test_goals_of_a_step(
    share: float | None, theirs: float | None, expected: list[bool | None], tmp_path: Path, monkeypatch: Any
) -> None:
    """45% of the peak by one of our settings; no slower than Hugging Face's at each; unmeasured is not missed."""
    monkeypatch.setattr(step, "device", lambda: "cuda")
    ours = {"trainer": "ours", "loss": "cross_entropy", "gradient_checkpointing": True, "seconds_per_step": 1.0}
    rows: list[dict[str, Any]] = [{**ours, "share_of_peak": share}, {**ours, "loss": "tce", "share_of_peak": 0.9}]
    if theirs is not None:
        rows.append({**ours, "trainer": "Hugging Face", "seconds_per_step": theirs, "share_of_peak": 0.9})
    assert [*step.goals(recorded(tmp_path, rows)).values()] == expected


def test_goals_of_the_head(tmp_path: Path, monkeypatch: Any) -> None:
    """Each is missed by one shape that misses it; what was not measured is neither met nor missed."""
    monkeypatch.setattr(head, "device", lambda: "cuda")
    good = {"shape": "8x2x32", "seconds": 1.0, "time_ratio": 0.5, "peak_bytes": 100, "peak_ratio_to_plain": 0.1}
    fused = [
        {**good, "implementation": f"fused k={k}", "flop_ratio": (1 + 2 * k) / 3, "share_of_products": 0.7}
        for k in head.KEPT
    ]
    others = [{**good, "implementation": name, "seconds": 2.0} for name in ("liger", "cut_cross_entropy")]
    assert all(head.goals(recorded(tmp_path, fused + others)).values())
    unmeasured = [name for name, met in head.goals(recorded(tmp_path, fused)).items() if met is None]
    assert len(unmeasured) == 3
    for change in ({"share_of_products": 0.69}, {"seconds": 3.0}, {"peak_bytes": 101}):
        rows = [*fused, *others, {**fused[2], **change}]
        assert not all(head.goals(recorded(tmp_path, rows)).values()), change
    assert set(head.goals(recorded(tmp_path, [])).values()) == {None}


def test_goals_of_the_recursion(tmp_path: Path) -> None:
    """Judged once both chains have ended; a chain that collapsed has ended."""
    rows = [
        {"loss": name, "generation": 4, "collapsed": None, "perplexity": at} for name, at in
        zip(recursion.LOSSES, (50.0, 40.0, 45.0), strict=True)
    ]  # fmt: skip
    assert [*recursion.goals(recorded(tmp_path, rows), 5).values()] == [True, True]
    assert [*recursion.goals(recorded(tmp_path, rows[:1]), 5).values()] == [None, None]
    worse = [{**row, "perplexity": 60.0} if row["loss"] == "tce 0.9" else row for row in rows]
    assert [*recursion.goals(recorded(tmp_path, worse), 5).values()] == [True, False]


def test_operations_of_a_training_step_are_those_that_torch_counts() -> None:
    """6 a weight and token, and the causal half of attention; torch counts the whole, where it is plain products."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network, block = llamas.make("toy", longest=64), 64
    network.set_attn_implementation("eager")
    tokens = torch.zeros(2, block, dtype=torch.long, device=network.device)
    with FlopCounterMode(display=False) as counter:
        network(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss.backward()
    config = network.config
    masked = 6 * config.num_hidden_layers * block * config.hidden_size
    counted = counter.get_total_flops() / tokens.numel()
    assert counted == pytest.approx(llamas.training_flops(network, block) + masked, rel=1e-3)


@pytest.mark.parametrize("arguments", [[], ["run"], ["fetch"]])
def test_the_shell_script_says_how_it_is_used(arguments: list[str]) -> None:
    """Exit code 2, and nothing is fetched or installed."""
    ran = subprocess.run(["sh", str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "run" in ran.stderr


def test_the_shell_script_is_sound_and_names_no_host() -> None:
    """Packages come from where pip is told to look."""
    shellcheck = Path(sys.executable).parent / "shellcheck"
    checked = subprocess.run([str(shellcheck), str(SCRIPT)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "://" not in SCRIPT.read_text()


@pytest.mark.parametrize("parts", ["0", "6", "kernel", "1,,2"])
def test_a_part_that_is_none_starts_nothing(parts: str, tmp_path: Path) -> None:
    """The message lists the parts."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out"), "--parts", parts]
    ran = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "1 kernels, 2 head, 3 step, 4 generation, 5 recursion" in ran.stderr
    assert not (tmp_path / "out").exists()
