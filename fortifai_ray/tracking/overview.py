"""What a study's own run in MLflow shows: curves, what was found of each cell, its data and where it comes from."""

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from fortifai_ray.process.git import git
from fortifai_ray.report.headline import headline
from fortifai_ray.report.points import MOST_GENERATIONS, curve
from fortifai_ray.report.tables import MOST_CELLS, MOST_CONCLUSIONS, cell_rows, conclusion_lines
from fortifai_ray.results.cells import ChainNames
from fortifai_ray.results.reader import StudyResults, open_study
from fortifai_ray.results.scan import collected, scan_table
from fortifai_ray.results.schema import read_table
from fortifai_ray.statistics.chains import failed_chains
from fortifai_ray.statistics.criterion import criterion_rows
from fortifai_ray.storage.location import STAGES
from fortifai_ray.storage.stage import MANIFEST
from fortifai_ray.study.study import Chain, Study
from fortifai_ray.tracking.address import redact
from fortifai_ray.tracking.run_content import HumanData, Overview

_FINALS = {
    "FI median": "fi_median",
    "FI ratio": "fi_ratio",
    "FI ratio low": "fi_ratio_low",
    "FI ratio high": "fi_ratio_high",
}
_POINT = {"critical value": "critical", "critical value low": "low", "critical value high": "high"}
_ORIGINS = ("source", "dataset", "path", "written_by")  # of human data, in a recipe
_SIGNS = str.maketrans({"=": " ", "×": "x", "/": "_"})


class StudyOverview:
    """Reads a study's :class:`Overview` from its folder."""

    def __init__(self, folder: Path, study: Study, study_file: Mapping[str, Any]) -> None:
        self._folder, self._study, self._file = folder, study, study_file

    def read(self, *, ended: bool) -> Overview:
        """What can be told so far, or in the end.

        Raises:
            UserError: a table cannot be read.
        """
        values = dict(self._medians(ended=ended))
        if not ended:
            return Overview(values, provenance(), self._data(), ended=False)
        results = self._judged
        values |= {**dict(self._course(results)), **dict(self._found(results))}
        tags = {**provenance(), "mlflow.note.content": self._note(results)}
        return Overview(values, tags, self._data(), ended=True)

    def label(self, chain: Chain) -> str:
        """A chain's name in the list of runs: its cell's, as the report has it, and its seed."""
        return self._chain_names.chain(chain)

    def cell(self, chain: Chain) -> str:
        """The name of a grid's cell, as the report has it."""
        return self._chain_names.cell(chain)

    # curves

    def _medians(self, *, ended: bool) -> Iterator[tuple[tuple[str, int], float]]:
        """The median over a cell's seeds of each criterion's metrics, by generation, as the report draws it.

        A generation is told once every chain of its cell has it, so that a median that MLflow holds stays as it is.
        """
        metrics = dict.fromkeys(
            metric for one in self._study.settings.collapse for metric in (part.metric for part in one.members)
        )
        asked = max((chain.recipe.generations for chain in self._study.chains), default=0)
        if self._study.settings.search or not metrics:
            return
        if not ended and (asked > MOST_GENERATIONS or all(cell.recipe.batched for cell in self._study.cells)):
            return  # longer curves are thinned to generations that are known in the end; batched chains take seconds
        chains = read_table(self._folder, "chains") if ended else None
        lost = failed_chains(chains) if chains is not None else []
        planned = self.planned.filter(pl.col("cell").is_in(self._shown) & ~pl.col("chain_id").is_in(lost))
        table = scan_table(self._folder, "generations")
        if table is None:
            return
        cells = planned.lazy().select("chain_id", "cell")
        for metric in metrics:
            measured = collected(
                table.filter(pl.col(metric).is_not_null()).select("chain_id").unique().join(cells, on="chain_id")
            )
            begun = measured.group_by("cell").agg(chains=pl.len())
            every = planned.group_by("cell").agg(every=pl.len()).join(begun, on="cell")
            whole = every.filter(pl.col("chains") == pl.col("every"))["cell"].to_list()
            rows = table.join(cells.filter(pl.col("cell").is_in(whole)), on="chain_id", how="semi")
            drawn = curve(rows, metric, self._chain_names.cells, most_points=10**9)
            for cell, step, value in drawn.spread.select("cell", "generation", "value").iter_rows():
                yield (f"median {_plain(metric)}/{self._names[cell]}", step), value

    def _course(self, results: StudyResults) -> Iterator[tuple[tuple[str, int], float]]:
        """The critical value of each cell of a search, and its interval, by round."""
        course, cells = results.searched.get("course") or {}, self._study.cells
        for index, criterion in enumerate(self._study.settings.collapse):
            under = f" {_plain(criterion.short_words)}" if len(self._study.settings.collapse) > 1 else ""
            for cell in cells:
                name = self._names.get(self.cell(cell))
                for number, *known in course.get(f"{cell.cell_id}/{index}", ()) if name else ():
                    for title, value in zip(_POINT, known, strict=True):
                        if value is not None:
                            yield (f"{title}{under} by round/{name}", int(number)), float(value)

    @cached_property
    def planned(self) -> pl.DataFrame:
        """A row for each chain of the grid, with its cell."""
        return self._chain_names.named()

    @cached_property
    def _chain_names(self) -> ChainNames:
        return ChainNames(self._study)

    @property
    def _judged(self) -> StudyResults:
        """The results in the folder; of a grid without its generations, which may be millions."""
        if self._study.settings.search:
            return open_study(self._folder)
        return StudyResults(self._folder, self._file, generations=self.planned)

    @property
    def _shown(self) -> list[str]:
        return self._chain_names.cells.order[:MOST_CELLS]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Each cell's name as part of a metric's: in characters that MLflow takes, where no two become one."""
        return _distinct(self._shown)

    # what was found

    def _found(self, results: StudyResults) -> Iterator[tuple[tuple[str, int], float]]:
        """Fidelity intervals and ratios to the baseline's, or critical values, of each cell and criterion."""
        for criterion in results.criteria:
            under = f" {_plain(criterion.short_words)}" if len(results.criteria) > 1 else ""
            rows = [row for row in cell_rows(results, criterion) if row["unit"] == "generations"][:MOST_CELLS]
            names = _distinct([row["cell"] for row in rows])
            for row in rows:
                for title, key in _FINALS.items():
                    if row[key] is not None and not (row["is_baseline"] and key != "fi_median"):
                        yield (f"result/{title}{under} {names[row['cell']]}", 0), float(row[key])
            if (points := results.points) is not None:
                points = results.cells.name(points.filter(criterion_rows(criterion))).head(MOST_CELLS)
                names = _distinct(points["cell"].to_list())
                for row in points.to_dicts():
                    for title, key in _POINT.items():
                        if row[key] is not None:
                            yield (f"result/{title}{under} {names[row['cell']]}", 0), float(row[key])

    def _note(self, results: StudyResults) -> str:
        """The study in words, in Markdown."""
        found, reading = headline(results)
        lines = _in_markdown(conclusion_lines(results, MOST_CONCLUSIONS))
        more = len(self._chain_names.cells.order) - MOST_CELLS if not self._study.settings.search else 0
        rest = f" Charts show the first {MOST_CELLS} cells; {more} more are in the report." if more > 0 else ""
        where = f"`report.html` is among the artefacts, and in `{self._folder}` with the tables.{rest}"
        return "\n\n".join(part for part in (found and f"**{found}**", reading, lines, where) if part)

    def _data(self) -> list[HumanData]:
        """The human data of the cells' first chains, as far as the stages of their generation 0 are on this machine."""
        first = self._study.member_cells[:MOST_CELLS]
        chains = {chain.chain_id: chain for chain in first if _section(chain) is not None}
        began = pl.col("chain_id").is_in(list(chains)) & (pl.col("generation") == 0)
        columns = ["chain_id", "generation", "stage"]
        table = read_table(self._folder, "generations", columns=columns, rows=began) if chains else None
        found: dict[str, HumanData] = {}
        for chain_id, _, stage in [] if table is None else table.iter_rows():
            name, section = _section(chains[chain_id]) or ("", {})
            for digest in _pools(self._folder.parent / STAGES / str(stage) / MANIFEST):
                found.setdefault(digest, HumanData(name, digest, section))
        return list(found.values())


