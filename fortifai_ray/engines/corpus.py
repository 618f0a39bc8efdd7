"""A synthetic corpus: a Ray Data stage of thin clients that put prompts to the engines and write Parquet."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from fortifai_ray.engines.base import EngineCall
from fortifai_ray.engines.config import DecodingConfig, EngineConfig
from fortifai_ray.engines.pool import EnginePool
from fortifai_ray.files import write_bytes
from fortifai_ray.storage.transfer import Folder

logger = logging.getLogger(__name__)

PROMPTS = pa.schema([("row", pa.int64()), ("seed", pa.int64()), ("prompt_ids", pa.list_(pa.int32()))])
CORPUS = pa.schema([*PROMPTS, ("generated_ids", pa.list_(pa.int32())), ("weights_version", pa.string())])
# A wait this long is told to whoever waits.
REPORT_SECONDS = 60.0


@dataclass(frozen=True)
class CorpusReport:
    """What a corpus took.

    Attributes:
        rows: rows written.
        generated_tokens: tokens generated in all.
        seconds: time in which at least one engine generated for it: no waiting, no start, no load.
        load_seconds: time that its calls spent on starting engines and swapping weights, summed over calls.
        calls: engine calls it was split into.
    """

    rows: int
    generated_tokens: int
    seconds: float
    load_seconds: float
    calls: int


def generate_corpus(
    pool: EnginePool,
    checkpoint: Folder,
    weights_version: str,
    prompts: pa.Table,
    decoding: DecodingConfig,
    engine: EngineConfig,
    out_dir: Path,
    concurrency: int,
    on_wait: Callable[[str], None] | None = None,
) -> CorpusReport:
    """Generate from every prompt and write the corpus as Parquet.

    The rows are split into equal calls by their number and ``engine.rows_per_call`` alone, and an answer depends on
    its call alone: on one machine, the corpus is the same whatever engines write it, in whatever order.

    Args:
        pool: the engines.
        checkpoint: Hugging Face folder of the model: a stage's files, or a path that is the same where the engines run.
        weights_version: the identity of its weights.
        prompts: ``row: int64, seed: int64, prompt_ids: list<int32>``; rows are unique.
        decoding: how the tokens are drawn.
        engine: the engine that is to draw them.
        out_dir: where ``part-00000.parquet`` … are written: ``row, seed, prompt_ids, generated_ids,
            weights_version``, by ascending row. It is created, and holds no parts yet.
        concurrency: calls under way at once.
        on_wait: told, in a line, of every minute in which no call has ended. By default it is logged.

    Returns:
        What was written and what it took.

    Raises:
        ValueError: there are no prompts, or their columns or rows are not as above.
        FileExistsError: ``out_dir`` holds parts.
        ray.exceptions.RayError: an engine raised.
    """
    prompts = _checked(prompts)
    out_dir.mkdir(parents=True, exist_ok=True)
    if any(out_dir.glob("part-*")):
        raise FileExistsError(f"{out_dir} holds parts of a corpus already")
    calls = split_calls(prompts, engine.rows_per_call)
    run_id = uuid.uuid4().hex[:8]
    answer = partial(
        _answer_call,
        pool=pool,
        call_id=f"{weights_version[:12]}/{run_id}",
        checkpoint=checkpoint,
        weights_version=weights_version,
        decoding=decoding,
        engine=engine,
    )
    with _quiet_ray_data(), _watch(pool, out_dir, len(calls), on_wait or logger.warning):
        answers = (
            ray.data.from_blocks(calls)  # from_arrow would run a task of a whole CPU, which may never be free
            .map_batches(
                answer,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.TaskPoolStrategy(size=min(concurrency, len(calls))),
                num_cpus=0,  # a client only waits: it must find room beside trials and engines that took every CPU
            )
            .iter_rows()
        )
        summaries = [_written(answer, out_dir) for answer in answers]
    return CorpusReport(
        rows=sum(summary["rows"] for summary in summaries),
        generated_tokens=sum(summary["tokens"] for summary in summaries),
        seconds=union_seconds((summary["started"], summary["finished"]) for summary in summaries),
        load_seconds=sum(summary["load_seconds"] for summary in summaries),
        calls=len(summaries),
    )


def _checked(prompts: pa.Table) -> pa.Table:
    try:
        prompts = prompts.select(PROMPTS.names).cast(PROMPTS)
    except (KeyError, pa.ArrowException) as error:
        raise ValueError(f"prompts need the columns {', '.join(map(str, PROMPTS))}: {error}") from error
    if prompts.num_rows == 0:
        raise ValueError("there are no prompts to generate from")
    if prompts["row"].null_count or len(prompts["row"].unique()) < prompts.num_rows:
        raise ValueError("the prompts' rows are not unique")
    return prompts


def split_calls(prompts: pa.Table, rows_per_call: int) -> list[pa.Table]:
    """Split prompts, by ascending row, into ⌈n / rows_per_call⌉ calls whose sizes differ by one row at most.

    Each carries its number in a column ``call``.
    """
    prompts = prompts.sort_by("row").combine_chunks()
    count = -(-prompts.num_rows // rows_per_call)
    bounds = [prompts.num_rows * call // count for call in range(count + 1)]
    return [
        prompts.slice(first, last - first).append_column("call", pa.repeat(pa.scalar(call, pa.int32()), last - first))
        for call, (first, last) in enumerate(pairwise(bounds))
    ]


def union_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """The time covered by intervals that may overlap, in their unit."""
    total, end = 0.0, float("-inf")
    for started, finished in sorted(intervals):
        total += max(0.0, finished - max(started, end))
        end = max(end, finished)
    return total


def _answer_call(
    batch: pa.Table,
    *,
    pool: EnginePool,
    call_id: str,
    checkpoint: Folder,
    weights_version: str,
    decoding: DecodingConfig,
    engine: EngineConfig,
) -> pa.Table:
    """Put one call to an engine; runs as a Ray Data task, on any node, and may run twice.

    A row, which Ray Data never splits: the part of the corpus as Parquet, and what it took.
    """
    (number,) = batch["call"].unique().to_pylist()
    prompts = batch.select(["row", "seed", "prompt_ids"])
    call = EngineCall(
        call_id=f"{call_id}/{number}",
        checkpoint=checkpoint,
        weights_version=weights_version,
        prompts=prompts.select(["seed", "prompt_ids"]),
        decoding=decoding,
        engine=engine,
    )
    answer = pool.generate(call)
    versions = pa.repeat(pa.scalar(answer.weights_version), batch.num_rows)
    part = pa.BufferOutputStream()
    pq.write_table(pa.table([*prompts.columns, answer.generated_ids, versions], schema=CORPUS), part)
    return pa.table(
        {
            "call": [number],
            "part": pa.array([part.getvalue().to_pybytes()], pa.large_binary()),
            "rows": [batch.num_rows],
            "tokens": [len(answer.generated_ids.flatten())],
            "started": [answer.started],
            "finished": [answer.finished],
            "load_seconds": [answer.load_seconds],
        }
    )


def _written(answer: dict[str, Any], out_dir: Path) -> dict[str, Any]:
    """Write a call's part; returns what is left of its row."""
    write_bytes(out_dir / f"part-{answer['call']:05d}.parquet", answer.pop("part"))
    return answer


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Ray Data without its progress bars and its notes on each execution: a sweep runs it once per generation."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    ray_data_logger = logging.getLogger("ray.data")
    level = ray_data_logger.level
    ray_data_logger.setLevel(logging.ERROR)
    try:
        with ray.data.DataContext.current(context):
            yield
    finally:
        ray_data_logger.setLevel(level)


