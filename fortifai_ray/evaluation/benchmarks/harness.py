"""Run task files through lm-evaluation-harness in this process: no hub, no Ray, no cache, no progress bars.

Importing this module imports lm_eval: import it where an evaluation starts.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from fortifai_ray.errors import UserError
from fortifai_ray.evaluation.benchmarks.any_task import quiet
from fortifai_ray.evaluation.benchmarks.tasks import TaskFile, check_room

_FEWSHOT_SEED = 1234  # lm-evaluation-harness's default, so that its command line draws the same examples


@dataclass(frozen=True)
class HarnessResult:
    """The results of lm-evaluation-harness.

    Attributes:
        results: by task, its metrics under lm-evaluation-harness's names (``acc,none``).
        samples: by task, its log of each document: ``doc_id, arguments, resps, filter``, the document's metrics.
        versions: by task, the version in its file.
        truncated: texts cut from the left.
        windowed: documents that needed more than one window of the model's context.
    """

    results: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]
    versions: dict[str, Any]
    truncated: int
    windowed: int


def run_tasks(
    network: Any, tokenizer: Any, files: Sequence[TaskFile], *, limit: int | None, batch_size: int
) -> HarnessResult:
    """Evaluate a loaded model on tasks.

    This calls ``lm_eval.evaluator.evaluate`` directly: ``simple_evaluate``, which wraps it, also reseeds this process's
    random numbers and spends seconds on a report about the machine.

    Args:
        network: a causal LM of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        files: the tasks.
        limit: how many documents of each task are used, the first ones; None for all.
        batch_size: texts per batch.
    """
    with quiet():
        loaded = _load(files)
    return evaluate_loaded(network, tokenizer, loaded, limit=limit, batch_size=batch_size)


def evaluate_loaded(network: Any, tokenizer: Any, loaded: Any, *, limit: int | None, batch_size: int) -> HarnessResult:
    """As :func:`run_tasks`, of tasks that are loaded."""
    with quiet():
        from lm_eval.evaluator import evaluate

        model = CountingLM(network, tokenizer, batch_size)
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        check_room(loaded["tasks"], model.max_length, model.max_gen_toks)
        outcome: Any = evaluate(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    return HarnessResult(outcome["results"], outcome["samples"], outcome["versions"], model.truncated, model.windowed)


def _load(files: Sequence[TaskFile]) -> Any:
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory(prefix="fortifai-tasks-") as folder:
        for file in files:
            file.write(Path(folder))
        loaded: Any = TaskManager(include_path=folder, include_defaults=False).load([file.name for file in files])
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return loaded


class CountingLM(HFLM):
    """:class:`lm_eval.models.huggingface.HFLM` on a loaded model: the same numbers, cuts counted, no progress bars.

    Attributes:
        truncated: texts so far that were longer than the model's context and were cut from the left.
        windowed: documents so far whose rolling log-likelihood needed more than one window.
    """

    def __init__(self, network: Any, tokenizer: Any, batch_size: int) -> None:
        self.truncated = 0
        self.windowed = 0
        super().__init__(pretrained=network, tokenizer=tokenizer, batch_size=batch_size, trust_remote_code=False)

    loglikelihood = partialmethod(HFLM.loglikelihood, disable_tqdm=True)
    generate_until = partialmethod(HFLM.generate_until, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        self.windowed += sum(len(self.tok_encode(request.args[0])) > self.max_length for request in requests)
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        for text, _, rest in requests:
            if not rest:  # on which lm-evaluation-harness fails an assertion
                raise UserError(
                    f"a benchmark's answer has no token, so that it cannot be scored: {text!r}; remove its row"
                )
        self.truncated += sum(len(context) + len(rest) > self.max_length + 1 for _, context, rest in requests)
        fitting = [(text, context, rest[-self.max_length :]) for text, context, rest in requests]
        return super()._loglikelihood_tokens(fitting, disable_tqdm=True, override_bs=override_bs)

    def tok_batch_encode(self, strings: Any, *args: Any, left_truncate_len: int | None = None, **settings: Any) -> Any:
        ids, mask = super().tok_batch_encode(strings, *args, **settings)
        if left_truncate_len is None:
            return ids, mask
        self.truncated += int((mask.sum(1) > left_truncate_len).sum())
        return ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]
