"""A synthetic corpus: prompts split into calls to engines, and the answers written as Parquet; on Ray or without."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fortifai_ray.engines.engine import DecodingConfig, EngineAnswer, EngineCall, EngineConfig
from fortifai_ray.files import write_bytes
from fortifai_ray.process.moments import FIRST_TOKEN, happened
from fortifai_ray.recipe.executor import CorpusReport
from fortifai_ray.storage.store import Folder

PROMPTS = pa.schema([("row", pa.int64()), ("seed", pa.int64()), ("prompt_ids", pa.list_(pa.int32()))])
CORPUS = pa.schema([*PROMPTS, ("generated_ids", pa.list_(pa.int32())), ("weights_version", pa.string())])


class Part(NamedTuple):
    """One call's share of a corpus, as Parquet, and its size and duration, as in ``CorpusReport``."""

    call: int
    content: bytes
    rows: int
    tokens: int
    started: float
    finished: float
    load_seconds: float


@dataclass(frozen=True)
class Request:
    """A corpus to be generated; picklable, so that any process can answer its calls.

    Attributes:
        checkpoint: Hugging Face folder of the model: a stage's files, or a path that is the same where engines run.
        weights_version: the identity of its weights.
        decoding: how the tokens are drawn.
        engine: the engine that draws them.
        name: names its calls in waits and errors; unique.
    """

    checkpoint: Folder
    weights_version: str
    decoding: DecodingConfig
    engine: EngineConfig
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def write(
        self, prompts: pa.Table, out_dir: Path, answers: Callable[[Sequence[pa.Table]], Iterable[Part]]
    ) -> CorpusReport:
        """Generate from every prompt and write the corpus as Parquet.

        The rows are split into equal calls by their number and ``engine.rows_per_call`` alone, and an answer depends
        on its call alone: on one machine, the corpus is the same whatever engines write it, in whatever order.

        Args:
            prompts: ``row: int64, seed: int64, prompt_ids: list<int32>``; rows are unique.
            out_dir: where ``part-00000.parquet`` … are written: ``row, seed, prompt_ids, generated_ids,
                weights_version``, by ascending row. It is created, and must not hold parts yet.
            answers: :meth:`answer` of each of the calls, in any order.

        Raises:
            ValueError: there are no prompts, or their columns or rows are not as above.
            FileExistsError: ``out_dir`` holds parts.
        """
        calls = split_calls(_checked(prompts), self.engine.rows_per_call)
        out_dir.mkdir(parents=True, exist_ok=True)
        if any(out_dir.glob("part-*")):
            raise FileExistsError(f"{out_dir} already holds parts of a corpus")
        parts = list[Part]()
        for part in answers(calls):
            happened(FIRST_TOKEN, part.started)
            write_bytes(out_dir / f"part-{part.call:05d}.parquet", part.content)
            parts.append(part._replace(content=b""))  # its content is on the disk
        return CorpusReport(
            rows=sum(part.rows for part in parts),
            generated_tokens=sum(part.tokens for part in parts),
            seconds=union_seconds((part.started, part.finished) for part in parts),
            load_seconds=sum(part.load_seconds for part in parts),
            calls=len(parts),
        )

    def answer(self, call: pa.Table, generate: Callable[[EngineCall], EngineAnswer]) -> Part:
        """One call of :func:`split_calls`, answered by ``generate``."""
        (number,) = call["call"].unique().to_pylist()
        rows = call.select(PROMPTS.names)
        prompts, call_id = rows.select(["seed", "prompt_ids"]), f"{self.weights_version[:12]}/{self.name}/{number}"
        answer = generate(
            EngineCall(call_id, self.checkpoint, self.weights_version, prompts, self.decoding, self.engine)
        )
        versions = pa.repeat(pa.scalar(answer.weights_version), rows.num_rows)
        content = pa.BufferOutputStream()
        pq.write_table(pa.table([*rows.columns, answer.generated_ids, versions], schema=CORPUS), content)
        return Part(
            number,
            content.getvalue().to_pybytes(),
            rows.num_rows,
            len(answer.generated_ids.flatten()),
            answer.started,
            answer.finished,
            answer.load_seconds,
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
    """The total time covered by intervals that may overlap, in their unit."""
    total, end = 0.0, float("-inf")
    for started, finished in sorted(intervals):
        total += max(0.0, finished - max(started, end))
        end = max(end, finished)
    return total
