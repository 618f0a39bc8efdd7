"""Tables that grow while a sweep runs: what a killed sweep leaves, what a row costs, and what is whole in the end."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from fortifai_ray.results import schema
from fortifai_ray.results.writer import GrowingTable

COLUMNS = {"chain_id": pl.String, "generation": pl.Int64, "details": pl.String}


def row(generation: int, details: str = "", chain_id: str = "a") -> dict[str, Any]:
    return {"chain_id": chain_id, "generation": generation, "details": details or str(generation)}


def growing(folder: Path, **options: Any) -> GrowingTable:
    return GrowingTable(folder, "details", COLUMNS, **options)


def read(folder: Path) -> list[int] | None:
    table = schema.read_table(folder, "details")
    return None if table is None else sorted(table["generation"].to_list())


def test_rows_are_read_as_soon_as_they_are_flushed(tmp_path: Path) -> None:
    """The rows of a sweep that is killed now, part files included; once it is closed there are none of these."""
    table = growing(tmp_path)
    table.append([row(0)])
    assert read(tmp_path) is None
    table.flush()
    table.append([row(1)])
    assert read(tmp_path) == [0]
    assert table.flush()
    assert not table.flush()
    table.extend(pl.DataFrame([row(2)], schema=COLUMNS))
    table.flush()
    assert read(tmp_path) == [0, 1, 2]
    assert schema.part_paths(tmp_path, "details")
    whole = table.close()
    assert whole is not None
    assert whole["generation"].to_list() == [0, 1, 2]
    assert schema.part_paths(tmp_path, "details") == []
    assert_frame_equal(whole, pl.read_parquet(schema.table_path(tmp_path, "details")))


def test_a_row_costs_the_same_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 500 flushes there are at most log₂ 500 part files, and each row is written as often at most; the table itself
    is written when it begins and when it ends."""
    written = {"write_part": 0, "write_table": 0}

    def counted(name: str) -> None:
        write = getattr(schema, name)

        def count(*arguments: Any) -> Path:
            written[name] += next(value for value in arguments if isinstance(value, pl.DataFrame)).height
            return write(*arguments)

        monkeypatch.setattr(schema, name, count)

    for name in written:
        counted(name)
    table, parts = growing(tmp_path), 0
    table.flush()
    for generation in range(500):
        table.append([row(generation)])
        table.flush()
        parts = max(parts, len(schema.part_paths(tmp_path, "details")))
    assert parts <= 9
    assert written["write_part"] <= 9 * 500
    table.close()
    assert written["write_table"] == 500
    assert read(tmp_path) == list(range(500))


def test_a_later_row_replaces_an_earlier_one(tmp_path: Path) -> None:
    """Whether both come in one flush, in two, or in the table and a part file: a trial that is started again repeats
    its generations."""
    table = growing(tmp_path)
    table.append([row(0, "first"), row(0, "second")])
    table.flush()
    table.append([row(1, "first"), row(0, "third")])
    table.flush()
    table.append([row(1, "second")])
    table.flush()
    held = schema.read_table(tmp_path, "details")
    assert held is not None
    assert held.sort("generation")["details"].to_list() == ["third", "second"]
    whole = table.close()
    assert whole is not None
    assert whole["details"].to_list() == ["third", "second"]


def test_a_sweep_begins_its_tables_anew(tmp_path: Path) -> None:
    """What an earlier sweep left, killed or not, is gone with the first write, and there until then."""
    killed = growing(tmp_path, optional=True)
    killed.append([row(0), row(1)])
    killed.flush()
    killed.append([row(2)])
    killed.flush()
    again = growing(tmp_path, optional=True)
    again.append([row(0)])
    assert read(tmp_path) == [0, 1, 2]
    again.flush()
    assert read(tmp_path) == [0]
    empty = growing(tmp_path, optional=True)
    empty.flush()
    assert read(tmp_path) is None, "a table that this study does not have"
    assert empty.close() is None


def test_rows_that_a_full_disk_refused_are_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is lost, none is twice; at the beginning and in the middle."""

    def full(*arguments: Any) -> Path:
        raise OSError(28, "No space left on device")

    table = growing(tmp_path)
    for generation, name in enumerate(("write_table", "write_part", "write_part")):
        table.append([row(generation)])
        with monkeypatch.context() as patched:
            patched.setattr(schema, name, full)
            with pytest.raises(OSError, match="No space left"):
                table.flush()
        table.flush()
    assert read(tmp_path) == [0, 1, 2]
    whole = table.close()
    assert whole is not None
    assert whole["generation"].to_list() == [0, 1, 2]


def test_a_driver_that_dies_between_two_writes_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part files that are merged, or are in the table already, and were not removed any more do no harm."""
    table = growing(tmp_path)
    table.flush()
    monkeypatch.setattr(schema, "remove_parts", lambda *arguments: None)
    for generation in range(4):
        table.append([row(generation)])
        table.flush()
    assert read(tmp_path) == [0, 1, 2, 3]
    table.close()
    assert schema.part_paths(tmp_path, "details")
    assert read(tmp_path) == [0, 1, 2, 3]


def test_chains_come_in_the_order_of_the_grid(tmp_path: Path) -> None:
    """However their generations came in."""
    table = growing(tmp_path)
    for one in (row(1, chain_id="b"), row(0, chain_id="a"), row(0, chain_id="b")):
        table.append([one])
        table.flush()
    whole = table.close(pl.DataFrame({"chain_id": ["b", "a"], "place": [0, 1]}))
    assert whole is not None
    assert whole.select("chain_id", "generation").rows() == [("b", 0), ("b", 1), ("a", 0)]
    assert whole.columns == list(COLUMNS)
