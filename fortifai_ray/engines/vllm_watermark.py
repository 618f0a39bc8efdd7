"""The watermark inside vLLM: a logits processor for each of its two model runners, who know a row by other means.

The first serves a CPU, the second (which needs Triton) a GPU. A request carries its watermark in ``extra_args``. vLLM's
own ``watermark_config`` is another kind of mark (Gumbel), on its second runner alone.
"""

from typing import TYPE_CHECKING, Any

from vllm import SamplingParams, envs
from vllm.triton_utils import HAS_TRITON
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondLogitsProcessor

from fortifai_ray.engines.watermark import GreenLists, WatermarkConfig

if TYPE_CHECKING:
    import torch

ARGUMENT = "fortifai_watermark"


def processor() -> str:
    """The processor of the model runner that an engine started here has, as ``LLM(logits_processors=[…])`` names it."""
    asked = envs.VLLM_USE_V2_MODEL_RUNNER
    second = HAS_TRITON if asked is None else asked
    return f"{__name__}:{(SecondRunners if second else FirstRunners).__name__}"


class _Lists:
    """The green lists of the watermarks that requests have asked for."""

    def __init__(self, vllm_config: Any, device: "torch.device") -> None:
        self._vocabulary, self._device = int(vllm_config.model_config.get_vocab_size()), device
        self._known: dict[WatermarkConfig, GreenLists] = {}

    def asked(self, parameters: SamplingParams) -> GreenLists | None:
        """The lists of a request's watermark; None where it asks for none."""
        given = (parameters.extra_args or {}).get(ARGUMENT)
        if given is None:
            return None
        config = WatermarkConfig(**given)
        if config not in self._known:
            self._known[config] = GreenLists(config, self._vocabulary, self._device)
        return self._known[config]


class FirstRunners(LogitsProcessor):
    """For the runner that tells a processor of each row's tokens as lists."""

    def __init__(self, vllm_config: Any, device: "torch.device", is_pin_memory: bool) -> None:
        self._lists = _Lists(vllm_config, device)
        self._rows: dict[int, tuple[GreenLists, list[int], list[int]]] = {}  # with the prompt, and what was written

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, self._row)

    def _row(
        self, parameters: SamplingParams, prompt: list[int] | None, written: list[int]
    ) -> tuple[GreenLists, list[int], list[int]] | None:
        lists = self._lists.asked(parameters)
        return None if lists is None else (lists, list(prompt or ()), written)

    def apply(self, logits: "torch.Tensor") -> "torch.Tensor":
        for lists in {lists for lists, _, _ in self._rows.values()}:
            rows = [row for row, (of_row, _, _) in self._rows.items() if of_row is lists]
            lists.raised(logits, rows, [self._sum(row, lists.config.context) for row in rows])
        return logits

    def _sum(self, row: int, context: int) -> int:
        _, prompt, written = self._rows[row]
        return sum([*prompt[-context:], *written[-context:]][-context:])


class SecondRunners(SecondLogitsProcessor):
    """For the runner that keeps each request's tokens in a slot on the device."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._lists = _Lists(vllm_config, req_states.device)
        self._states = req_states
        self._slots: dict[int, GreenLists] = {}

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self._slots.pop(req_idx, None)
        lists = self._lists.asked(sampling_params)
        if lists is not None:
            self._slots[req_idx] = lists
        return lists is not None

    def apply(self, logits: "torch.Tensor", ctx: LogitsContext) -> "torch.Tensor":
        slots = ctx.expanded_idx_mapping.tolist()
        for lists in set(self._slots.values()):
            rows = [row for row, slot in enumerate(slots) if self._slots.get(slot) is lists]
            lists.raised(logits, rows, self._sums(ctx, rows, lists.config.context))
        return logits

    def _sums(self, ctx: LogitsContext, rows: list[int], context: int) -> list[int]:
        """The sum of the last ``context`` tokens of each row, the one that the model has just read included."""
        sums, tokens = ctx.input_ids[rows].long(), self._states.all_token_ids.gpu
        slots, places = ctx.expanded_idx_mapping[rows].long(), ctx.pos[rows].long()
        for back in range(1, context):
            earlier = tokens[slots, (places - back).clamp(min=0)].long()
            sums = sums + earlier * (places >= back)
        return [int(total) for total in sums.tolist()]
