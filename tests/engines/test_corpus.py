"""A corpus is complete, in order, and the same whatever wrote it; and nobody waits for one in silence."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.helpers import ENGINE, SAMPLED, ask, make_prompts, needs_vllm
from fortifai_ray.engines.corpus import CORPUS, PROMPTS, Request, split_calls, union_seconds
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.engines.pool import EnginePool
from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.sweep import ray_executor
from fortifai_ray.sweep.ray_executor import RayExecutor


def prompts_table(rows: int) -> pa.Table:
    return pa.table([range(rows), range(100, 100 + rows), make_prompts(rows, 8)], schema=PROMPTS)


@given(rows=st.integers(1, 300), rows_per_call=st.integers(1, 64))
def test_calls_are_equal_and_cover_every_row_once(rows: int, rows_per_call: int) -> None:
    """Protects the fixed rule by which rows go to engines."""
    table = pa.table([range(rows)[::-1], range(rows), [[1]] * rows], schema=PROMPTS)
    calls = split_calls(table, rows_per_call)
    assert len(calls) == -(-rows // rows_per_call)
    sizes = [call.num_rows for call in calls]
    assert max(sizes) <= rows_per_call
    assert max(sizes) - min(sizes) <= 1
    assert pa.concat_tables(calls)["row"].to_pylist() == list(range(rows))


def test_union_seconds_counts_overlap_once() -> None:
    """Protects ``generate_seconds``: two engines at work for a second took a second."""
    assert union_seconds([(0, 2), (1, 3), (5, 6), (5.5, 5.75)]) == 4
    assert union_seconds([]) == 0


@pytest.mark.ray
@needs_vllm
@pytest.mark.parametrize("at_once", [2, 3], ids=["through Ray Data", "from the caller's process"])
def test_a_corpus_holds_every_row_in_order(
    pool: EnginePool, checkpoints: dict[str, Path], tmp_path: Path, at_once: int
) -> None:
    """Protects the corpus contract: columns, rows, versions, part names; and what the report says of it."""
    prompts = prompts_table(50)  # three calls of ENGINE.rows_per_call at most
    report = RayExecutor(pool=pool, engines_at_once=at_once).write(
        Request(checkpoints["tied0"], "tied0", SAMPLED, ENGINE), prompts, tmp_path / "corpus"
    )
    parts = sorted(path.name for path in (tmp_path / "corpus").iterdir())
    assert parts == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    written = pa.concat_tables(pq.ParquetFile(tmp_path / "corpus" / part).read() for part in parts)
    assert written.schema.names == CORPUS.names
    assert written.select(PROMPTS.names).cast(PROMPTS).equals(prompts)
    assert set(written["weights_version"].to_pylist()) == {"tied0"}
    assert {len(ids) for ids in written["generated_ids"].to_pylist()} == {SAMPLED.max_new_tokens}
    assert (report.rows, report.generated_tokens, report.calls) == (50, 50 * SAMPLED.max_new_tokens, 3)
    assert report.seconds > 0
    first = split_calls(prompts, ENGINE.rows_per_call)[0]
    alone = ask(
        pool, checkpoints["tied0"], first["prompt_ids"].to_pylist(), SAMPLED, first["seed"].to_pylist()
    ).generated_ids
    assert written["generated_ids"].to_pylist()[: first.num_rows] == alone.to_pylist()


@pytest.mark.ray
@needs_vllm
def test_a_trial_that_left_no_cpu_free_generates(
    pool: EnginePool, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Protects against the silent hang: the caller's placement group holds every CPU that the engine left."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    request, prompts = Request(checkpoints["tied1"], "tied1", SAMPLED, ENGINE), prompts_table(30)
    out = tmp_path / "corpus"

    @ray.remote
    def trial() -> int:
        executor = RayExecutor(pool=pool)  # one of two calls at once: Ray Data needs room for its tasks
        return executor.write(request, prompts, out).rows

    group = placement_group([{"CPU": 1.5}])
    try:
        ray.get(group.ready(), timeout=60)
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        assert ray.get(trial.options(num_cpus=1.5, scheduling_strategy=strategy).remote(), timeout=120) == 30
    finally:
        remove_placement_group(group)


@pytest.mark.ray
@needs_vllm
def test_an_engines_error_reaches_the_caller(pool: EnginePool, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Protects against a corpus that is silently short."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((checkpoints["tied0"] / "config.json").read_text())
    request = Request(tmp_path / "empty", "empty", SAMPLED, ENGINE)
    with pytest.raises(WeightsError, match=r"no \*\.safetensors"):
        RayExecutor(pool=pool).write(request, prompts_table(5), tmp_path / "out")


@pytest.mark.ray
def test_a_wait_is_reported(
    ray_instance: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects a user from a run that hangs without a word: an engine that can never be scheduled is named."""
    monkeypatch.setattr(ray_executor, "REPORT_SECONDS", 0.5)
    never = EnginePool.create(1, name="never", namespace="tests-engines", num_cpus=1000)
    told: list[str] = []
    failed: list[Exception] = []

    def call() -> None:
        try:
            RayExecutor(pool=never).write(
                Request(checkpoints["tied0"], "v", SAMPLED, ENGINE), prompts_table(5), tmp_path / "out", told.append
            )
        except Exception as error:
            failed.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        time.sleep(0.1)
    never.shutdown()
    caller.join(60)
    assert told
    assert "0 of 1 generation calls done" in told[0]
    assert "engine 0 waiting for resources" in told[0]
    assert failed, "a pool that was shut down must fail its calls"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (prompts_table(0), "no prompts"),
        (pa.concat_tables([prompts_table(2), prompts_table(1)]), "not unique"),
        (prompts_table(2).drop_columns(["seed"]), "need the columns"),
    ],
)
def test_bad_prompts_are_refused(prompts: pa.Table, message: str, tmp_path: Path) -> None:
    """Protects the corpus from rows that nobody could match to their prompts."""
    with pytest.raises(ValueError, match=message):
        InProcess().write(Request(tmp_path, "v", SAMPLED, ENGINE), prompts, tmp_path / "out")


def test_a_folder_with_parts_is_refused(tmp_path: Path) -> None:
    """Protects against two corpora in one folder."""
    (tmp_path / "part-00000.parquet").touch()
    with pytest.raises(FileExistsError):
        InProcess().write(Request(tmp_path, "v", SAMPLED, ENGINE), prompts_table(1), tmp_path)


def test_one_engine_in_this_process_writes_the_same_contract(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Protects library users and tests, who have no Ray: every row, in order, by calls whose split changes no token."""
    engine = ENGINE.model_copy(update={"kind": "huggingface"})
    executor, prompts = InProcess(), prompts_table(30)
    request = Request(checkpoints["tied0"], "tied0", SAMPLED, engine)
    report = executor.write(request, prompts, tmp_path / "corpus")
    written = pq.read_table(tmp_path / "corpus").sort_by("row")
    assert written.schema.names == CORPUS.names
    assert written.select(PROMPTS.names).cast(PROMPTS).equals(prompts)
    assert (report.rows, report.calls, report.generated_tokens) == (30, 2, 30 * SAMPLED.max_new_tokens)
    whole = replace(request, engine=engine.model_copy(update={"rows_per_call": 30}))
    executor.write(whole, prompts, tmp_path / "whole")
    assert pq.read_table(tmp_path / "whole")["generated_ids"].to_pylist() == written["generated_ids"].to_pylist()
    with pytest.raises(FileExistsError, match="already holds parts"):
        executor.write(request, prompts, tmp_path / "corpus")
