"""The command line: a user's mistake gets one line and exit code 2, and nothing is started."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fortifai_ray.cli import main

LICENCE = Path(__file__).parents[1] / "LICENSE"  # a short text
LOSSES = (("ce", 1.6), ("tce", 1.3))
STUDY = """
name: tiny
family: {kind: language, model: {preset: llama-tiny, vocab_size: 512}}
corpus: {source: pydoc, train_tokens: 4096}
regime: {kind: mixed, synthetic_ratio: 1.0}
generations: 2
collapse: {metric: perplexity, threshold: 2.0, direction: above}
"""


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["fortifai", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY)
    return file


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["loss={kind: tce, gamma: 1.5}"], "loss.gamma"),
        (["regime.synthetic_ratio=2"], "regime.synthetic_ratio"),
        (["generations=0"], "generations"),
        (["trainig.epochs=2"], "trainig"),
        (["corpus={path: no/such.txt}"], "no/such.txt"),
        (["family.model={path: no-such-model}"], "no-such-model"),
        (["corpus.train_tokens=300"], "too few for one batch"),
        (["training.block_size=60000", "training.batch_size=1"], "held-out tokens are less than one block"),
        (
            [f"corpus.validation={{path: {LICENCE}}}", "training.block_size=9000", "training.batch_size=1"],
            "corpus.validation.path: ",
        ),
        (["decoding.context_tokens=3000"], "decoding.context_tokens: rows of 3112 tokens do not fit"),
        (["decoding.context_tokens=300", "corpus.train_tokens=256", "training.batch_size=2"], "than the 256 tokens"),
        (["vary.seed={count:3}"], "a space is needed after the colon: {count: 3}"),
        (["vary.loss=[{kind: tce, gamma: 0.5}]", "loss.gamma=0.7"], "--set loss.gamma: loss varies"),
        (["vary.seed=[0, 1]", "seed=3"], "--set seed: seed varies, so no chain would have this: give --set vary.seed"),
        (["decoding.context_tokens=600"], "do not fit the model's context of 512"),
        (["decoding={temperature: 0, context_tokens: 128}", "decoding.max_new_tokens=32"], "has 32 different contexts"),
        (["decoding.max_new_tokens=2000"], "decoding.max_new_tokens: rows of 2016 tokens do not fit"),
        (["resources.engines.count=0"], "resources.engines.count"),
        (["x=[1"], "--set x=[1: line 1, column 3: is not valid YAML"),
        (["collapse.metric=perplexty"], "is not measured"),
        (["corpus={dataset: no/such-dataset}"], "corpus.dataset"),
    ],
)
def test_bad_input_ends_before_anything_starts(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    complaint: str,
) -> None:
    """One line on the error stream that names the file and the key; no results folder, no database, no Ray."""
    sets = [part for override in overrides for part in ("--set", override)]
    code, out, err = run(monkeypatch, capsys, "sweep", str(study), "--storage", str(tmp_path / "runs"), *sets)
    assert code == 2
    assert out == ""
    assert err.startswith("fortifai: ")
    assert err.count("\n") == 1
    assert "tiny.yaml" in err or "corpus" in err or "--set" in err
    assert complaint in err
    assert not (tmp_path / "runs" / "tiny").exists()
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_storage_that_cannot_be_written(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where a folder is needed, and an address with a secret in it."""
    for storage, complaint in (
        (str(study), "cannot be written"),
        ("s3://key:secret@bucket/runs", "must not hold credentials"),
    ):
        code, _, err = run(monkeypatch, capsys, "sweep", str(study), "--storage", storage)
        assert code == 2
        assert complaint in err


def test_an_address_where_nobody_answers(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said at once, where Ray itself would try for minutes; nothing is started or written."""
    storage = tmp_path / "runs"
    code, _, err = run(monkeypatch, capsys, "sweep", str(study), "--storage", str(storage), "--address", "127.0.0.1:1")
    assert code == 2
    assert "--address 127.0.0.1:1: nothing answers there" in err
    assert not (storage / "tiny").exists()


def test_a_dry_run_starts_nothing(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what would be done, and where; no results, no database."""
    code, out, _ = run(monkeypatch, capsys, "sweep", str(study), "--storage", str(tmp_path / "runs"), "--dry-run")
    _, asked, _ = run(
        monkeypatch, capsys, "sweep", str(study), "--storage", str(tmp_path / "runs"), "--dry-run", "--address", "no:1"
    )
    assert asked == out + "--address no:1: is not asked in a dry run\n"
    assert code == 0
    assert "1 chains of 2 generations, 0 of them in the store" in " ".join(out.split())
    assert "--address" not in out
    assert not (tmp_path / "runs" / "tiny").exists()
    assert not (tmp_path / "runs" / "mlflow.db").exists()


@pytest.mark.parametrize("command", ["sweep", "analyse", "report", "doctor", "ui"])
def test_help_teaches(command: str) -> None:
    """Each command explains itself, without importing what only the work needs."""
    code = (
        "import sys; from fortifai_ray.cli import app\n"
        f"try: app(['{command}', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'altair', 'transformers', 'polars'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout


def test_a_folder_without_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`report` and `ui` on a folder that holds nothing name it."""
    for command in (["report", str(tmp_path)], ["ui", "--storage", str(tmp_path)]):
        code, _, err = run(monkeypatch, capsys, *command)
        assert code == 2
        assert str(tmp_path) in err


def test_commands_in_hints_can_be_pasted_into_a_shell() -> None:
    """Wherever a message holds a command with a path or an address of the user's, that is quoted."""
    command = re.compile(r"fortifai (?:sweep|report|claims|evaluate|gc|doctor|ui)\b[^`\"]*?\{(?!shlex\.quote\()[^}]*\}")
    package = Path(main.__code__.co_filename).parent
    texts = {path.relative_to(package): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert sum(text.count("shlex.quote(") for text in texts.values()) >= 2
    assert not {str(path): found for path, text in texts.items() if (found := command.findall(text))}


def test_a_history_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``fortifai analyse``: the tables and where the report is; a mistake is one line, exit code 2, nothing written."""
    lines = [f"{loss},{seed},{gen},{rate**gen}" for loss, rate in LOSSES for seed in (0, 1, 2) for gen in range(6)]
    (tmp_path / "a.csv").write_text("\n".join(["loss,seed,gen,ppl", *lines]))
    asked = ["--metric", "ppl", "--step", "gen", "--seed", "seed", "--baseline", "loss=ce", "--storage", str(tmp_path)]
    criterion = ["--criterion", "above 2x own generation 0", "--criterion", "above 3"]
    command = ("analyse", str(tmp_path / "a.csv"), *asked, *criterion)
    code, out, err = run(monkeypatch, capsys, *command, "--by", "los")
    assert (code, out) == (2, "")
    assert err == f"fortifai: {tmp_path / 'a.csv'}: --by los: no such column; did you mean loss?\n"
    assert not (tmp_path / "a").exists()
    code, out, err = run(monkeypatch, capsys, *command, "--by", "loss")
    assert (code, err) == (0, "")
    assert "loss=tce" in out
    assert f"report: {tmp_path / 'a' / 'report.html'}" in out
    assert {path.stem for path in (tmp_path / "a" / "results").glob("*.parquet")} == {
        "generations",
        "chains",
        "fidelity",
    }
