"""n-gram models against plain dictionaries: counts, probabilities, drawing, losses, every metric, texts, mistakes."""

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from fortifai_ray.chain.cohort import cohort_rows, cohorts, run_cohort
from fortifai_ray.errors import UserError
from fortifai_ray.families.analytic import Ngram
from fortifai_ray.families.analytic.base import Streams
from fortifai_ray.families.analytic.ngram import Text
from fortifai_ray.families.analytic.ngram_recipe import tokenised
from fortifai_ray.families.analytic.weighting import fit_with_loss
from fortifai_ray.losses import Focal, TruncatedCrossEntropy
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import Study, make_study
from fortifai_ray.sweep.preflight import check_study

from .loops import TEXT

V = TEXT.size
BEGIN = (V,) * 3  # before a document's first token
Grams = dict[tuple[int, ...], Counter[int]]


def grams(documents: np.ndarray, order: int, weights: np.ndarray | None = None) -> list[Grams]:
    """For each length, how often each token follows each context."""
    found: list[Grams] = [defaultdict(Counter) for _ in range(order)]
    for row, document in enumerate(documents.astype(int).tolist()):
        padded = [*BEGIN, *document]
        for place, token in enumerate(document):
            for back in range(order):
                context = tuple(padded[place + 3 - back : place + 3])
                found[back][context][token] += 1 if weights is None else weights[row, place]
    return found


def probability(found: list[Grams], context: tuple[int, ...], token: int, smoothed: bool) -> float:
    p = 1 / V
    for back, level in enumerate(found):
        after = level.get(context[len(context) - back :])
        total = sum(after.values()) if after else 0
        if after and total:
            kinds = sum(times > 0 for times in after.values()) if smoothed else 0
            p = (after[token] + kinds * p) / (total + kinds)
    return p


def log_p(found: list[Grams], document: np.ndarray, smoothed: bool = True) -> list[float]:
    padded = [*BEGIN, *document.astype(int).tolist()]
    p = [probability(found, tuple(padded[at : at + 3]), padded[at + 3], smoothed) for at in range(len(document))]
    return [math.log(each) if each else -math.inf for each in p]


def documents(family: Ngram, n: int = 40, seeds: tuple[int, ...] = (3, 1)) -> np.ndarray:
    return family.human(n, Streams(seeds, -1))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("smoothing", ["witten_bell", "none"])
def test_probabilities_are_those_of_dictionaries(order: int, smoothing: str) -> None:
    """Of documents that were seen and of others, with and without weights; they sum to 1 after any context."""
    family = Ngram(order=order, length=6, smoothing=smoothing).on(TEXT)  # type: ignore[arg-type]
    data = documents(family)
    other = family.human(30, Streams((8, 9), -1))
    weights = np.random.default_rng(0).choice([0.0, 0.5, 2.0], (2, 40, 6))
    for given in (None, weights):
        model = family.fit(data, given)
        likelihood = family.log_likelihood(model, other)
        for chain in range(2):
            found = grams(data[chain], order, None if given is None else given[chain])
            expected = [sum(log_p(found, row, smoothing != "none")) for row in other[chain]]
            np.testing.assert_allclose(likelihood[chain], expected, rtol=1e-12)
    context = np.tile(other[0, 0, :5], (V, 1))
    every = np.concatenate([context, np.arange(V)[:, None]], axis=1)[None]
    short = Ngram(order=order, length=5, smoothing=smoothing).on(TEXT)  # type: ignore[arg-type]
    before = short.log_likelihood(model, context[None])[0]
    if np.isfinite(before).all():
        assert np.exp(family.log_likelihood(model, every)[0] - before).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("order", "written_by"), [(1, "counts"), (2, "counts"), (2, "smoothed"), (3, "smoothed")])
def test_what_is_written_has_the_models_probabilities(order: int, written_by: str) -> None:
    """χ² of 30,000 tokens after a frequent context, and after the start of a document."""
    family = Ngram(order=order, length=3, written_by=written_by).on(TEXT)  # type: ignore[arg-type]
    data = documents(family, 60, (5,))
    written = family.generate(family.fit(data), 30_000, Streams((5,), 0))[0]
    found = grams(data[0], order)
    for place in (0, 1, 2):
        before = written[:, :place] == 0  # after the most frequent token, however often
        rows = written[before.all(1)]
        context = (*BEGIN[place:], *[0] * place)
        p = np.array([probability(found, context, token, written_by == "smoothed") for token in range(V)])
        times = np.bincount(rows[:, place], minlength=V)
        assert times[p == 0].sum() == 0
        assert stats.chisquare(times[p > 0], p[p > 0] * len(rows)).pvalue > 1e-4


