"""The signs of a model: its likelihood of held-out human text, and its own and generation 0's of the text it wrote."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fortifai_ray.evaluation.signs import Signs, SignsConfig, finite
from fortifai_ray.evaluation.signs.rows import as_rows, draw
from fortifai_ray.evaluation.signs.scoring import Scorer, Scores, Text
from fortifai_ray.metrics import BOTH, MODEL, Metric

VERSION = 3  # bump when the same model and texts give other signs

_FORTIFAI = "Shabgahi et al. 2025, ForTIFAI"
_SHUMAILOV = "Shumailov et al. 2024, AI models collapse when trained on recursively generated data"
_above = partial(Metric, direction="above", group=BOTH)
_below = partial(Metric, direction="below", group=BOTH)


def _of_both_texts() -> Iterator[Metric]:
    """Metrics of both texts. A collapsing model grows surer of its own text and less sure of human text."""
    for name, text, group in (("human", "the held-out human text", MODEL), ("synthetic", "the synthetic text", BOTH)):
        surer, less_sure = (_above, _below) if group == BOTH else (_below, _above)
        yield surer(
            f"mean_target_probability_{name}",
            "probability",
            f"mean probability of the tokens of {text}",
            _FORTIFAI,
            group=group,
        )
        yield less_sure(
            f"kept_fraction_{name}",
            "share of targets",
            f"share of the tokens of {text} with p ≤ γ, which TCE would keep",
            _FORTIFAI,
            group=group,
        )
        yield _below(
            f"predictive_entropy_{name}",
            "nats",
            f"mean entropy of the predicted distribution of the next token on {text}",
            "Shannon 1948",
            group=group,
        )
        yield _above(
            f"calibration_error_{name}",
            "probability",
            f"expected calibration error of the likeliest token on {text}, 15 equal bins",
            "Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3",
            group=group,
        )


METRICS = (
    _above(
        "held_out_bits_per_byte",
        "bits per byte",
        "−log2 p of the held-out human text over its UTF-8 bytes",
        "Gao et al. 2020, The Pile",
        group=MODEL,
    ),
    _below(
        "perplexity_synthetic",
        "per token",
        "perplexity of the synthetic text under the model that wrote it",
        _SHUMAILOV,
        scale="log",
    ),
    _below(
        "perplexity_synthetic_generation_0",
        "per token",
        "perplexity of the synthetic text under generation 0's model",
        _SHUMAILOV,
        scale="log",
    ),
    _above(
        "perplexity_synthetic_generation_0_q95",
        "per token",
        "95% quantile over synthetic documents of their perplexity under generation 0's model",
        _SHUMAILOV,
        scale="log",
    ),
    _below(
        "surplexity",
        "per token",
        "mean over synthetic documents of their perplexity under the model that wrote them",
        "Gambetta et al. 2024, Learning by Surprise",
        scale="log",
    ),
    *_of_both_texts(),
)
"""The signs in the order of the tables; :func:`model_signs` gives each of them a value."""
ON_HUMAN = tuple(each.name for each in METRICS if each.name.startswith("held_out_") or each.name.endswith("_human"))
"""Those of the held-out human text."""

HISTOGRAM_EDGES = np.geomspace(1.0, 1e6, 61)
"""Of the perplexity histograms: ten bins per decade. Larger values, infinity and NaN count in the last bin."""
PROBABILITY_BINS = 100
"""Of the probability histograms: of equal width over [0, 1], as ForTIFAI's notebook draws them. NaN counts in none."""
PROBABILITIES = "probability_histogram"


