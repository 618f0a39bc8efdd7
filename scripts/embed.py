"""Write a small copy of a study's results, to ship with the notebooks: ``python scripts/embed.py FROM TO``.

The verdicts (``chains``, ``fidelity``) are copied unchanged. Of the generations, every row is kept, but only the
columns that distinguish chains and the metrics named, as single-precision numbers with five digits. Sample texts and
pictures are kept for the lowest seed only, and the decoded latent vectors of image models are added.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.results.reader import StudyResults
from fortifai_ray.results.schema import RECIPE_COLUMNS, read_table, write_table

sys.path.append(str(Path(__file__).resolve().parent.parent / "analysis"))  # where the notebooks have theirs
from support.opening import open_folder
from support.samples import LATENTS, latent_table

_KEPT = ("chain_id", "generation", "seed", *RECIPE_COLUMNS)
_BESIDE = ("unit", "synthetic_size_cum", "collapse_reason")
_DIGITS = 5
_WHOLE = ("chains", "fidelity", "collapse_points")


def embed(source: Path, target: Path, metrics: Sequence[str], texts: int) -> None:
    """Write a small copy of ``source`` (``STORAGE/NAME``) into ``target``, which is emptied first.

    Args:
        source: the study's folder.
        target: the folder to write.
        metrics: the columns of ``generations`` to keep.
        texts: how many sample texts of each generation to keep.

    Raises:
        UserError: ``source`` is no study, or does not have one of the metrics.
    """
    results = open_folder(source)
    table = results.generations
    if missing := [name for name in metrics if name not in table.columns]:
        raise UserError(f"{source}: no metric {', '.join(missing)} was measured")
    shutil.rmtree(target, ignore_errors=True)
    (target / "results").mkdir(parents=True)
    shutil.copy(source / "study.yaml", target / "study.yaml")
    for name in _WHOLE:
        if (whole := results.table(name)) is not None:
            write_table(target, name, whole)
    shutil.copy(source / "results" / "summary.json", target / "results" / "summary.json")
    keys = [key for key in results.cells.keys if key not in _KEPT]
    columns = [name for name in (*_KEPT, *keys, *_BESIDE) if name in table.columns]
    numbers = [pl.col(name).round_sig_figs(_DIGITS).cast(pl.Float32) for name in metrics]
    write_table(target, "generations", table.select(*columns, *numbers))
    chains = table.filter(pl.col("seed") == pl.col("seed").min())["chain_id"].unique().to_list()
    _write_samples(results, chains, texts, target)
    if (pictures := read_table(source, "pictures", rows=pl.col("chain_id").is_in(chains))) is not None:
        write_table(target, "pictures", pictures)
        write_table(target, LATENTS, latent_table(results, chains))


def _write_samples(results: StudyResults, chains: Sequence[str], texts: int, target: Path) -> None:
    if results.samples is not None and not results.samples.is_empty():
        rows = results.samples.filter(pl.col("chain_id").is_in(list(chains)))
        first = pl.col("row").rank("dense").over("chain_id", "generation") <= texts
        write_table(target, "samples", rows.filter(first))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python scripts/embed.py", description=__doc__)
    parser.add_argument("source", type=Path, help="a study's folder, STORAGE/NAME")
    parser.add_argument("target", type=Path, help="the folder to write, which is emptied first")
    parser.add_argument("--metrics", nargs="+", required=True, help="the columns of the generations to keep")
    parser.add_argument("--texts", type=int, default=4, help="sample texts to keep of each generation")
    given = parser.parse_args()
    try:
        embed(given.source, given.target, given.metrics, given.texts)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