@contextmanager
def _watch(pool: EnginePool, out_dir: Path, calls: int, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Tell ``on_wait`` of every :data:`REPORT_SECONDS` in which no part was finished, and how the engines are."""
    over = threading.Event()

    def watch() -> None:
        done, since = 0, time.time()
        while not over.wait(REPORT_SECONDS / 10):
            parts = len(list(out_dir.glob("part-*")))
            if parts > done:
                done, since = parts, time.time()
            elif time.time() - since >= REPORT_SECONDS:
                on_wait(f"{done} of {calls} generation calls done, none for {REPORT_SECONDS:.0f} s: {_describe(pool)}")
                since = time.time()

    watcher = threading.Thread(target=watch, name="corpus-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(REPORT_SECONDS)


def _describe(pool: EnginePool) -> str:
    """The engines' states in a line, or that they do not answer."""
    try:
        state = ray.get(pool.ledger.state.remote(), timeout=5)
    except Exception as error:  # the watcher must outlive whatever it watches
        return f"the engines' ledger does not answer ({type(error).__name__})"
    now = time.time()
    engines = ", ".join(
        f"engine {index} {engine.name} for {now - engine.since:.0f} s" for index, engine in enumerate(state.engines)
    )
    return f"{engines}; {state.starts} starts" + (f"; {state.failure}" if state.failure else "")
