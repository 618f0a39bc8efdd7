"""What MLflow should hold of a study, read from the study's folder alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from fortifai_ray.results.scan import collected, scan_table
from fortifai_ray.results.schema import FI_UNITS, read_json, read_table, searched_keys, with_criterion_columns
from fortifai_ray.search.points import CollapsePoint, Lattice
from fortifai_ray.study.search import BoundarySearch
from fortifai_ray.study.study import Chain, Study, load_study
from fortifai_ray.tracking.run_content import RunContent, RunEnd
from fortifai_ray.validation import read_yaml

if TYPE_CHECKING:
    from fortifai_ray.tracking.overview import StudyOverview

RECORDED_COLLAPSE = "recorded_collapse"  # a metric: 1 where a generation was recorded as collapsed
_SIZES = ("synthetic_ratio_realised", "synthetic_size_cum")
_RESULTS = ("metric", "any_of", "onset", "censored", *(f"fi_{unit}" for unit in FI_UNITS))
_BATCH = 500  # chains whose rows are in memory at once
_STEPS = 200  # A longer series over a cell's seeds is thinned to this many generations, evenly spread.
_QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}


class StudyContent:
    """The runs of the study in ``folder`` (``STORAGE/NAME``): one for each chain, or for each cell of batched chains.

    Batched chains come by the thousand and cost milliseconds each; MLflow gets quantiles over their seeds instead.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._searched: dict[str, Chain | None] = {}

    @cached_property
    def study_file(self) -> dict[str, Any]:
        """The content of ``study.yaml``."""
        return dict(read_yaml(self.folder / "study.yaml", "a study file"))

    def due(self, after: Mapping[str, int], *, ended: bool) -> list[Chain]:
        """The chains with a run of their own that have generations later than the one in ``after``, or have ended."""
        if all(cell.recipe.batched for cell in self._study.cells):
            return []
        searched = searched_keys(self.study_file)
        columns = ["chain_id", "generation", *(["seed", *searched] if searched else [])]
        table = read_table(self.folder, "generations", columns=list(dict.fromkeys(columns)))
        if table is None:
            table = pl.DataFrame(schema=dict.fromkeys(columns, pl.Null))
        elif not ended:
            table = table.filter(_later_than(after))
        rows = table.unique("chain_id", keep="first", maintain_order=True).to_dicts()
        rows += [row for row, _ in self._ends.values()] if ended else []
        chains: dict[str, Chain | None] = {}
        for row in rows:
            if row["chain_id"] not in chains:
                chains[row["chain_id"]] = self._chain(row)
        return [chain for chain in chains.values() if chain is not None and not chain.recipe.batched]

    def chains(self, after: Mapping[str, int], *, ended: bool) -> Iterator[RunContent]:
        """The runs of the chains that are :meth:`due`, read some hundreds at a time.

        Args:
            after: the last generation that MLflow holds with its samples, by chain id.
            ended: whether the sweep has written its verdicts. Then every chain has an end, and all its generations;
                the samples are those of new generations even so.
        """
        due = self.due(after, ended=ended)
        for start in range(0, len(due), _BATCH):
            yield from self._contents(due[start : start + _BATCH], after, ended=ended)

    def _contents(self, chains: Sequence[Chain], after: Mapping[str, int], *, ended: bool) -> Iterator[RunContent]:
        held = {chain.chain_id: after.get(chain.chain_id, -1) for chain in chains}
        generations = self._rows("generations", dict.fromkeys(held, -1) if ended else held)
        texts, pictures = self._rows("samples", held), self._rows("pictures", held)
        for chain in chains:
            samples = dict(_text_files(texts.get(chain.chain_id, [])))
            pngs = pictures.get(chain.chain_id, [])
            samples |= {f"generation_{row['generation']:03d}.png": row["png"] for row in pngs}
            series = {row["generation"]: _metrics(row, chain) for row in generations.get(chain.chain_id, [])}
            recipe = chain.recipe.model_dump(mode="json")
            end = self._ends[chain.chain_id][1] if ended and chain.chain_id in self._ends else None
            yield RunContent(chain.chain_id, self.overview.label(chain), recipe, series, samples, end)

    def cells(self) -> Iterator[RunContent]:
        """The cells of batched chains, with quantiles over their seeds; none where the study searches."""
        searches = self._study.settings.search is not None
        cells = [] if searches else [cell for cell in self._study.member_cells if cell.recipe.batched]
        generations = scan_table(self.folder, "generations") if cells else None
        if generations is None:
            return
        metrics = dict.fromkeys(name for cell in cells for name in cell.metrics)
        cell_of = dict(self.overview.planned.select("chain_id", "cell").iter_rows())
        series = dict(seed_quantiles(generations, cell_of, list(metrics)))
        for cell in cells:
            label = self.overview.cell(cell)
            values = series.get(label, {})
            yield RunContent(cell.cell_id, label, _without(cell, "seed"), values, end=RunEnd("finished"))

    def searches(self) -> Iterator[RunContent]:
        """The search of each cell under each criterion: its probes in the order of their values, and the point."""
        search = self._study.settings.search
        points = read_table(self.folder, "collapse_points") if isinstance(search, BoundarySearch) else None
        if not isinstance(search, BoundarySearch) or points is None:
            return
        criteria, cells = self._study.settings.collapse, self._study.cells
        finders = read_json(self.folder, "search")["searches"]["finders"]
        asked = [(cell, index) for cell in cells for index in range(len(criteria))]
        for (cell, index), point in zip(asked, points.to_dicts(), strict=True):
            criterion, finder = criteria[index], finders[f"{cell.cell_id}/{index}"]
            lattice = Lattice(search, finder["whole"])
            answers = [(lattice.value(place), collapsed) for place, _, collapsed, _ in finder["answers"]]
            series = {
                step: {"probe_value": value, "probe_collapsed": float(collapsed)}
                for step, (value, collapsed) in enumerate(answers)
                if collapsed is not None
            }
            label = self.overview.cell(cell)
            settings = {"search": search.model_dump(mode="json"), "collapse": criterion.model_dump(mode="json")}
            yield RunContent(
                f"search/{cell.cell_id}/{index}",
                f"{label} ({criterion.words})" if len(criteria) > 1 else label,
                _without(cell, "seed", search.over) | settings,
                series,
                end=RunEnd("finished", results={field.name: point[field.name] for field in fields(CollapsePoint)}),
            )

    @cached_property
    def overview(self) -> "StudyOverview":
        """What the study's own run should hold."""
        # The report's modules are of no use to a sweep that finds nothing to send.
        from fortifai_ray.tracking.overview import StudyOverview

        return StudyOverview(self.folder, self._study, self.study_file)

    @cached_property
    def _study(self) -> Study:
        return load_study(self.folder / "study.yaml")

    def _rows(self, name: str, after: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
        """A table's rows of the chains in ``after``, by chain: those of later generations."""
        of_these = pl.col("chain_id").is_in(list(after))
        table = read_table(self.folder, name, rows=of_these & (pl.col("generation") >= 1 + min(after.values())))
        if table is None:
            return {}
        return table.filter(_later_than(after)).rows_by_key("chain_id", named=True, include_key=True)

    @cached_property
    def _ends(self) -> dict[str, tuple[dict[str, Any], RunEnd]]:
        """Each chain's row in ``chains.parquet`` (the study's first criterion), and how it ended: once the sweep has
        written its verdicts."""
        table = read_table(self.folder, "chains")
        if table is None:
            return {}
        summaries = read_json(self.folder, "summary")["chains"]
        reasons = {one["chain_id"]: one["reason"] for one in summaries if one["status"] == "failed"}
        rows = with_criterion_columns(table).unique("chain_id", keep="first", maintain_order=True).to_dicts()
        return {
            row["chain_id"]: (
                row,
                RunEnd(row["status"], reasons.get(row["chain_id"]), {key: row.get(key) for key in _RESULTS}),
            )
            for row in rows
        }

    def _chain(self, row: Mapping[str, Any]) -> Chain | None:
        """The chain of a row: the grid's, a probe of the search, or a probe's baseline; None for another study's."""
        chain_id, search = row["chain_id"], self._study.settings.search
        if search is None:
            return self._grid.get(chain_id)
        if chain_id not in self._searched:
            values = {key: row[key] for key in searched_keys(self.study_file) if row[key] is not None}
            probes = [self._study.probe(cell, values, row["seed"]) for cell in self._study.cells]
            baselines = [self._study.chain(self._study.baseline_of(probe)) for probe in probes]
            matching = (chain for chain in (*probes, *baselines) if chain.chain_id == chain_id)
            self._searched[chain_id] = next(matching, None)
        return self._searched[chain_id]

    @cached_property
    def _grid(self) -> dict[str, Chain]:
        return {chain.chain_id: chain for chain in self._study.members}


def seed_quantiles(
    generations: pl.DataFrame | pl.LazyFrame, cell_of: Mapping[str, str], metrics: Sequence[str]
) -> Iterator[tuple[str, dict[int, dict[str, float]]]]:
    """Each cell's series by ascending generation: ``{"trace_ratio/mean": …, "trace_ratio/q05": …}``.

    Args:
        generations: a row per chain and generation, with the metrics as columns.
        cell_of: the cell of each chain that counts.
        metrics: those that were never measured are left out.
    """
    cells = pl.LazyFrame(
        {"chain_id": list(cell_of), "_cell": list(cell_of.values())}, dict.fromkeys(("chain_id", "_cell"), pl.String)
    )
    named = cells.with_columns(pl.col("_cell").cast(pl.Categorical))
    rows = generations.lazy().join(named, on="chain_id", maintain_order="left")
    known = generations.lazy().collect_schema().names()
    parts = [collected(rows.select("_cell", "generation").unique())]
    for name in (name for name in metrics if name in known):
        values = collected(rows.select("_cell", "generation", name))
        if values[name].count():
            mean, value = pl.col(name).mean().alias(f"{name}/mean"), pl.col(name)
            quantiles = [value.quantile(q, "linear").alias(f"{name}/{label}") for label, q in _QUANTILES.items()]
            each = (
                own.group_by("_cell", "generation") for _, own in values.group_by("_cell")
            )  # one in memory at a time
            summary = pl.concat([own.agg(mean, *quantiles) for own in each])
            parts.append(
                parts[0]
                .join(summary, on=["_cell", "generation"], how="left", maintain_order="left")
                .drop("_cell", "generation")
            )
    table = pl.concat(parts, how="horizontal")
    for (cell,), own in table.sort("generation").group_by("_cell", maintain_order=True):
        kept = np.unique(np.linspace(0, own.height - 1, min(_STEPS, own.height)).round().astype(int))
        series = {row.pop("generation"): row for row in own.drop("_cell")[kept].to_dicts()}
        yield str(cell), {step: {k: v for k, v in row.items() if v is not None} for step, row in series.items()}


def _later_than(after: Mapping[str, int]) -> pl.Expr:
    """Whether a row is of a later generation than its chain's in ``after``."""
    return pl.col("generation") > pl.col("chain_id").replace_strict(after, default=-1, return_dtype=pl.Int64)


def _metrics(row: Mapping[str, Any], chain: Chain) -> dict[str, float]:
    """A generation's metrics; what was not measured is left out."""
    values = {name: row.get(name) for name in (*chain.metrics, *_SIZES)}
    recorded = {RECORDED_COLLAPSE: 1.0} if row["collapse_reason"] else {}
    return {name: float(value) for name, value in values.items() if value is not None} | recorded


def _text_files(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """The sample texts of a chain, a file for each generation."""
    texts: dict[int, list[str]] = {}
    for row in rows:
        text = f"[{row['row']}] {row['prompt_text']} ▸ {row['generated_text']}"
        texts.setdefault(row["generation"], []).append(text)
    for generation, lines in texts.items():
        yield f"generation_{generation:03d}.txt", "\n\n".join(lines).encode()


def _without(cell: Chain, *keys: str) -> dict[str, Any]:
    """A cell's recipe without some of its dotted keys."""
    recipe: dict[str, Any] = cell.recipe.model_dump(mode="json")
    for dotted in keys:
        *sections, last = dotted.split(".")
        place = recipe
        for section in sections:
            place = place[section]
        del place[last]
    return recipe
