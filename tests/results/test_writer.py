"""Tables that grow while a sweep runs: what a killed sweep leaves, what a row costs, and what is whole in the end."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from fortifai_ray.results import schema, writer
from fortifai_ray.results.writer import GrowingTable

COLUMNS = {"chain_id": pl.String, "generation": pl.Int64, "details": pl.String}


def row(generation: int, details: str = "", chain_id: str = "a") -> dict[str, Any]:
    return {"chain_id": chain_id, "generation": generation, "details": details or str(generation)}


def growing(folder: Path, **options: Any) -> GrowingTable:
    return GrowingTable(folder, "details", COLUMNS, **options)


def read(folder: Path) -> list[int] | None:
    table = schema.read_table(folder, "details")
    return None if table is None else sorted(table["generation"].to_list())


def closed(table: GrowingTable, order: pl.DataFrame | None = None) -> pl.DataFrame:
    """The file that a table is in the end."""
    table.close(order)
    return pl.read_parquet(schema.table_path(table._folder, "details"))


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
    whole = closed(table)
    assert whole["generation"].to_list() == [0, 1, 2]
    assert schema.part_paths(tmp_path, "details") == []
    assert whole.columns == list(COLUMNS)


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
    assert written["write_table"] == 0, "its end is no growing of it"
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
    whole = closed(table)
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
    empty.close()
    assert read(tmp_path) is None


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
    whole = closed(table)
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
    whole = closed(table, pl.DataFrame({"chain_id": ["b", "a"], "place": [0, 1]}))
    assert whole.select("chain_id", "generation").rows() == [("b", 0), ("b", 1), ("a", 0)]
    assert whole.columns == list(COLUMNS)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> int:
    """Tables that keep a kilobyte in memory."""
    monkeypatch.setattr(writer, "_SLICE", 1000)
    return 1000


SHUFFLED = [row(number % 4, "x" * 100 + str(number), f"chain-{7 * number % 30:02d}") for number in range(120)]
ORDER = pl.DataFrame({"chain_id": [f"chain-{9 * number % 31:02d}" for number in range(30)], "place": range(30)})


@pytest.mark.parametrize("order", [None, ORDER])
@pytest.mark.parametrize("flush_every", [1, 7, 1000])
def test_a_table_beyond_memory_is_the_same_table(
    tmp_path: Path, small_slices: int, flush_every: int, order: pl.DataFrame | None
) -> None:
    """Whatever is flushed when: no part file is merged into a large one, a slice of the end's table holds whole chains,
    and rows that are replaced are."""
    table = growing(tmp_path)
    for number, one in enumerate([*SHUFFLED[:60], *SHUFFLED[:7], *SHUFFLED[60:]]):
        table.append([one])
        if number % flush_every == flush_every - 1:
            table.flush()
    sizes = [pl.read_parquet(path).estimated_size() for path in schema.part_paths(tmp_path, "details")]
    assert all(size <= 1.5 * small_slices for size in sizes)
    whole = closed(table, order)
    by = ["chain_id", "generation"] if order is None else ["place", "generation"]
    expected = pl.DataFrame(SHUFFLED, schema=COLUMNS).unique(
        ["chain_id", "generation"], keep="last", maintain_order=True
    )
    if order is not None:
        expected = expected.join(order, on="chain_id", how="left")
    assert_frame_equal(whole, expected.sort(by).select(list(COLUMNS)))
    assert [path.name for path in (tmp_path / "results").rglob("*") if path.is_file()] == ["details.parquet"]
    metadata = pl.read_parquet_metadata(schema.table_path(tmp_path, "details"))
    assert metadata["fortifai.table_version"] == str(schema.VERSION)


def test_what_is_beyond_memory_is_not_shown_before_the_first_flush(tmp_path: Path, small_slices: int) -> None:
    """A replay of thousands of chains leaves the tables of the last sweep until it is done; what a killed one has put
    aside is removed."""
    before = growing(tmp_path)
    before.append([row(0)])
    before.flush()
    killed = growing(tmp_path)
    killed.append(SHUFFLED)
    again = growing(tmp_path)
    assert not list((tmp_path / "results" / "parts").iterdir())
    for one in SHUFFLED:
        again.append([one])
    assert read(tmp_path) == [0]
    assert again._pending <= small_slices
    again.flush()
    held = read(tmp_path)
    assert held is not None
    assert len(held) == pl.DataFrame(SHUFFLED).select("chain_id", "generation").n_unique()


def test_a_full_disk_does_not_stop_what_comes_before_a_flush(
    tmp_path: Path, small_slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that cannot be put aside stay in memory; the flush says so."""

    def full(*arguments: Any) -> Path:
        raise OSError(28, "No space left on device")

    table = growing(tmp_path)
    with monkeypatch.context() as patched:
        for name in ("write_part", "write_table"):
            patched.setattr(schema, name, full)
        table.append(SHUFFLED)
        with pytest.raises(OSError, match="No space left"):
            table.flush()
    whole = closed(table)
    assert whole.height == pl.DataFrame(SHUFFLED).select("chain_id", "generation").n_unique()
