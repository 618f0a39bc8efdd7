"""A history's columns as the tables need them: each mistake in them is one line that names the option, the value, where
it stands and what would be right."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.histories.source import BESIDE, PLACE, Columns
from fortifai_ray.results.schema import RECIPE_COLUMNS, generations_schema
from fortifai_ray.results.words import counted
from fortifai_ray.statistics.criterion import CollapseCriterion
from fortifai_ray.statistics.judged import Terms
from fortifai_ray.statistics.ratios import PlainBaseline, pair_with_baseline
from fortifai_ray.storage.stage import canonical_hash
from fortifai_ray.validation import hint

_MOST_SHOWN = 5  # steps of a chain that a message lists
_NONE = ("none", "null", "nan", "na", "n/a", "-")  # labels that say there is none
_WHOLE = 1e-9  # how far a float may lie from a whole number that was meant


def generations_of(table: pl.DataFrame, asked: Columns, source: str) -> pl.DataFrame:
    """``generations.parquet`` of a history: a row per chain and generation, its columns those of a sweep's.

    Rows without any of the metrics are left out, unless they say that the chain collapsed there (``collapse_reason``).

    Raises:
        UserError: a column is missing or does not hold what its role asks for, or the rows do not make whole chains.
    """
    _check_names(table, asked, source)
    metrics = [_numbers(table, name, "--metric", source) for name in asked.metrics]
    beside = [_beside(table, name, source) for name in BESIDE if name in table.columns and name not in asked.labels]
    table = table.select(PLACE, *dict.fromkeys([asked.step, *asked.labels])).with_columns(*metrics, *beside)
    of_use = pl.any_horizontal(pl.col(name).is_not_null() for name in asked.metrics)
    if "collapse_reason" in table.columns:
        of_use |= pl.col("collapse_reason").is_not_null()
    table = table.filter(of_use)
    if table.is_empty():
        raise UserError(f"{source}: --metric {asked.metrics[0]}: has no value in any row")
    table = table.with_columns(
        _whole_numbers(table, asked.step, "--step", source).alias("generation"),
        _whole_numbers(table, asked.seed, "--seed", source).alias("seed"),
        *(_label(table, name, source) for name in asked.by),
    )
    for name in asked.by:
        _check_nulls(table, name, asked, source)
    _check_chains(table, asked, source)
    return _as_a_sweep_has_it(table, asked)


def _check_names(table: pl.DataFrame, asked: Columns, source: str) -> None:
    known = [name for name in table.columns if name != PLACE]
    roles = [*(("--metric", name) for name in asked.metrics), ("--step", asked.step)]
    roles += [*(("--by", name) for name in asked.by), ("--seed", asked.seed)]
    seen = dict[str, str]()
    for role, name in roles:
        if name in seen:
            twice = "twice" if seen[name] == role else f"and for {seen[name]}, too"
            raise UserError(f"{source}: {role} {name}: is given {twice}; each column has one part")
        seen[name] = role
        if name not in known:
            raise UserError(f"{source}: {role} {name}: no such column{hint(name, known)}")
    taken = {"--metric": _taken_of_generations(), "--by": _taken()}
    for role, name in roles:
        if name in taken.get(role, ()):
            raise UserError(f"{source}: {role} {name}: the result tables have a column of that name; rename it")


def _taken_of_generations() -> set[str]:
    return {*generations_schema((), ()), *RECIPE_COLUMNS}


def _taken() -> set[str]:
    """The columns that the tables of any history have; keys of a recipe may be labels."""
    criterion = CollapseCriterion(metric="m", threshold=1.0, direction="above", relative_to="absolute")
    sample = {"chain_id": ["a"], "generation": [0], "seed": [0], "m": [0.0], "synthetic_size_cum": [0]}
    terms = Terms([criterion], {}, ["seed"], 1)
    chains = terms.chains(pl.DataFrame(sample))
    tables = {*chains.columns, *terms.fidelity(chains).columns, *generations_schema((), ())}
    return ({*tables, "cell"} - {*RECIPE_COLUMNS}) | {"seed", "generation"}


def _numbers(table: pl.DataFrame, name: str, option: str, source: str) -> pl.Series:
    """A column as finite numbers; null stays null."""
    at, column = f"{source}: {option} {name}", table[name]
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null)):
        raise UserError(f"{at}: numbers are needed, and the column holds {_kind(column.dtype)}")
    values = column.cast(pl.Float64, strict=False)
    for wrong, needed in ((values.is_null() & column.is_not_null(), "number"), (~values.is_finite(), "finite number")):
        if (row := _first(wrong)) is not None:
            given = f"{column[row]!r}" if needed == "number" else f"{values[row]}"
            advice = ""
            if needed != "number" and option == "--metric":
                advice = "; where a run broke down, write a number beyond the limit, or leave the row out"
            raise UserError(f"{at}: a {needed} is needed, not {given} ({table[PLACE][row]}){advice}")
    return values.alias(name)


def _kind(dtype: pl.DataType) -> str:
    return {pl.Boolean: "truth values", pl.Date: "dates"}.get(type(dtype), str(dtype).lower())


def _whole_numbers(table: pl.DataFrame, name: str, option: str, source: str) -> pl.Series:
    at, values = f"{source}: {option} {name}", _numbers(table, name, option, source)
    if (row := _first(values.is_null())) is not None:
        raise UserError(f"{at}: has no value in {table[PLACE][row]}")
    least = 0 if option == "--step" else -(2**62)
    wrong = ((values - values.round()).abs() > _WHOLE) | (values < least) | (values.abs() > 2**53)
    if (row := _first(wrong)) is not None:
        what = "generations are counted 0, 1, 2, …" if option == "--step" else "a seed is a whole number"
        raise UserError(f"{at}: {what}, and {table[PLACE][row]} has {values[row]:g}")
    return values.round().cast(pl.Int64)


def _first(wrong: pl.Series) -> int | None:
    return wrong.fill_null(False).arg_max() if wrong.any() else None


def _beside(table: pl.DataFrame, name: str, source: str) -> pl.Series:
    if BESIDE[name] == pl.Int64:
        return _numbers(table, name, "column", source).cast(pl.Int64, strict=False)
    return table[name].cast(pl.String, strict=False)


def _label(table: pl.DataFrame, name: str, source: str) -> pl.Series:
    """A column that tells cells apart: numbers where all its values are, else text; truth values stay so."""
    column = table[name]
    if column.dtype.is_float():
        column = column.fill_nan(None)
        return column if column.dtype == pl.Float64 else column.cast(pl.Float64)
    if column.dtype.is_integer() or column.dtype == pl.Boolean:
        return column
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        raise UserError(f"{source}: --by {name}: a number or a text is needed, and the column holds {column.dtype}")
    text = column.cast(pl.String).replace("", None)
    numbers = text.cast(pl.Float64, strict=False)
    if (numbers.is_null().any() and (numbers.is_null() & text.is_not_null()).any()) or not numbers.is_finite().any():
        return text
    whole = text.cast(pl.Int64, strict=False)
    return numbers if (whole.is_null() & text.is_not_null()).any() else whole


def _check_nulls(table: pl.DataFrame, name: str, asked: Columns, source: str) -> None:
    """A label may be missing where the others say why (cross entropy has no γ), and then in every such row."""
    if table[name].null_count() == 0:
        return
    others = [other for other in asked.by if other != name]
    missing = pl.col(name).is_null()
    both = missing.any() & (~missing).any()
    mixed = table.filter(missing & (both.over(others) if others else both))
    if mixed.is_empty() and table[name].null_count() < table.height:
        return
    if mixed.is_empty():
        raise UserError(f"{source}: --by {name}: has no value in any row")
    row = mixed.row(0, named=True)
    beside = f" with {_named(row, others)}" if others else ""
    raise UserError(
        f"{source}: --by {name}: has no value in {row[PLACE]}, though other rows{beside} have one; give it one there"
    )


def _named(row: dict[str, Any], names: Sequence[str]) -> str:
    return " ".join(f"{name}={row[name]}" for name in names if row[name] is not None)


def _check_chains(table: pl.DataFrame, asked: Columns, source: str) -> None:
    """Each chain has its generations once, from 0 on, without a gap, and more than one of them."""
    keys = [*asked.by, "seed"]
    names = [*asked.by, asked.seed]
    twice = (
        table.group_by(*keys, "generation", maintain_order=True).agg(pl.col(PLACE)).filter(pl.col(PLACE).list.len() > 1)
    )
    if not twice.is_empty():
        row = twice.row(0, named=True)
        raise UserError(
            f"{source}: {row[PLACE][0]} and {row[PLACE][1]} are both generation {row['generation']} of "
            f"{_named({**row, asked.seed: row['seed']}, names)}: a row per chain and generation is needed; is a column "
            "missing in --by?"
        )
    chains = table.group_by(keys, maintain_order=True).agg(pl.col("generation").sort(), ended=_ended(table))
    steps = pl.col("generation")
    for wrong, said in (
        (steps.list.first() > 0, "begins at {first}, and a chain begins at generation 0: number its steps from there"),
        (steps.list.last() >= steps.list.len(), "has the steps {steps}, not each whole number from 0 to {last}"),
        ((steps.list.len() == 1) & ~pl.col("ended"), "has generation 0 alone, after which there is nothing to see"),
    ):
        bad = chains.filter(wrong)
        if not bad.is_empty():
            row = bad.row(0, named=True)
            given = row["generation"]
            shown = ", ".join(map(str, given[:_MOST_SHOWN])) + ", …" * (len(given) > _MOST_SHOWN)
            many = f" (and {counted(bad.height - 1, 'more chain')})" if bad.height > 1 else ""
            what = said.format(first=given[0], last=given[-1], steps=_around_the_gap(given) or shown)
            raise UserError(
                f"{source}: --step {asked.step}: {_named({**row, asked.seed: row['seed']}, names)} {what}{many}"
            )


def _around_the_gap(steps: Sequence[int]) -> str:
    """``…, 2, 4, …``: the steps beside the first that is missing."""
    gap = next((place for place, step in enumerate(steps) if step != place), None)
    if gap is None or gap == 0:
        return ""
    return "…, " * (gap > 1) + f"{steps[gap - 1]}, {steps[gap]}" + ", …" * (gap + 1 < len(steps))


def _ended(table: pl.DataFrame) -> pl.Expr:
    said = [pl.col(name).is_not_null().any() for name in ("ended", "collapse_reason") if name in table.columns]
    return pl.any_horizontal(pl.lit(False), *said)


def _as_a_sweep_has_it(table: pl.DataFrame, asked: Columns) -> pl.DataFrame:
    keys = [*asked.by, "seed"]
    chains = table.select(keys).unique(maintain_order=True)
    ids = [canonical_hash(["history", row]) for row in chains.iter_rows(named=True)]
    table = table.join(chains.with_columns(chain_id=pl.Series(ids)), on=keys, how="left", nulls_equal=True)
    schema = generations_schema(keys, asked.metrics)
    table = table.with_columns(
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in schema.items() if name not in table.columns
    )
    return table.select(list(schema)).sort(*keys, "generation")


def baseline_of(texts: Sequence[str], generations: pl.DataFrame, asked: Columns, source: str) -> dict[str, Any]:
    """The labels of the baseline's chains, from ``COLUMN=VALUE``, and those that say of all of them that they have none
    (null, ``none``): what a baseline has not, a chain need not share with it.

    Raises:
        UserError: a column is no label, a value does not occur, or no chain has all of them.
    """
    baseline = dict[str, Any]()
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--baseline {text}: COLUMN=VALUE is needed, e.g. {asked.by[0]}=…")
        if name not in asked.by:
            raise UserError(f"{source}: --baseline {text}: {name} is not among --by{hint(name, asked.by)}")
        baseline[name] = _value(text, value, generations[name], source)
    chosen = generations.filter(pl.all_horizontal(pl.col(k).eq_missing(pl.lit(v)) for k, v in baseline.items()))
    if chosen.is_empty():
        raise UserError(f"{source}: --baseline {' '.join(texts)}: no chain has all of these values together")
    for name in (name for name in asked.by if name not in baseline):
        values = chosen[name].unique().to_list()
        if len(values) == 1 and (values[0] is None or str(values[0]).casefold() in _NONE):
            baseline[name] = values[0]
    return baseline


def _value(text: str, value: str, column: pl.Series, source: str) -> Any:
    """The value of a column that a text means."""
    known = column.drop_nulls().unique().sort().to_list()
    shown = [str(one).lower() if isinstance(one, bool) else str(one) for one in known]
    for one, as_text in zip(known, shown, strict=True):
        if value == as_text or (column.dtype == pl.Boolean and value.casefold() == as_text):
            return one
        if column.dtype.is_numeric() and _number(value) == one:
            return one
    near = hint(value, shown) if column.dtype == pl.String else f" (known: {', '.join(shown)})"
    raise UserError(f"{source}: --baseline {text}: no row has that{near}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def check_pairs(chains: pl.DataFrame, baseline: PlainBaseline, asked: Columns, at: str) -> None:
    """Raise :class:`UserError`, beginning with ``at``, for a chain without a baseline chain of its seed."""
    pairs = pair_with_baseline(chains, [*asked.by, "seed"], baseline)
    alone = chains.join(pairs.filter(pl.col("baseline_chain_id").is_null()), on="chain_id", how="semi")
    if alone.is_empty():
        return
    row = alone.sort(*asked.by, "seed").row(0, named=True)
    more = f" (and {counted(alone.height - 1, 'more chain')})" if alone.height > 1 else ""
    labels = pl.all_horizontal(pl.col(key).eq_missing(pl.lit(value)) for key, value in baseline.items())
    there = chains.filter(labels & (pl.col("seed") == row["seed"]))
    others = [name for name in asked.by if name not in baseline]
    differ = [name for name in others if row[name] not in there[name].to_list()] if not there.is_empty() else []
    if differ:
        known = ", ".join(sorted({f"{name}={value}" for name in differ for value in there[name].to_list()}))
        why = f"; those have {known} (leave {' and '.join(differ)} empty there if it says nothing of the baseline)"
    else:
        why = "; add it, or leave that chain out"
    raise UserError(
        f"{at}: {_named({**row, asked.seed: row['seed']}, [*asked.by, asked.seed])} has no baseline chain of the same "
        f"seed and the other columns of --by{more}{why}"
    )