def test_a_context_that_was_never_continued_takes_a_shorter_one() -> None:
    """A token that stands at the ends of documents alone is followed by what is frequent."""
    text = Text(np.array([0, 1] * 50), np.array([0, 1] * 5), 2)
    family = Ngram(order=2, length=2).on(text)
    model = family.fit(np.array([[[0, 1]] * 3 + [[0, 0]]]))
    longer = Ngram(order=2, length=4).on(text)
    written = longer.generate(model, 4_000, Streams((0,), 0))[0]
    after = written[:, 1:][written[:, :-1] == 1]
    assert abs((after == 1).mean() - 3 / 8) < 5 * math.sqrt(0.25 / len(after))


def test_the_first_documents_do_not_depend_on_how_many_follow() -> None:
    """Human and written ones: so accumulate and its like share what they draw."""
    family = Ngram(order=2, length=5).on(TEXT)
    assert np.array_equal(documents(family, 50)[:, :20], documents(family, 20))
    model = family.fit(documents(family))
    many, few = (family.generate(model, n, Streams((3, 1), 4)) for n in (50, 20))
    assert np.array_equal(many[:, :20], few)
    first = documents(family, 600, (7,))[0]
    assert len({tuple(row) for row in first.tolist()} - {tuple(row) for row in TEXT.documents(5).tolist()}) == 0
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, TEXT.documents(5).tolist()))  # each of them once


@pytest.mark.parametrize("smoothing", ["witten_bell", "none"])
def test_every_metric_by_its_definition(smoothing: str) -> None:
    family = Ngram(order=2, length=5, smoothing=smoothing).on(TEXT)  # type: ignore[arg-type]
    data = documents(family, 30, (2,))
    scores = {name: value[0] for name, value in family.evaluate(family.fit(data), data).items()}
    found, whole = grams(data[0], 2), grams(TEXT.documents(5), 2)
    held_out = TEXT.held_out[:3_000].reshape(-1, 5)
    surprise = -np.mean([log_p(found, row, smoothing != "none") for row in held_out])
    assert scores["perplexity"] == pytest.approx(math.exp(surprise) if surprise < math.inf else math.inf)
    share, true = ({(c, t): n / total for c, after in level[1].items() for t, n in after.items()}
                   for level, total in ((found, 150), (whole, 3_000)))  # fmt: skip
    assert scores["support"] == len(share)
    assert scores["support_ratio"] == len(share) / len(true)
    assert scores["entropy"] == pytest.approx(-sum(p * math.log(p) for p in share.values()))
    both = {*share, *true}
    assert scores["total_variation"] == pytest.approx(sum(abs(share.get(k, 0) - true.get(k, 0)) for k in both) / 2)
    gap = 0.0
    for (context, token), p in true.items():
        after = whole[1][context]
        q = probability(found, (*BEGIN[:2], *context), token, smoothing != "none")
        gap += p * (math.log(after[token] / after.total()) - math.log(q)) if q else math.inf
    assert scores["kl_divergence"] == pytest.approx(gap)
    ranked = [token for token, _ in sorted(Counter(TEXT.train.tolist()).items(), key=lambda each: (-each[1], each[0]))]
    times, seen, used = Counter(TEXT.train.tolist()), set(data.ravel().tolist()), 0
    bands: dict[str, list[int]] = {"frequent": [], "middle": [], "rare": []}
    for token in ranked:
        middle = (used + times[token] / 2) / 3_000
        bands["frequent" if middle < 0.5 else "middle" if middle < 0.9 else "rare"].append(token)
        used += times[token]
    for band, tokens in bands.items():
        assert scores[f"survival_{band}"] == sum(token in seen for token in tokens) / len(tokens)
    assert scores["mass_rare"] == pytest.approx(np.isin(data, bands["rare"]).mean())


def test_the_distance_of_two_models_is_of_their_ngrams() -> None:
    """Jensen and Shannon's, by its definition; 0 of a model from itself."""
    family = Ngram(order=2, length=5).on(TEXT)
    one, other = documents(family, 30, (2,)), documents(family, 30, (3,))
    models = [family.fit(own) for own in (one, other)]
    p, q = ({(c, t): n / 150 for c, a in grams(own[0], 2)[1].items() for t, n in a.items()} for own in (one, other))
    middle = {key: (p.get(key, 0) + q.get(key, 0)) / 2 for key in {*p, *q}}
    expected = sum(sum(v * math.log(v / middle[k]) for k, v in each.items()) for each in (p, q)) / 2
    assert family.distance(*models, Streams((2,), 0))[0] == pytest.approx(expected)
    assert family.distance(models[0], models[0], Streams((2,), 0))[0] == pytest.approx(0.0, abs=1e-12)
    longer = Ngram(order=3, length=5).on(TEXT).fit(other)  # of which the pairs are compared
    assert family.distance(models[0], longer, Streams((2,), 0))[0] == pytest.approx(expected)


