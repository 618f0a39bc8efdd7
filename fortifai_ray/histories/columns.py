"""A history's columns as the tables need them: each mistake in them is one line that names the option, the value, where
it stands and what would be right."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.histories.source import BESIDE, PLACE, Columns
from fortifai_ray.histories.steps import BROKEN, check_measured, named, stride_of
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


def generations_of(table: pl.DataFrame, asked: Columns, source: str, notes: list[str]) -> pl.DataFrame:
    """``generations.parquet`` of a history: a row per chain and generation, its columns those of a sweep's.

    Rows without any of the metrics are left out, unless they say that the chain collapsed there (``collapse_reason``).
    What was read otherwise than it stands there is added to ``notes``.

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
    used = table.filter(of_use)
    if used.is_empty():
        raise UserError(f"{source}: --metric {asked.metrics[0]}: has no value in any row")
    if used.height < table.height:
        rows, first = counted(table.height - used.height, "row"), table.filter(~of_use)[PLACE][0]
        notes.append(
            f"{rows} without a value of {' or '.join(asked.metrics)} left out (the first is {first}); {BROKEN}"
        )
    table = used.with_columns(
        _whole_numbers(used, asked.step, "--step", source).alias("generation"),
        _seeds(used, asked.seed, source, notes).alias("seed"),
        *(_label(used, name, source) for name in asked.by),
    )
    for name in asked.by:
        _check_nulls(table, name, asked, source)
    if asked.first_step:
        table = _from_first_step(table, asked, source)
        notes.append(f"{asked.step} {asked.first_step} is generation 0")
    if (stride := stride_of(table["generation"])) > 1:
        begin = f"{asked.first_step} + " if asked.first_step else ""
        notes.append(f"{asked.step} counts in strides of {stride}: generation n is {asked.step} {begin}{stride}·n")
        table = table.with_columns(pl.col("generation") // stride)
    _check_chains(table, asked, source, f", counted in strides of {stride}" * (stride > 1))
    check_measured(table, asked, source, notes)
    return _as_a_sweep_has_it(table, asked)


def _from_first_step(table: pl.DataFrame, asked: Columns, source: str) -> pl.DataFrame:
    """The table with its generations counted from the first step."""
    early = _first(table["generation"] < asked.first_step)
    if early is not None:
        raise UserError(
            f"{source}: --first-step {asked.first_step}: {table[PLACE][early]} is before it, at {asked.step} "
            f"{table['generation'][early]}; give the step that is generation 0"
        )
    return table.with_columns(pl.col("generation") - asked.first_step)


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
    """A column as numbers; null stays null. A metric may be NaN or infinite: its model is broken there."""
    at, column = f"{source}: {option} {name}", table[name]
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null)):
        raise UserError(f"{at}: numbers are needed, and the column holds {_kind(column.dtype)}")
    values = column.cast(pl.Float64, strict=False)
    endless = ~values.is_finite() & (option != "--metric")
    for wrong, needed in ((values.is_null() & column.is_not_null(), "number"), (endless, "finite number")):
        if (row := _first(wrong)) is not None:
            given = f"{column[row]!r}" if needed == "number" else f"{values[row]}"
            advice = f"; {BROKEN}" if option == "--metric" else ""
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


def _seeds(table: pl.DataFrame, name: str, source: str, notes: list[str]) -> pl.Series:
    """The seeds: whole numbers. Texts that are no numbers get one: what each ends in if that tells them apart
    (``seed_3``), or else their place in the order of the alphabet."""
    texts = table[name].unique().drop_nulls().sort()
    if table[name].dtype != pl.String or texts.cast(pl.Float64, strict=False).is_not_null().any() or texts.is_empty():
        return _whole_numbers(table, name, "--seed", source)
    if (row := _first(table[name].is_null())) is not None:
        raise UserError(f"{source}: --seed {name}: has no value in {table[PLACE][row]}")
    numbers = texts.str.extract(r"(\d{1,15})$").cast(pl.Int64)
    if numbers.null_count() or numbers.n_unique() < len(texts):
        numbers = pl.int_range(len(texts), eager=True)
    told = [f"{text} is {number}" for text, number in zip(texts[:_MOST_SHOWN], numbers[:_MOST_SHOWN], strict=True)]
    notes.append(f"{name} is numbered: {', '.join(told)}{', …' * (len(texts) > _MOST_SHOWN)}")
    return table[name].replace_strict(texts, numbers, return_dtype=pl.Int64)


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
    beside = f" with {named(row, others)}" if others else ""
    raise UserError(
        f"{source}: --by {name}: has no value in {row[PLACE]}, though other rows{beside} have one; give it one there"
    )


def _check_chains(table: pl.DataFrame, asked: Columns, source: str, strides: str) -> None:
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
            f"{named({**row, asked.seed: row['seed']}, names)}: a row per chain and generation is needed; is a column "
            "missing in --by?"
        )
    chains = table.group_by(keys, maintain_order=True).agg(pl.col("generation").sort(), ended=_ended(table))
    steps = pl.col("generation")
    for wrong, said in (
        (
            steps.list.first() > 0,
            "begins at {first}, and a chain begins at generation 0: give that step as --first-step if it is one, or "
            "give the column that counts generations as --step",
        ),
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
                f"{source}: --step {asked.step}: {named({**row, asked.seed: row['seed']}, names)} {what}{strides}{many}"
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


def paired(
    generations: pl.DataFrame, baseline: PlainBaseline, asked: Columns, at: str, notes: list[str]
) -> pl.DataFrame:
    """The generations of the chains that have a baseline chain of their seed; ``notes`` name the others.

    Raises:
        UserError: beginning with ``at``: no chain of a cell has one.
    """
    chains = generations.unique("chain_id", maintain_order=True)
    pairs = pair_with_baseline(chains, [*asked.by, "seed"], baseline)
    alone = chains.join(pairs.filter(pl.col("baseline_chain_id").is_null()), on="chain_id", how="semi")
    if alone.is_empty():
        return generations
    left = chains.join(alone, on="chain_id", how="anti")
    lost = alone.join(left, on=asked.by, how="anti", nulls_equal=True)
    row = (alone if lost.is_empty() else lost).sort(*asked.by, "seed").row(0, named=True)
    chain = named({**row, asked.seed: row["seed"]}, [*asked.by, asked.seed])
    if lost.is_empty():
        more = f" (and so {counted(alone.height - 1, 'more chain')})" if alone.height > 1 else ""
        notes.append(f"{chain}: left out, for there is no baseline chain of the same seed{more}")
        return generations.join(alone, on="chain_id", how="anti")
    more = f" (and {counted(lost.height - 1, 'more chain')})" if lost.height > 1 else ""
    labels = pl.all_horizontal(pl.col(key).eq_missing(pl.lit(value)) for key, value in baseline.items())
    there = chains.filter(labels & (pl.col("seed") == row["seed"]))
    others = [name for name in asked.by if name not in baseline]
    differ = [name for name in others if row[name] not in there[name].to_list()] if not there.is_empty() else []
    if differ:
        known = ", ".join(sorted({f"{name}={value}" for name in differ for value in there[name].to_list()}))
        why = f"; those have {known} (leave {' and '.join(differ)} empty there if it says nothing of the baseline)"
    else:
        why = "; add it, or leave that chain out"
    raise UserError(f"{at}: {chain} has no baseline chain of the same seed and the other columns of --by{more}{why}")