def model_signs(
    checkpoint: Path,
    human: np.ndarray,
    synthetic: pa.Table,
    reference: Path | None,
    settings: SignsConfig,
    *,
    human_bytes: int | None = None,
    seed: int = 0,
    threads: int = 1,
) -> Signs:
    """Compute the signs of collapse in a model from one forward pass over each text set.

    Held-out human text is scored block by block; the first token of each block is context. A synthetic row is scored
    given its prompt: only generated tokens are targets. The distribution is the model's own at temperature 1, without
    truncation, however the row was sampled. :data:`METRICS` defines the signs; ``perplexity``, per token of the human
    text, comes with them. ``…_generation_0`` are those of the synthetic text under ``reference``, and their 95%
    quantile shows the growing tail of improbable text (Shumailov et al. 2024). A document's perplexity is exp of the
    mean negative log-likelihood of its generated part; Gambetta et al. 2024, who rank documents by it, take the whole.
    The histograms ``perplexity_histogram`` and ``perplexity_histogram_generation_0`` count synthetic documents by
    perplexity in the bins of :data:`HISTOGRAM_EDGES` (Shumailov et al. 2024, figure 1). The histograms
    ``probability_histogram_human``, ``…_synthetic`` and ``…_synthetic_generation_0`` count blocks of the held-out text
    and synthetic documents by the mean probability of their targets, in :data:`PROBABILITY_BINS` bins
    (ForTIFAI's loss_dist.ipynb: per block, model and data set; generation 0's of the human text is in its own row).

    Args:
        checkpoint: Hugging Face folder of this generation's model.
        human: held-out blocks, integers of shape (blocks, block_size).
        synthetic: columns ``prompt_ids`` and ``generated_ids``, in the order of rows; ``settings.documents`` of
            those with a generated token are scored, drawn by the seed.
        reference: generation 0's folder, or None; if it is ``checkpoint``, that is scored only once.
        settings: γ, bins, number of documents.
        human_bytes: UTF-8 bytes of the blocks' targets (:func:`count_target_bytes`).
        seed: the recipe's.
        threads: for torch.

    Returns:
        Values; those of an empty text set are None with a reason. Counts, each prefixed with ``human_`` and
        ``synthetic_``: ``rows``, ``rows_empty`` (no generated token to score), ``rows_without_target`` (one token and
        no context), ``rows_not_drawn``, ``rows_cut`` and ``targets_cut`` (rows longer than the model's context, which
        are cut from the left, and the targets lost by that), ``rows_scored``, ``targets``.

    Raises:
        ValueError: the arrays do not hold token ids.
    """
    scorer = Scorer(checkpoint, threads)
    human_set = _human_texts(human, scorer.context)
    synthetic_set = _synthetic_texts(synthetic, settings.documents, seed, scorer.context)
    on_human = scorer.score(human_set.texts, gamma=settings.gamma, bins=settings.calibration_bins)
    own = scorer.score(synthetic_set.texts, gamma=settings.gamma, bins=settings.calibration_bins)
    del scorer  # one model in memory at a time
    signs = _describe(on_human, "human", human_set) | _describe(own, "synthetic", synthetic_set)
    signs |= _of_human(on_human, human_bytes) | _of_documents(own, "", "surplexity", np.mean)
    signs |= probability_histogram(on_human, "human") | probability_histogram(own, "synthetic")
    if reference is not None:
        first = own if reference == checkpoint else Scorer(reference, threads).score(synthetic_set.texts, alone=True)
        q95 = partial(np.quantile, q=0.95)
        signs |= _of_documents(first, "_generation_0", "perplexity_synthetic_generation_0_q95", q95)
        signs |= probability_histogram(first, "synthetic_generation_0")
    return signs


def _describe(scores: Scores, name: str, texts: "_TextSet") -> Signs:
    """The signs that human and synthetic text have in common, and the counts."""
    count = max(scores.all_targets, 1)
    values = {
        f"mean_target_probability_{name}": scores.probability / count,
        f"kept_fraction_{name}": scores.kept / count,
        f"predictive_entropy_{name}": scores.entropy / count,
        f"calibration_error_{name}": scores.calibration_error,
    }
    counts = texts.counts | {"rows_scored": len(texts.texts), "targets": scores.all_targets}
    return _known(values, scores, {f"{name}_{key}": value for key, value in counts.items()})


def _of_human(scores: Scores, size: int | None) -> Signs:
    signs = _known({"perplexity": scores.perplexity}, scores)
    if not size:
        return signs | finite({"held_out_bits_per_byte": None}, "the bytes of the human text were not given")
    bits = scores.nll.sum() / math.log(2)
    return signs | _known({"held_out_bits_per_byte": float(bits / size)}, scores)