def test_lineages_of_ngram_models_read_one_another(tmp_path: Path) -> None:
    """Two orders over one vocabulary; another vocabulary, or another length, is refused in one line."""
    ecosystem = {"lineages": {"a": {}, "b": {"family": {"order": 3}}}, "mixing": [[0.5, 0.5], [0.5, 0.5]]}
    table = rows(study(ecosystem=ecosystem, generations=2), tmp_path)
    assert sorted(table["lineage"].unique().to_list()) == ["a", "b"]
    assert table.filter(generation=1)["perplexity"].is_finite().all()
    for key, value in {"length": 10, "vocabulary": 100}.items():
        other = {**ecosystem, "lineages": {"a": {}, "b": {"family": {key: value}}}}
        with pytest.raises(UserError, match=r"ecosystem\.lineages"):
            check_study(study(ecosystem=other), StageStore(tmp_path))


def test_a_judge_may_be_of_another_order(tmp_path: Path) -> None:
    """A verifier that is the trigram of the text; not one of other tokens."""
    by = {"kind": "verifier", "by": {"family": {"order": 3}}}
    table = rows(study(curation=by, generations=2), tmp_path)
    assert table.filter(generation=1)["perplexity"].is_finite().all()
    with pytest.raises(UserError, match="tokens and vocabulary are the text's"):
        study(curation={**by, "by": {"family": {"vocabulary": 20}}})


def conditional(found: list[Grams]) -> dict[tuple[tuple[int, ...], int], float]:
    return {(c, t): n / a.total() for c, a in found[-1].items() for t, n in a.items()}


@pytest.mark.parametrize("gamma", [0.3, 0.6, 0.95])
def test_tce_ends_at_its_threshold(gamma: float) -> None:
    """By p itself, not by rank: after each context the probabilities are those of gradient descent on its loss, run
    here in small steps: none above γ where others can take the rest, and these in proportion to their counts."""
    family = Ngram(order=2, length=6).on(TEXT)
    data = documents(family, 40, (4,))
    plain = conditional(grams(data[0], 2))
    model, kept = fit_with_loss(family, data, TruncatedCrossEntropy(gamma=gamma))
    top = model["counts"][0][-1]
    fitted = dict(zip(top.codes.tolist(), (top.counts / top.totals[top.context_of_each()]).tolist(), strict=True))
    above = sum(p > gamma for (c, t), p in plain.items() for _ in range(grams(data[0], 2)[-1][c][t]))
    assert kept[0] == pytest.approx(1 - above / data[0].size)
    for context, after in grams(data[0], 2)[-1].items():
        p = np.array([after[token] / after.total() for token in after])
        if len(p) * gamma <= 1:
            expected = np.full(len(p), 1 / len(p))
        else:
            low, high = 0.0, 1e9  # the factor of the others, by bisection
            for _ in range(200):
                middle = (low + high) / 2
                low, high = (middle, high) if np.minimum(p * middle, gamma).sum() < 1 else (low, middle)
            expected = np.minimum(p * high, gamma)
        ours = [fitted[context[0] * V + token] for token in after]
        np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_a_smooth_loss_is_at_rest() -> None:
    """Focal: after each context c·(−f′(log p)) is in proportion to p, which is flatter than the counts."""
    family = Ngram(order=2, length=6).on(TEXT)
    data = documents(family, 40, (4,))
    model, kept = fit_with_loss(family, data, Focal(gamma=2.0))
    top, found = model["counts"][0][-1], grams(data[0], 2)[-1]
    fitted = dict(zip(top.codes.tolist(), (top.counts / top.totals[top.context_of_each()]).tolist(), strict=True))
    assert kept[0] > 0.9
    for context, after in found.items():
        if len(after) == 1:
            continue
        p = np.array([fitted[context[0] * V + token] for token in after])
        pull = (1 - p) ** 2 - 2 * p * (1 - p) * np.log(p)
        pulled = np.array(list(after.values())) * pull
        np.testing.assert_allclose(pulled / pulled.sum(), p, rtol=1e-6)
        assert p.max() <= max(after.values()) / after.total() + 1e-9


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("word", ["the", "cat", ",", "the", "dog", "."]),
        ("character", list("the cat, the dog.")),
        ("byte", [f"{byte:02x}" for byte in b"the cat, the dog."]),
    ],
)
def test_texts_are_tokenised(tokens: str, expected: list[str]) -> None:
    """The most frequent tokens keep their names; the others, and those of the held-out text alone, are one."""
    train, held_out, names = tokenised("the cat, the dog.", "the é cow", tokens, 4)
    assert len(names) == 4
    assert names[-1] == "<other>"
    assert [names[token] for token in train] == [piece if piece in names[:3] else "<other>" for piece in expected]
    assert names[0] == min(expected, key=lambda piece: (-expected.count(piece), piece))
    assert set(held_out.tolist()) <= set(range(4))


