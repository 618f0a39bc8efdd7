"""The hash of what a study's folder says, whichever run said it last.

By it, a run that computed nothing sees that the report and MLflow show all of it already.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from fortifai_ray.errors import UserError
from fortifai_ray.results.schema import read_json

_OF_THE_RUN = ("reused", "computed_seconds")  # columns that tell of the last run, not of the study
_ROWS = 50_000  # that are read at once
_OF_THE_STUDY = ("chains", "versions")  # of the summary: the rest tells of the last run


def fingerprint(folder: Path) -> str:
    """The hash of a study's file, its tables with what they declare, and how its chains ended."""
    digest = hashlib.sha256((folder / "study.yaml").read_bytes())
    for path in sorted((folder / "results").glob("*.parquet")):
        content = hashlib.sha256()
        for table in _slices(path):
            content.update(table.write_ipc(None, compat_level=pl.CompatLevel.oldest()).getbuffer())
        declared = {key: value for key, value in pl.read_parquet_metadata(path).items() if not key.startswith("ARROW")}
        digest.update(_framed(path.name, declared) + content.digest())
    for path in sorted((folder / "results").glob("*.json")):
        if path.name != "summary.json":
            digest.update(_framed(path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    try:
        summary = read_json(folder, "summary")
    except UserError:
        summary = {}
    digest.update(_framed("summary", {name: summary.get(name) for name in _OF_THE_STUDY}))
    return digest.hexdigest()[:32]


def _slices(path: Path) -> Iterator[pl.DataFrame]:
    """A table without what differs from run to run, some rows at a time: one of texts may be larger than the memory."""
    whole = pl.scan_parquet(path, glob=False, use_statistics=False).drop(_OF_THE_RUN, strict=False)
    for start in range(0, max(1, whole.select(pl.len()).collect().item()), _ROWS):
        yield whole.slice(start, _ROWS).collect().rechunk()


def _framed(name: str, value: Any) -> bytes:
    return json.dumps([name, value], sort_keys=True, default=str).encode() + b"\0"
