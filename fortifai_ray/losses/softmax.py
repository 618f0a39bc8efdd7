"""The interface of a back end of the fused output head, and the softmax of a chunk of logits in PyTorch."""

from typing import Protocol

import torch
from torch import Tensor


class ChunkSoftmax(Protocol):
    """Log-probabilities and gradients of a chunk of targets, in memory that all chunks reuse: freed and reallocated
    memory would be paged in again. For each chunk the caller writes its logits to ``logits``, calls :meth:`log_p`, then
    perhaps :meth:`gradients`, which may leave anything in ``logits``."""

    logits: Tensor
    """(rows, V), in the dtype of the matrix products: written by the caller, before bias and cap."""

    def log_p(self, targets: Tensor) -> Tensor:
        """log p of each of a chunk's targets (n,) under the first n rows of ``logits``: (n,), float32 or float64."""

    def gradients(self, targets: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Where f′ = ``slope`` (n,) is not 0: the positions (k,) of those targets in the chunk, in any order, and the
        gradient of Σf on their logits before bias and cap, (k, V), in that order."""


class TorchSoftmax:
    """A chunk's softmax in pure PyTorch, on any device. ``rows`` is the largest number of targets a chunk."""

    def __init__(self, weight: Tensor, bias: Tensor | None, softcap: float | None, rows: int) -> None:
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._bias, self._softcap = bias, softcap
        self.logits = weight.new_empty(rows, weight.shape[0])
        self._capped = self.logits if weight.dtype == exact else torch.empty_like(self.logits, dtype=exact)
        self._log_softmax = torch.empty_like(self._capped)

    def log_p(self, targets: Tensor) -> Tensor:
        """As :meth:`ChunkSoftmax.log_p`; the (capped) logits stay in ``_capped``."""
        product, logits = self.logits[: len(targets)], self._capped[: len(targets)]
        if logits.dtype != product.dtype:
            logits.copy_(product)
        if self._bias is not None:
            logits += self._bias
        if self._softcap is not None:
            logits.div_(self._softcap).tanh_().mul_(self._softcap)
        log_softmax = torch.log_softmax(logits, -1, out=self._log_softmax[: len(targets)])
        return log_softmax.gather(1, targets[:, None]).squeeze(1)

    def gradients(self, targets: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`ChunkSoftmax.gradients`, in ascending order, float32 or float64."""
        kept, log_softmax = slope.nonzero().squeeze(1), self._log_softmax[: len(targets)]
        cap_slope = self._cap_slope(kept)  # from the logits, whose memory is about to be used for something else
        if len(kept) < len(slope):
            targets, slope = targets[kept], slope[kept]
            log_softmax = torch.index_select(log_softmax, 0, kept, out=self._capped[: len(kept)])
        on_logits = log_softmax.exp_().mul_(-slope[:, None])
        on_logits.scatter_add_(1, targets[:, None], slope[:, None])
        if cap_slope is not None:
            on_logits *= cap_slope
        return kept, on_logits

    def _cap_slope(self, kept: Tensor) -> Tensor | None:
        """The derivative of softcap·tanh(z/softcap) of some rows, from its value; None without a cap."""
        if self._softcap is None:
            return None
        return self._capped[kept].div_(self._softcap).square_().neg_().add_(1.0)
