"""The Lovász-softmax loss: a surrogate of the Jaccard index, and the one loss here that is not pointwise."""

from typing import TYPE_CHECKING, Literal

from fortifai_ray.losses.base import LossConfig

if TYPE_CHECKING:
    from torch import Tensor


class LovaszSoftmax(LossConfig):
    """The mean, over the classes c present, of the Lovász extension of the Jaccard loss at the errors of class c.

    For class c the errors are m_i = |1[y_i = c] − p_i(c)|; sorted in decreasing order, the loss of the class is
    Σ_i m_i·(J_i − J_{i−1}), where J_i is the Jaccard loss of having the i worst targets wrong; its gradient on m_i is
    J_i − J_{i−1} (Berman, Triki and Blaschko 2018, "The Lovász-Softmax loss", equations 9 to 11 and algorithm 1).

    It needs whole softmax vectors and mixes targets, so the fused kernel does not serve it. In training it is taken
    over each sequence by itself and weighted by the sequence's targets, so that the number of workers changes nothing.
    (ForTIFAI's trainer takes it over a whole batch and does not shift the labels: it scores position t on token t.)
    """

    kind: Literal["lovasz"] = "lovasz"
    normaliser: Literal["valid"] = "valid"

    def __call__(self, logits: "Tensor", targets: "Tensor", ignore_index: int = -100) -> "Tensor":
        """Of ``targets`` (N,) under ``logits`` (N, V): a scalar; 0, with a gradient of 0, where no target is valid."""
        import torch

        valid = targets != ignore_index
        logits, targets = logits[valid], targets[valid]
        if not len(targets):
            return logits.sum()
        present = targets.unique()
        foreground = (targets[:, None] == present).to(logits.dtype)
        errors = (foreground - logits.softmax(-1)[:, present]).abs()
        errors, order = errors.sort(dim=0, descending=True)
        foreground = foreground.gather(0, order)
        intersection = foreground.sum(0) - foreground.cumsum(0)
        union = foreground.sum(0) + (1.0 - foreground).cumsum(0)
        jaccard = 1.0 - intersection / union
        steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        return (errors * steps).sum(0).mean()
