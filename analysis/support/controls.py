"""The notebooks' controls: which study to open, what to show of it, and why something cannot be shown.

The only module that imports marimo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NoReturn

import marimo as mo

from fortifai_ray.errors import UserError
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.words import counted, printable
from support.opening import open_experiment, open_folder

_CELL = "padding: 0.25em 1em 0.25em 0; text-align: left; vertical-align: top"


def picker(data: Path, start: str, arguments: Mapping[str, Any]) -> mo.ui.dictionary:
    """Controls that pick a study's results: a small study that ships, a folder, or an MLflow experiment.

    Args:
        data: the folder of the studies that ship.
        start: the study picked first.
        arguments: ``mo.cli_args()``: ``--results FOLDER``, or ``--mlflow URI --experiment NAME``.
    """
    given = {name: str(arguments.get(name) or "") for name in ("results", "mlflow", "experiment")}
    shipped = sorted(file.parent.name for file in data.glob("*/study.yaml"))
    return mo.ui.dictionary(
        {
            "shipped": mo.ui.dropdown(shipped, value=start, label="a study that ships with the notebooks"),
            "results": mo.ui.text(given["results"], label="or your own study's folder, STORAGE/NAME", full_width=True),
            "mlflow": mo.ui.text(given["mlflow"], label="or MLflow's tracking URI", full_width=True),
            "experiment": mo.ui.text(given["experiment"], label="and its experiment"),
        }
    )


def layout(picked: mo.ui.dictionary) -> mo.Html:
    """The layout of the controls of :func:`picker`."""
    experiment = mo.hstack([picked["mlflow"], picked["experiment"]], widths=[2, 1])
    return mo.vstack([picked["shipped"], picked["results"], experiment])


def opened(choice: Mapping[str, str], data: Path, *, compares: bool = True) -> StudyResults:
    """Open the results picked; if that fails, stop the cell and show the reason.

    A folder takes precedence over an experiment, and an experiment over a study that ships.

    Args:
        choice: the values of :func:`picker`'s controls.
        data: the folder of the studies that ship.
        compares: whether the notebook compares the chains of a cell; a search's chains lie at different values of the
            key searched, so they cannot be compared.
    """
    try:
        if choice["results"]:
            results = open_folder(choice["results"])
        elif choice["mlflow"]:
            results = open_experiment(choice["mlflow"], choice["experiment"])
        else:
            results = open_folder(data / choice["shipped"])
    except UserError as error:
        stop(str(error))
    if compares and results.searched_keys:
        keys = ", ".join(results.searched_keys)
        stop(
            f"{results.name} searched over {keys}: its chains lie at different values of the key, so they cannot be "
            "compared by cell. analysis/phase_diagram.py shows the result of such a search."
        )
    return results


def stop(reason: str) -> NoReturn:
    """End the cell, and those that depend on it, and show a sentence in its place."""
    if mo.app_meta().mode == "script":  # a script does not show the output of cells
        print(printable(reason))
    mo.stop(True, say(reason))
    raise AssertionError("mo.stop(True) does not return")


def say(reason: str) -> mo.Html:
    """Why something cannot be shown, in its place."""
    return mo.callout(mo.Html(f"<div>{escape(printable(reason))}</div>"), kind="warn")


def about(results: StudyResults) -> mo.Html:
    """The study opened: its name, its size, and what is missing."""
    table = results.generations
    counts = [
        (table["chain_id"].n_unique(), "chain"),
        (len(results.cells.order), "cell"),
        (table["seed"].n_unique(), "seed"),
    ]
    families = table["family.kind"].drop_nulls().unique().sort().to_list() if "family.kind" in table.columns else []
    name, kinds = escape(printable(results.name)), escape(f" ({', '.join(families)})" if families else "")
    last = int(str(table["generation"].max()))
    size = ", ".join([*(counted(*one) for one in counts), f"generations 0 to {last}"])
    line = mo.Html(f"<p><b>{name}</b>{kinds}: {size}.</p>")
    return mo.vstack([line, mo.callout(sentences(results.notes), kind="neutral")]) if results.notes else line


def criterion_picker(results: StudyResults) -> mo.ui.dropdown:
    """A choice of one of the study's collapse criteria, in words; its value is the criterion."""
    options = {criterion.words: criterion for criterion in results.criteria}
    return mo.ui.dropdown(options, value=next(iter(options), None), label="collapse", full_width=True)


def choice(options: Sequence[str], label: str) -> mo.ui.dropdown:
    """A choice of one of several texts."""
    return mo.ui.dropdown(list(options), value=next(iter(options), None), label=label)


def heading(title: str, caption: str) -> mo.Html:
    """The title of a chart, and what its marks mean.

    The chart itself is the last line of its own cell, so that a Jupyter notebook shows it as a chart, too.
    """
    return mo.md(f"### {escape(title)}\n\n<small>{caption}</small>")


def drawn(chart: Any) -> Any:
    """The chart, or the sentence in its place."""
    return say(chart) if isinstance(chart, str) else chart


def table(rows: Sequence[Mapping[str, Any]], nothing: str) -> mo.Html:
    """A small table of text, escaped and shown whole; the sentence ``nothing`` if it has no rows."""
    if not rows:
        return say(nothing)
    head = "".join(
        f"<th style='{_CELL}; border-bottom: 1px solid #808080'>{escape(str(name))}</th>" for name in rows[0]
    )
    lines = ("".join(f"<td style='{_CELL}'>{escape(str(text))}</td>" for text in row.values()) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    style = "border-collapse: collapse; font-size: 0.9rem"
    return mo.Html(f"<table style='{style}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def sentences(texts: Sequence[str]) -> mo.Html:
    """A list of sentences, escaped."""
    items = "".join(f"<li style='margin: 0.3em 0'>{escape(text)}</li>" for text in texts)
    return mo.Html(f"<ul style='list-style: disc; padding-left: 1.4em'>{items}</ul>")