def _of_documents(scores: Scores, whose: str, name: str, statistic: Callable[[np.ndarray], np.floating]) -> Signs:
    """The synthetic text's perplexity, a ``statistic`` of its documents' under that ``name``, and their histogram."""
    documents = scores.document_perplexities
    values = {
        f"perplexity_synthetic{whose}": scores.perplexity,
        name: float(statistic(documents)) if len(documents) else math.nan,
    }
    return replace(_known(values, scores), histograms={f"perplexity_histogram{whose}": histogram(documents)})


def _known(values: dict[str, float], scores: Scores, counts: dict[str, int] | None = None) -> Signs:
    return finite(values if scores.all_targets else dict.fromkeys(values), "there is no text to score", counts)


def histogram(perplexities: np.ndarray) -> list[int]:
    """Number of documents in each bin of :data:`HISTOGRAM_EDGES`; every document is counted."""
    inside = np.nan_to_num(perplexities, nan=np.inf, posinf=np.inf).clip(HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    return np.histogram(inside, HISTOGRAM_EDGES)[0].tolist()


def probability_histogram(scores: Scores, name: str) -> Signs:
    """Number of texts by the mean probability of their targets."""
    counts = np.histogram(scores.mean_probabilities, PROBABILITY_BINS, range=(0.0, 1.0))[0]
    return Signs(histograms={f"{PROBABILITIES}_{name}": counts.tolist()})


def count_target_bytes(
    blocks: np.ndarray, decode: Callable[[Sequence[Sequence[int]]], list[str]], end_of_text: int | None = None
) -> int:
    """UTF-8 bytes of the targets' text in blocks (blocks, block_size): all tokens but the first of each block.

    ``decode`` turns rows of ids into texts (``Corpus.decode``). ``end_of_text`` is not text and has no bytes. A
    character that a block's edge divides counts as a replacement character: at most three bytes per edge.
    """
    rows = [[int(token) for token in block if token != end_of_text] for block in blocks[:, 1:]]
    return sum(len(text.encode("utf-8")) for text in decode(rows))


class _TextSet(NamedTuple):
    texts: list[Text]
    counts: dict[str, int]


def _human_texts(blocks: np.ndarray, context: int | None) -> _TextSet:
    rows = as_rows(np.atleast_2d(np.asarray(blocks)))
    texts = [Text(rows[row], 1) for row in np.flatnonzero(rows.lengths)]
    return _fit(texts, context, {"rows": len(rows), "rows_empty": len(rows) - len(texts)})


def _synthetic_texts(table: pa.Table, count: int, seed: int, context: int | None) -> _TextSet:
    prompts, generated = as_rows(table["prompt_ids"]), as_rows(table["generated_ids"])
    written = np.flatnonzero(generated.lengths)
    drawn = draw(written, count, seed, "signs")
    texts = [Text(np.concatenate([prompts[row], generated[row]]), len(prompts[row])) for row in drawn]
    counts = {
        "rows": len(generated),
        "rows_empty": len(generated) - len(written),
        "rows_not_drawn": len(written) - len(drawn),
    }
    return _fit(texts, context, counts)


def _fit(texts: list[Text], context: int | None, counts: dict[str, int]) -> _TextSet:
    """The texts that have a target, cut from the left to at most ``context`` tokens, and the counts."""
    fitting = []
    for tokens, given in texts:
        over = 0 if context is None else max(0, len(tokens) - context)
        fitting.append(Text(tokens[over:], max(1, given - over)))
    usable = [text for text in fitting if text.targets]
    cut = {
        "rows_without_target": len(fitting) - len(usable),
        "rows_cut": sum(len(text.tokens) < len(whole.tokens) for text, whole in zip(fitting, texts, strict=True)),
        "targets_cut": sum(whole.targets - text.targets for text, whole in zip(fitting, texts, strict=True)),
    }
    return _TextSet(usable, counts | cut)