def study(**changes: Any) -> Study:
    content = {
        "name": "ngrams",
        "family": {"kind": "ngram", "vocabulary": 300, "length": 20},
        "corpus": {"source": "pydoc"},
        "samples_per_generation": 100,
        "generations": 4,
        "vary": {"seed": [0, 1]},
        "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
        **changes,
    }
    return make_study(content, "ngrams.yaml")


def rows(asked: Study, root: Path) -> pl.DataFrame:
    store = StageStore(root)
    tasks = cohorts(asked.chains, check_study(asked, store))
    return pl.concat([cohort_rows(task, run_cohort(task, Steps(store))) for task in tasks], how="diagonal_relaxed")


def test_a_study_of_real_text_collapses_tails_first(tmp_path: Path) -> None:
    """Replacing on Python's documentation: rarer words go first, frequent ones stay, perplexity rises; human data kept
    or accumulated hold it; curation and weights apply."""
    regimes: list[dict[str, Any]] = [
        {"kind": "replace"},
        {"kind": "accumulate"},
        {"kind": "mixed", "synthetic_ratio": 0.5, "weights": {"human": 0.7}},
    ]
    table = rows(study(vary={"regime": regimes, "seed": [0, 1]}), tmp_path)
    last = table.filter(generation=3).group_by("regime.kind").agg(pl.col(pl.Float64).mean())
    of = {row["regime.kind"]: row for row in last.to_dicts()}
    first = table.filter(generation=0)["perplexity"].mean()
    assert of["replace"]["survival_rare"] < of["replace"]["survival_middle"] <= of["replace"]["survival_frequent"] == 1
    assert of["replace"]["perplexity"] > 1.2 * first
    assert max(of["accumulate"]["perplexity"], of["mixed"]["perplexity"]) < of["replace"]["perplexity"] / 1.1
    assert of["accumulate"]["survival_rare"] > of["mixed"]["survival_rare"] > of["replace"]["survival_rare"]
    assert table.filter(generation=0)["human_size"].unique().to_list() == [100]
    verified = rows(study(curation={"kind": "verifier", "keep": 0.5}), tmp_path)
    assert verified.filter(generation=3)["entropy"].mean() < of["replace"]["entropy"]


def test_a_text_is_known_by_its_content(tmp_path: Path) -> None:
    """The same stages wherever the file lies; others for another text, another vocabulary, another kind of token."""
    text = "\n\n".join(
        f"Paragraph {n} tells of {n % 7} cats and {n % 5} dogs, one after the other." for n in range(400)
    )
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(text)
    (tmp_path / "other.txt").write_text(text.replace("cats", "cows"))
    store, ids = StageStore(tmp_path / "store"), []
    for corpus, family in (
        ("one/text.txt", {}),
        ("two/text.txt", {}),
        ("other.txt", {}),
        ("one/text.txt", {"vocabulary": 20}),
        ("one/text.txt", {"tokens": "character"}),
    ):
        asked = study(
            corpus={"path": str(tmp_path / corpus)},
            family={"kind": "ngram", "length": 10, **family},
            samples_per_generation=20,
        )
        ids.append(cohorts(asked.chains, check_study(asked, store))[0].id)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": {"kind": "ngram", "order": 0}}, "family.order"),
        ({"family": {"kind": "ngram", "order": 5}}, "family.order"),
        ({"family": {"kind": "ngram", "tokens": "words"}}, "family.tokens"),
        ({"family": {"kind": "ngram", "vocabulary": 1}}, "family.vocabulary"),
        ({"family": {"kind": "ngram", "smoothing": "kneser_ney"}}, "family.smoothing"),
        ({"family": {"kind": "ngram", "ordr": 2}}, "did you mean order"),
        ({"corpus": {"path": "/no/such/text.txt"}}, "there is no /no/such/text.txt"),
        ({"corpus": {"source": "pydoc", "train_tokens": 100}}, "samples_per_generation and family.length decides"),
        ({"corpus": {"source": "pydoc", "order": "sequential"}}, "corpus.order"),
        ({"loss": {"kind": "lovasz"}}, "pointwise"),
        ({"samples_per_generation": 100_000}, "uses 100,000 human documents of 20 tokens in 4 generations"),
        ({"family": {"kind": "ngram", "length": 1_000_000}}, "family.length|human documents of 1000000"),
        ({"family": {"kind": "gaussian"}}, "corpus"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        check_study(study(**changes), StageStore(tmp_path))
    assert "\n" not in str(error.value)
