"""One forward pass of a causal LM over texts, and the statistics it gives: likelihood, entropy, calibration."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fortifai_ray.engines.causal_cache import CachedModel, row_limit
from fortifai_ray.engines.checkpoints import load_for_scoring

if TYPE_CHECKING:
    from torch import Tensor

TOKENS_PER_BATCH = 4096
LOGITS_AT_ONCE = 2**22  # 16 MiB of float32, a few times over


class Text(NamedTuple):
    """Token ids; the first ``given`` (at least one) are context, the others targets."""

    tokens: np.ndarray
    given: int

    @property
    def targets(self) -> int:
        return max(0, len(self.tokens) - max(1, self.given))


@dataclass(frozen=True)
class Scores:
    """Sums over the targets of some texts, in nats.

    Attributes:
        nll: (texts,) summed negative log-likelihood of each text's targets, float64.
        probabilities: (texts,) summed probability of each text's targets, float64.
        targets: (texts,) number of targets of each text.
        probability, entropy: summed over all targets: the target's probability, and the entropy −Σ p ln p of the
            predicted distribution.
        kept: number of targets with a probability of at most γ.
        confidence, correct, count: (bins,) by the largest probability, in bins of equal width: the sum of that
            probability, the number of targets that were the likeliest token, and the number of targets.
    """

    nll: np.ndarray
    probabilities: np.ndarray
    targets: np.ndarray
    probability: float
    entropy: float
    kept: int
    confidence: np.ndarray
    correct: np.ndarray
    count: np.ndarray

    @property
    def all_targets(self) -> int:
        return int(self.targets.sum())

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood per target: infinite if no float can hold it, NaN for no targets."""
        return exp(float(self.nll.sum() / self.all_targets)) if self.all_targets else math.nan

    @property
    def document_perplexities(self) -> np.ndarray:
        """(texts with targets,) The perplexity of each text that has targets, float64."""
        scored = self.targets > 0
        with np.errstate(over="ignore"):
            return np.exp(self.nll[scored] / self.targets[scored])

    @property
    def mean_probabilities(self) -> np.ndarray:
        """(texts with targets,) The mean probability of the targets of each text that has any, float64."""
        scored = self.targets > 0
        return self.probabilities[scored] / self.targets[scored]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the likeliest token: Σ_b (n_b / n) |accuracy_b − mean confidence_b|.

        Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3; bins of equal width on [0, 1].
        """
        return float(np.abs(self.correct - self.confidence).sum() / self.all_targets) if self.all_targets else math.nan


def exp(value: float) -> float:
    """e to the power of ``value``: infinite if no float can hold it, NaN for NaN."""
    return math.exp(value) if value < 700 else math.inf if not math.isnan(value) else math.nan


class Scorer:
    """A causal LM in float32, loaded once from a Hugging Face folder, and the length of the longest text it takes.

    The logits are never in memory as a whole: an output head known to be linear is applied to a few hidden states at a
    time; any other model is fed a few positions at a time, if its cache allows that.
    """

    def __init__(self, checkpoint: Path, threads: int = 1, logits_at_once: int = LOGITS_AT_ONCE) -> None:
        import torch

        from fortifai_ray.losses.causal_lm import OutputHead, UnknownHead, find_head

        self._model = load_for_scoring(checkpoint, torch.float32, threads)
        self._device = self._model.device
        self.context = row_limit(self._model.config)
        self._at_once = max(1, logits_at_once // self._model.config.get_text_config().vocab_size)  # positions
        self._head: OutputHead | None
        try:
            self._head = find_head(self._model)
        except UnknownHead:
            self._head = None

    def score(self, texts: Sequence[Text], *, gamma: float = 1.0, bins: int = 1, alone: bool = False) -> Scores:
        """Score texts, batched by length; no text may be longer than :attr:`context`.

        ``alone``: what is known of each text alone, which takes two fifths less time; sums over all targets stay 0.
        """
        import torch

        of_texts = np.zeros((2, len(texts)))  # log-likelihood and probability, summed
        targets = np.array([text.targets for text in texts], dtype=np.int64)
        lengths = np.array([len(text.tokens) for text in texts], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        order = order[targets[order] > 0]
        sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        calibration = torch.zeros(3, bins, dtype=torch.float64, device=self._device)
        with torch.inference_mode():
            for batch in batches(order, lengths, TOKENS_PER_BATCH):
                tokens, counted = self._pad([texts[i] for i in batch])
                of_batch = torch.zeros(2, len(batch), dtype=torch.float64, device=self._device)
                for row, target, logits in self._predictions(tokens, counted):
                    if alone:
                        log_p = _log_p(logits.log_softmax(-1), target).double()
                        of_batch.index_add_(1, row, torch.stack([log_p, log_p.exp()]))
                        continue
                    of_chunk = _measure(logits, target, math.log(gamma), bins)
                    of_batch.index_add_(1, row, torch.stack([of_chunk.log_p, of_chunk.log_p.exp()]))
                    sums += of_chunk.sums
                    calibration += of_chunk.calibration
                of_texts[:, batch] = of_batch.cpu().numpy()
        probability, entropy, kept = sums.tolist()
        confidence, correct, count = calibration.cpu().numpy()
        nll, probabilities = -of_texts[0], of_texts[1]
        return Scores(
            nll, probabilities, targets, probability, entropy, int(kept), confidence, correct, count.astype(np.int64)
        )

    def _pad(self, texts: Sequence[Text]) -> tuple["Tensor", "Tensor"]:
        """(texts, longest) Tokens, padded on the right, where causal attention ignores them, and (texts, longest − 1)
        which of the next tokens are targets."""
        import torch

        longest = max(len(text.tokens) for text in texts)
        tokens = np.zeros((len(texts), longest), dtype=np.int64)
        counted = np.zeros((len(texts), longest), dtype=np.bool_)
        for i, text in enumerate(texts):
            tokens[i, : len(text.tokens)] = text.tokens
            counted[i, max(1, text.given) : len(text.tokens)] = True
        return torch.from_numpy(tokens).to(self._device), torch.from_numpy(counted[:, 1:]).to(self._device)

    def _predictions(self, tokens: "Tensor", counted: "Tensor") -> Iterator[tuple["Tensor", "Tensor", "Tensor"]]:
        """A few targets at a time: (n,) their rows, (n,) the targets, (n, V) logits in float32."""
        rows, places = counted.nonzero(as_tuple=True)
        if self._head is not None:
            hidden = self._model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            for row, place in zip(rows.split(self._at_once), places.split(self._at_once), strict=True):
                yield row, tokens[row, place + 1], self._head.logits(hidden[row, place]).float()
            return
        step, last = max(1, self._at_once // len(tokens)), tokens.shape[1] - 1
        reader = CachedModel(self._model, step)
        cache: dict[str, Any] = {}
        step = step if reader.cached else last
        for start in range(0, last, step):
            stop = min(start + step, last)
            logits, cache = reader.read(tokens[:, :stop], cache, new=stop - start, keep=stop - start)
            row, place = counted[:, start:stop].nonzero(as_tuple=True)
            yield row, tokens[row, start + place + 1], logits[row, place].float()


def batches(order: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """``order``, in which longer texts come first, in batches of at most ``budget`` padded tokens or of one text.

    The batch that needs most memory thus runs first.
    """
    while len(order):
        size = max(1, budget // int(lengths[order[0]]))
        yield order[:size]
        order = order[size:]


class _Measured(NamedTuple):
    log_p: "Tensor"  # (n,) of the targets, float64
    sums: "Tensor"  # (3,) probability, entropy, kept
    calibration: "Tensor"  # (3, bins) confidence, correct, count


def _log_p(log_softmax: "Tensor", target: "Tensor") -> "Tensor":
    return log_softmax.gather(1, target[:, None]).squeeze(1)


def _measure(logits: "Tensor", target: "Tensor", log_gamma: float, bins: int) -> _Measured:
    """Of (n, V) logits and (n,) targets; sums in float64."""
    import torch

    log_softmax = logits.log_softmax(-1)
    log_p = _log_p(log_softmax, target)
    best, likeliest = log_softmax.max(-1)
    probabilities = log_softmax.exp()
    # −p ln p, with 0 for a token of probability 0; NaN stays NaN, so that it is noticed.
    terms = torch.where(probabilities == 0, 0.0, probabilities * log_softmax)
    entropy = -terms.sum(-1, dtype=torch.float64).sum()
    confidence = best.double().exp()
    bin_of = (confidence.nan_to_num(0.0) * bins).long().clamp(0, bins - 1)
    rows = torch.stack([confidence, (likeliest == target).double(), torch.ones_like(confidence)])
    calibration = torch.zeros(3, bins, dtype=torch.float64, device=logits.device).index_add_(1, bin_of, rows)
    kept = (~(log_p > log_gamma)).sum()  # as TCE: p ≤ γ, and NaN is kept
    sums = torch.stack([log_p.double().exp().sum(), entropy, kept.double()])
    return _Measured(log_p.double(), sums, calibration)
