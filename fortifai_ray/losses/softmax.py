"""The interface of a back end of the fused output head, and the softmax of a chunk of logits in PyTorch: for logits in
float32 or float64, with gradients and without, and for logits of 16 bits."""

from collections.abc import Iterator
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


class LogSoftmax:
    """A chunk's log-probabilities alone, in float32 or float64 on any device. ``rows`` is the most targets a chunk."""

    def __init__(self, weight: Tensor, bias: Tensor | None, softcap: float | None, rows: int) -> None:
        self._bias, self._softcap = bias, softcap
        self.logits = weight.new_empty(rows, weight.shape[0])
        self._log_softmax = torch.empty_like(self.logits)

    def log_p(self, targets: Tensor) -> Tensor:
        """As :meth:`ChunkSoftmax.log_p`."""
        logits = _finish(self.logits[: len(targets)], self._bias, self._softcap)
        log_softmax = torch.log_softmax(logits, -1, out=self._log_softmax[: len(targets)])
        return log_softmax.gather(1, targets[:, None]).squeeze(1)

    def gradients(self, targets: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """There are none."""
        raise NotImplementedError


class WideSoftmax:
    """A chunk's softmax in float32 or float64, on any device. ``rows`` is the largest number of targets a chunk.

    Each exponential is taken once, in the place of its logit: what the two methods of a chunk share.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, softcap: float | None, rows: int) -> None:
        self._bias, self._softcap = bias, softcap
        self.logits = weight.new_empty(rows, weight.shape[0])

    def log_p(self, targets: Tensor) -> Tensor:
        """As :meth:`ChunkSoftmax.log_p`; ``logits`` are left as exp(logit − the row's largest)."""
        logits = _finish(self.logits[: len(targets)], self._bias, self._softcap)
        self._capped = None if self._softcap is None else logits.clone()
        largest = logits.amax(1, keepdim=True)
        of_targets = logits.gather(1, targets[:, None]).sub_(largest)
        self._sums = logits.sub_(largest).exp_().sum(1, keepdim=True)
        return of_targets.sub_(self._sums.log()).squeeze(1)

    def gradients(self, targets: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`ChunkSoftmax.gradients`, in ascending order, in the dtype and the memory of ``logits``."""
        kept, scale = slope.nonzero().squeeze(1), slope[:, None] / self._sums
        if len(kept) < len(slope):
            targets, slope, scale = targets[kept], slope[kept], scale[kept]
            for part in _row_parts(len(kept), self.logits):  # the i-th kept row is row i or a later one
                self.logits[part] = self.logits[kept[part]]
        on_logits = self.logits[: len(kept)].mul_(scale.neg_())
        on_logits.scatter_add_(1, targets[:, None], slope[:, None])
        if self._softcap is not None and self._capped is not None:
            capped = self._capped if len(kept) == len(self._capped) else self._capped[kept]
            on_logits *= _cap_slope(capped, self._softcap)
        return kept, on_logits


class NarrowSoftmax:
    """A chunk's softmax for logits of 16 bits, on any device: computed in float32, a block of rows at a time.

    So a chunk's logits are never in memory in float32. On a CPU a block stays in the cache: on one core, blocks take
    two thirds of the time that the operations take on a whole chunk, and the conversions become all but free.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, softcap: float | None, rows: int) -> None:
        self._bias, self._softcap = bias, softcap
        self.logits = weight.new_empty(rows, weight.shape[0])
        block = _CACHED * torch.get_num_threads() if weight.device.type == "cpu" else _BLOCK
        self._rows = max(1, min(rows, block // weight.shape[0]))
        self._block, self._softmax = (
            torch.empty_like(self.logits[: self._rows], dtype=torch.float32) for _ in range(2)
        )

    def log_p(self, targets: Tensor) -> Tensor:
        """As :meth:`ChunkSoftmax.log_p`; leaves ``logits`` as they are."""
        log_p = targets.new_empty(len(targets), dtype=torch.float32)
        for part in self._parts(len(targets)):
            logits = self._logits(self.logits[part])
            log_softmax = torch.log_softmax(logits, -1, out=self._softmax[: len(logits)])
            log_p[part] = log_softmax.gather(1, targets[part, None]).squeeze(1)
        return log_p

    def gradients(self, targets: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`ChunkSoftmax.gradients`, in ascending order, in the dtype and the memory of ``logits``."""
        kept = slope.nonzero().squeeze(1)
        every = len(kept) == len(slope)
        if not every:
            targets, slope = targets[kept], slope[kept]
        for part in self._parts(len(kept)):
            # The i-th kept row is row i or a later one, so that what is written here has been read already.
            logits = self._logits(self.logits[part if every else kept[part]])
            on_logits = torch.softmax(logits, -1, out=self._softmax[: len(logits)]).mul_(-slope[part, None])
            on_logits.scatter_add_(1, targets[part, None], slope[part, None])
            if self._softcap is not None:
                on_logits *= _cap_slope(logits, self._softcap)
            self.logits[part] = on_logits
        return kept, self.logits[: len(kept)]

    def _parts(self, rows: int) -> Iterator[slice]:
        return (slice(first, min(first + self._rows, rows)) for first in range(0, rows, self._rows))

    def _logits(self, product: Tensor) -> Tensor:
        """A block's rows in float32, with bias and cap."""
        return _finish(self._block[: len(product)].copy_(product), self._bias, self._softcap)


def _row_parts(rows: int, logits: Tensor) -> Iterator[slice]:
    """Of the first ``rows`` of logits, so many at a time that a copy of them is small."""
    size = max(1, (_BLOCK if logits.is_cuda else _CACHED) // logits.shape[1])
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


_CACHED = 2**19  # logits in float32 that a core works on at once: 2 MiB, as much as a core's own cache holds
_BLOCK = 2**25  # logits in float32 that a GPU works on at once


def _finish(logits: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Add the bias and apply the cap, in place."""
    if bias is not None:
        logits += bias
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _cap_slope(capped: Tensor, softcap: float) -> Tensor:
    """The derivative of softcap·tanh(z/softcap), from its value, whose memory is overwritten."""
    return capped.div_(softcap).square_().neg_().add_(1.0)
