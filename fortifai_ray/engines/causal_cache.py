"""Going on from a causal LM's cache, of whatever kind it is, and only where that gives what the whole row gives."""

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_KINDS = ("past_key_values", "cache_params", "state")  # of attention, of Mamba, of RWKV: what an output calls it
_PROBE = 16  # tokens of the rows on which a cache is tried


class CachedModel:
    """A Hugging Face causal LM that reads rows piece by piece, keeping what it needs of earlier pieces in a cache.

    Args:
        model: in evaluation mode.
        piece: tokens that are read at a time after the first piece.

    Attributes:
        cached: whether its cache is used. It is tried on this very model: in transformers 5.19 some architectures give
            other logits from their cache than for the whole row (MiniMax, RWKV: by as much as the logits are large)
            and some have none (RecurrentGemma, GPT). These read the whole row at each piece.
    """

    def __init__(self, model: Any, piece: int = 1) -> None:
        self.model = model
        takes = inspect.signature(model.forward).parameters
        self._keeps_last, self._placed = "logits_to_keep" in takes, "position_ids" in takes
        self.cached = True
        self.cached = self._cache_is_right(min(piece, _PROBE // 4))

    def read(self, ids: "torch.Tensor", cache: dict[str, Any], new: int, keep: int) -> "tuple[Any, dict[str, Any]]":
        """Logits of the last ``keep`` places, (rows, keep, vocabulary), and the cache that the rows leave.

        Args:
            ids: the rows so far, (rows, length), all of one length: no padding.
            cache: what :meth:`read` gave for all but the last ``new`` tokens; empty for none.
            new: tokens since then.
            keep: at most ``new``.
        """
        import torch

        inputs = ids[:, -new:] if cache else ids
        wanted: dict[str, Any] = {"logits_to_keep": keep} if self._keeps_last else {}
        if self._placed:  # a model of states and attention counts its cache's tokens in its first layer, which has none
            places = torch.arange(ids.shape[1] - inputs.shape[1], ids.shape[1], device=ids.device)
            wanted["position_ids"] = places.expand_as(inputs)
        output = self.model(input_ids=inputs, use_cache=self.cached, **wanted, **cache)
        held = {name: output[name] for name in _KINDS if output.get(name) is not None} if self.cached else {}
        return output.logits[:, -keep:], held

    def _cache_is_right(self, piece: int) -> bool:
        """Whether the last logits of rows read in three pieces are those of the rows read at once.

        They differ by rounding: over 100 architectures with random weights by at most 1e-5 of the largest logit in
        float32, 2e-2 in bfloat16. The square root of the type's precision (3e-4, 9e-2) lies between that and a wrong
        cache (0.1 to 1).
        """
        import torch

        vocabulary, longest = self.model.config.get_text_config().vocab_size, row_limit(self.model.config)
        row = torch.arange(min(_PROBE, longest or _PROBE), device=self.model.device) % vocabulary
        ids = torch.stack([row, row.flip(0)])  # RWKV's cache is right for one row alone
        first = ids.shape[1] - 2 * piece
        if first < 1:
            return False
        cache: dict[str, Any] = {}
        with torch.inference_mode():
            for length, new in ((first, first), (first + piece, piece), (first + 2 * piece, piece)):
                pieces, cache = self.read(ids[:, :length], cache, new, 1)
                if not cache:
                    return False
            whole, _ = self.read(ids, {}, ids.shape[1], 1)
        difference = (pieces - whole).abs().max()
        return (
            not difference > torch.finfo(self.model.dtype).eps ** 0.5 * whole.abs().max()
        )  # NaN: there is nothing to lose


def row_limit(config: Any) -> int | None:
    """Tokens of the longest row that a model with this Hugging Face configuration takes; None where nothing bounds it:
    positions that are distances (ALiBi), or a state (Mamba)."""
    text = config.get_text_config()
    named = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((int(length) for length in named if length is not None and length > 0), None)
