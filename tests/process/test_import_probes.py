"""Probes: each piece is blamed for its own fault, however it ends, and as few processes start as can be."""

import sys
from pathlib import Path

import pytest

from fortifai_ray.process.imports import quick_imports
from fortifai_ray.process.probes import Answer, probe, probes

_NOTE = "import os, sys; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); "


@pytest.mark.parametrize(
    ("code", "seconds", "answer"),
    [
        ("import time; time.sleep(600)", 0.5, ("", "no answer after 0.5 s")),
        ("import os; os.kill(os.getpid(), 11)", 60.0, ("", "ended by signal 11")),
        ("print('noise'); print('answer')", 60.0, ("answer", "")),
        ("", 60.0, ("", "")),
        ("raise RuntimeError('of two\\nlines')", 60.0, ("", "lines")),
        ("import sys; sys.exit('it ends itself')", 60.0, ("", "it ends itself")),
        ("import os; os._exit(0)", 60.0, ("", "exit status 0")),
        ("import os; os.write(1, b'noise of a C library\\n'); print('answer')", 60.0, ("answer", "")),
        ("import sys; print(sys.argv[1:])", 60.0, ("['an argument']", "")),
    ],
)
def test_a_piece_that_answers_fails_crashes_or_hangs(code: str, seconds: float, answer: tuple[str, str]) -> None:
    assert probe(code, seconds, "an argument") == answer


@pytest.mark.parametrize("fault", ["raise ValueError('no')", "import os; os.kill(os.getpid(), 9)"])
def test_a_fault_costs_one_more_process_and_its_neighbours_nothing(fault: str, tmp_path: Path) -> None:
    """What comes before it shares a process with it; what comes after gets a fresh one, with nothing half imported."""
    pids = tmp_path / "pids"
    codes = {"before": "print(1)", "first": "print(2)", "fault": fault, "next": "print(3)", "last": "print(4)"}
    answers = probes({name: _NOTE + code for name, code in codes.items()}, 60.0, str(pids))
    assert [answers[name].text for name in codes] == ["1", "2", "", "3", "4"]
    assert [name for name in codes if answers[name].error] == ["fault"]
    first, second, third, *rest = pids.read_text().split()
    assert first == second == third
    assert len({*rest, first}) == 2


def test_nothing_asked_starts_nothing() -> None:
    assert probes({}, 0.0) == {}


def test_quick_imports_hide_what_is_unused_and_bring_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers then imports neither scikit-learn nor SciPy; whoever needs them afterwards has them."""
    code = (
        "import sys, gc; from transformers import AutoModelForCausalLM; "
        "print(gc.isenabled(), {'sklearn', 'scipy'} & {name for name, module in sys.modules.items() if module})"
    )
    assert probe(code, 300.0) == Answer("False set()", "")
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    with quick_imports(), pytest.raises(ImportError):
        import sklearn  # noqa: F401
    assert "sklearn" not in sys.modules
    sentinel = object()
    monkeypatch.setitem(sys.modules, "sklearn", sentinel)
    with quick_imports():
        assert sys.modules["sklearn"] is sentinel, "a program that has it keeps it"
    assert sys.modules["sklearn"] is sentinel
