"""Runs that a tracker kept are the rows that they logged: TensorBoard, and Weights & Biases as CSV and offline."""

import csv
import sys
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from fortifai_ray.cli import main
from fortifai_ray.errors import UserError
from fortifai_ray.histories.source import said_in

from .runs import chains, csv_lines, name_of, read, same_as_csv


@pytest.mark.parametrize(
    ("name", "label", "value"),
    [
        ("loss=cross_entropy gamma=0.9 seed=3", "loss", "cross_entropy"),
        ("loss: tce, gamma: 0.9", "gamma", "0.9"),
        ("tce-gamma0.9-seed3", "gamma", "0.9"),
        ("tce-gamma0.9-seed3", "seed", "3"),
        ("runs/ce/seed_12/last", "seed", "12"),
        ("loss_ce_seed_3", "loss", "ce"),
        ("loss=ce_seed=3", "loss", "ce"),
        ("lr=1e-3,seed=0", "lr", "1e-3"),
        ("shift=-0.5", "shift", "-0.5"),
        ("seeded run", "seed", None),
        ("proseed=3", "seed", None),
        ("", "seed", None),
    ],
)
def test_what_a_name_says(name: str, label: str, value: str | None) -> None:
    """A run's name says its labels in the usual ways."""
    assert said_in(name, label) == value


def test_a_chart_of_weights_and_biases(tmp_path: Path) -> None:
    """A column for each run, with those of its range beside it; rows in which a run logged nothing are empty."""
    runs = chains()
    header = ["Step"]
    for key in runs:
        header += [f"{name_of(*key)} - eval/ppl{end}" for end in ("", "__MIN", "__MAX")]
    with (tmp_path / "wandb_export.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        for step in range(4):
            for key in runs:  # one run a line, as when they log at different times
                cells = [[values[step]] * 3 if other == key else [""] * 3 for other, values in runs.items()]
                writer.writerow([step, *(cell for three in cells for cell in three)])
    history = read(tmp_path / "wandb_export.csv", step="Step", metric="eval/ppl")
    (tmp_path / "plain.csv").write_text("\n".join(csv_lines(seeds=2, generations=4)))
    plain = read(tmp_path / "plain.csv").generations
    assert_frame_equal(history.generations.rename({"eval/ppl": "ppl"}), plain)
    for options, complaint in (
        ({"by": ["los"], "baseline": ["los=ce"]}, r"no run's name says los: name runs as in 'los=1'"),
        ({"step": "Stop"}, r"--step Stop: no such column; did you mean Step\?"),
        ({"metric": "eval/pp"}, r"--metric eval/pp: no such column"),
    ):
        with pytest.raises(UserError, match=complaint):
            read(tmp_path / "wandb_export.csv", **{"step": "Step", "metric": "eval/ppl", **options})


@pytest.mark.parametrize("labels", ["in names", "as hyperparameters"])
def test_tensorboard(labels: str, tmp_path: Path) -> None:
    """A folder of event files for each run; a step that was logged again counts as it was last."""
    from tensorboardX import SummaryWriter

    for number, ((loss, gamma, seed), values) in enumerate(chains().items()):
        name = name_of(loss, gamma, seed) if labels == "in names" else f"run-{number}"
        with SummaryWriter(str(tmp_path / "logs" / name)) as writer:
            if labels != "in names":
                given = {"loss": loss, "seed": seed, **({} if gamma is None else {"gamma": gamma})}
                writer.add_hparams(given, {"best": 1.0}, name="hparams")
            writer.add_text("note", "no scalar")
            for step, value in enumerate(values):
                writer.add_scalar("ppl", 1e9, step)
                writer.add_scalar("ppl", value, step)
                writer.add_scalar("other", value, step)
    same_as_csv(tmp_path / "logs", tmp_path, step="step")
    last = sorted((tmp_path / "logs").rglob("*tfevents*"))[-1]
    last.write_bytes(last.read_bytes()[:-3])  # a writer that was killed
    assert read(tmp_path / "logs", step="step").generations.height >= 4 * 4 - 1
    with pytest.raises(UserError, match="--metric pppl: no run has logged it; did you mean ppl"):
        read(tmp_path / "logs", step="step", metric="pppl")


def test_offline_runs_need_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package wandb, one line says how to get on."""
    for name in ("wandb", "wandb.proto.wandb_internal_pb2"):  # TRL and Lightning import it where it is installed
        monkeypatch.setitem(sys.modules, name, None)
    folder = tmp_path / "wandb" / "offline-run-20260101_000000-abc"
    folder.mkdir(parents=True)
    (folder / "run-abc.wandb").write_bytes(b":W&B\xe1\xbe\x00")
    with pytest.raises(UserError, match=r"takes its package: `pip install wandb`; or export the runs as CSV"):
        read(tmp_path / "wandb", step="_step")


def test_offline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that the package wandb logged offline, as the command line judges them; a record that is longer than a block
    comes whole."""
    import wandb

    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(name, value)
    for (loss, gamma, seed), values in chains().items():
        config = {"loss": loss, "seed": seed, "deep": {"er": 1}, **({} if gamma is None else {"gamma": gamma})}
        run = wandb.init(project="collapse", config=config)
        for value in values:
            run.log({"ppl": value, "text": "x" * 40_000})
        run.finish()
    wandb.teardown()  # its own process
    same_as_csv(tmp_path / "wandb", tmp_path, step="_step")
    columns = ["--metric", "ppl", "--step", "_step", "--by", "loss,gamma", "--seed", "seed"]
    asked = [*columns, "--baseline", "loss=ce", "--criterion", "above 2x own generation 0"]
    monkeypatch.setattr(sys, "argv", ["fortifai", "analyse", "wandb", *asked])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capsys.readouterr().err
    assert (tmp_path / "runs" / "wandb" / "results" / "fidelity.parquet").is_file()