@cache
def provenance() -> dict[str, str]:
    """The tags that MLflow's page shows as a run's source and version, and ``fortifai.version``."""
    commit = git("rev-parse", "HEAD")
    tags = {
        "mlflow.source.name": redact(_command(sys.argv)),
        "mlflow.source.type": "LOCAL",
        "fortifai.version": version("fortifai-ray"),
    }
    if commit:
        branch = git("rev-parse", "--abbrev-ref", "HEAD")
        tags |= {"mlflow.source.git.commit": commit} | ({"mlflow.source.git.branch": branch} if branch else {})
    return tags


def _command(argv: list[str]) -> str:
    """``fortifai sweep FILE``; of another program that uses the package, its name."""
    program = Path(argv[0] if argv else "")
    if program.name == "fortifai" or program.parts[-2:] == ("fortifai_ray", "__main__.py"):
        return shlex.join(["fortifai", *argv[1:]])
    return program.name or "python"


def _plain(text: str) -> str:
    """A text in the characters that MLflow takes in a name, and without the slash at which its page groups metrics."""
    return " ".join(re.sub(r"[^\w.\- :]", " ", text.translate(_SIGNS)).split())


def _distinct(cells: Sequence[str]) -> dict[str, str]:
    plain = [_plain(cell) for cell in cells]
    return {cell: name if plain.count(name) == 1 else cell for cell, name in zip(cells, plain, strict=True)}


def _in_markdown(lines: Sequence[str]) -> str:
    """Headings and their lists, which a blank line parts."""
    marked = [line if line.startswith("- ") else f"\n{line}\n" for line in lines]
    return "\n".join(marked).strip()


def _section(chain: Chain) -> tuple[str, dict[str, Any]] | None:
    """The name of a chain's human data and their section of its recipe; None where they are drawn from a formula."""
    recipe = chain.recipe.model_dump(mode="json")
    section = recipe.get("corpus") or recipe["family"].get("data")
    name = next((section[key] for key in _ORIGINS if section.get(key)), None) if isinstance(section, dict) else None
    return None if name is None else (name if isinstance(name, str) else json.dumps(name), section)


def _pools(manifest: Path) -> Iterator[str]:
    """The hashes of the data with which a model was trained; none where its stage's record is not on this machine."""
    try:
        draws = json.loads(manifest.read_text(encoding="utf-8"))["inputs"]["data"]
        yield from dict.fromkeys(str(draw["pool"]).partition("/")[0] for draw in draws)
    except (OSError, ValueError, KeyError, TypeError):
        return
