"""Language chains that look for synthetic text: what a watermark or a classifier finds, what is trained on, what the
tables say of it, from end to end without Ray; the classifier and the resampling against what is known of them."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fortifai_ray.chain.chain import ChainTask, GenerationResult, run_chain
from fortifai_ray.engines.in_process import InProcess
from fortifai_ray.engines.watermark import GreenLists, WatermarkConfig
from fortifai_ray.errors import UserError
from fortifai_ray.families.detector import decisions, fit
from fortifai_ray.families.language.data import read_corpus
from fortifai_ray.families.language.detecting import features
from fortifai_ray.recipe.curation import resampled
from fortifai_ray.recipe.pools import Draw, Pool, TrainingSet
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import make_study
from fortifai_ray.sweep.preflight import check_study

CONTENT: dict[str, Any] = {
    "name": "detection",
    "family": {
        "kind": "language",
        "model": {"preset": "llama-tiny", "vocab_size": 512, "hidden_size": 32, "layers": 1},
    },
    "corpus": {"source": "pydoc", "train_tokens": 8192},
    "decoding": {"temperature": 1.0, "max_new_tokens": 48, "context_tokens": 8},
    "training": {"epochs": 1, "batch_size": 4, "block_size": 64, "learning_rate": 1e-3},
    "evaluation": {"sample_texts": 2},
    "engine": {"kind": "huggingface"},
    "regime": {"kind": "mixed", "synthetic_ratio": 0.5},
    "generations": 2,
    "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
}
MARK = {"strength": 6.0, "green": 0.5, "share": 0.5}


def changed(**keys: Any) -> dict[str, Any]:
    """The study with some dotted keys changed."""
    content = deepcopy(CONTENT)
    for key, value in keys.items():
        *sections, last = key.split("__")
        part = content
        for section in sections:
            part = part[section]
        part[last] = value
    return content


def run(content: dict[str, Any], storage: Path, *, replay: bool = False) -> tuple[list[GenerationResult], Steps]:
    study, store = make_study(content, "detection.yaml"), StageStore(storage)
    steps = Steps(store, replay=replay)
    return list(run_chain(ChainTask.of(study, study.chains[0], check_study(study, store)), steps, InProcess())), steps


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: generation 0 is trained once."""
    return tmp_path_factory.mktemp("storage")


def test_marked_rows_are_removed(storage: Path) -> None:
    """The curated corpus holds the rows whose z-score is at most the threshold; precision and recall are those against
    the rows that were marked; the next generation trains on what is left, which nothing replaces."""
    curation = {"kind": "watermark", "z": 3.0}
    (first, second), _ = run(changed(decoding__watermark=MARK, curation=curation), storage)
    corpus = StageStore(storage).open(first.row["synthetic_stage"])
    assert corpus is not None
    kept = read_corpus(corpus.path / "corpus")
    (log,) = first.details["curation"]
    assert second.row["synthetic_size"] == 48 * len(kept)
    assert second.row["synthetic_ratio_realised"] < 0.5
    assert log["passed"] == len(kept)

    config = WatermarkConfig(**MARK)
    marked = np.array([config.marks(seed) for seed in kept["seed"].to_pylist()])
    scores = GreenLists(config, 512).z_scores(kept["prompt_ids"].to_pylist(), kept["generated_ids"].to_pylist())
    assert scores.max() <= 3.0
    assert first.row["curation_precision"] == pytest.approx((~marked).mean())
    assert first.row["curated_kept"] == pytest.approx(len(kept) / log["read"])
    assert first.row["detection_recall"] > 0.9  # δ = 6 over 48 tokens: z is about √48
    assert first.row["detection_precision"] > 0.9


def test_two_thresholds_in_a_row_are_counted_together(storage: Path) -> None:
    """Precision, recall and share of both by the marks of all written rows; each step has its own beside."""
    curation = [{"kind": "watermark", "z": 6.9}, {"kind": "watermark", "z": 6.36}]
    (first, _), _ = run(changed(decoding__watermark=MARK, curation=curation), storage)
    stages, corpora = storage / "stages", [first.row["synthetic_stage"]]
    while (manifest := json.loads((stages / corpora[-1] / "manifest.json").read_text()))["kind"] == "curate":
        corpora.append(manifest["inputs"]["written"])
    config, seeds = WatermarkConfig(**MARK), [read_corpus(stages / one / "corpus")["seed"] for one in corpora]
    kept, between, written = ([config.marks(seed) for seed in each.to_pylist()] for each in seeds)
    assert 0 < sum(kept) < sum(between) < sum(written)
    expected = {
        "curated_kept": len(kept) / len(written),
        "curation_precision": kept.count(False) / len(kept),
        "curation_recall": kept.count(False) / written.count(False),
        "curation_recall_2": kept.count(False) / between.count(False),
        "detection_recall_1": 1 - sum(between) / sum(written),
        "detection_recall_2": 1 - sum(kept) / sum(between),
    }
    assert {name: first.row[name] for name in expected} == pytest.approx(expected)
    assert not {"detection_recall", "detection_precision"} & first.row.keys()


def test_a_pool_of_synthetic_text_alone_is_judged(storage: Path) -> None:
    """A ratio of 1 may end a grid: text that looks human is drawn more often, and nobody is told from anybody."""
    content = changed(curation={"kind": "detector"}, regime__synthetic_ratio=1.0)
    (_, second), _ = run(content, storage)
    assert second.row["synthetic_ratio_realised"] == 1.0
    assert (second.row["detector_auroc"], second.row["detector_precision"]) == (None, 1.0)
    assert second.row["detector_recall"] > 0.9


def test_a_chain_whose_text_is_all_found_out_ends(storage: Path) -> None:
    """Under replace, nothing is left to train on: a collapse with its reason, not an error."""
    mark = {"strength": 50.0, "green": 0.5}
    content = changed(decoding__watermark=mark, curation={"kind": "watermark"}, regime={"kind": "replace"})
    (first, second), _ = run(content, storage)
    assert first.row["detection_recall"] == 1.0
    assert first.row["curated_kept"] == 0.0
    assert "the training set is empty" in second.row["collapse_reason"]


def test_a_pool_is_resampled_by_what_the_classifier_takes_for_human(storage: Path) -> None:
    """The tables tell the truth of what is trained on: hardly any synthetic text of so weak a model; a third where half
    of it escapes; as much as in the pool where all of it does, or the draw is blind. A replay finds every stage."""
    rows = {}
    kinds = {"plain": {}, "half": {"escape": 0.5}, "blind": {"bias": 0.0}, "escaped": {"escape": 1.0, "bias": 2.0}}
    for name, keys in kinds.items():
        content = changed(curation={"kind": "detector", **keys})
        (first, second), _ = run(content, storage)
        assert first.row["synthetic_size"] == 0
        assert first.row["detector_auroc"] is None
        size = second.row["human_size"] + second.row["synthetic_size"]
        assert abs(size - first.row["human_size"]) <= 128  # two items
        rows[name] = second.row
        again, steps = run(content, storage, replay=True)
        assert steps.computed == 0
        assert [one.row["perplexity"] for one in again] == [first.row["perplexity"], second.row["perplexity"]]
    ratio = {name: row["synthetic_ratio_realised"] for name, row in rows.items()}
    assert ratio["plain"] < 0.05
    assert rows["plain"]["detector_auroc"] > 0.95
    assert rows["plain"]["detector_recall"] > 0.9
    chance = 4 * 0.5 / 128**0.5  # of a share of some 128 draws
    assert abs(ratio["half"] - 1 / 3) < chance
    (_, untouched), _ = run(CONTENT, storage)
    assert [rows["blind"][key] for key in ("synthetic_size", "stage")] == [
        untouched.row[key] for key in ("synthetic_size", "stage")
    ]
    assert abs(ratio["escaped"] - 0.5) < chance
    assert abs(rows["escaped"]["detector_auroc"] - 0.5) < 4 * (12 * 64) ** -0.5 * 1.5  # of two samples of 64


@pytest.mark.parametrize(
    ("keys", "has"),
    [
        ({"corpus__train_tokens": 64, "training__batch_size": 1}, "1 and 2"),
        ({"regime": {"kind": "mixed", "synthetic_ratio": 0.0}, "evaluation": {"sample_texts": 0}}, "128 and 1"),
    ],
)
def test_a_detector_needs_examples(keys: dict[str, Any], has: str, storage: Path) -> None:
    content = changed(curation={"kind": "detector"}, **keys)
    with pytest.raises(UserError, match=rf"^detection.yaml: curation.kind: .*it has {has}: "):
        check_study(make_study(content, "detection.yaml"), StageStore(storage))


def test_both_ways_of_finding_text_are_told_apart(storage: Path) -> None:
    """A watermark that is removed before the rest is judged as a pool: each has its own measures, of its own text."""
    curation = [{"kind": "watermark"}, {"kind": "detector"}]
    (first, second), _ = run(changed(decoding__watermark=MARK, curation=curation), storage)
    assert first.row["detection_recall"] > 0.9
    assert [first.row[name] for name in ("detector_recall", "detector_auroc")] == [None, None]
    assert second.row["detection_recall"] is None
    assert second.row["detector_auroc"] > 0.9
    assert [each["kind"] for each in first.details["curation"]] == ["watermark"]


def test_the_classifier_does_not_recognise_its_examples() -> None:
    """Text of one law under either name is not told apart, though both were examples; text of two laws is, and the
    probabilities are those that occur (within four standard errors)."""
    random = np.random.default_rng(0)
    law, other = random.dirichlet(np.full(300, 0.3)), random.dirichlet(np.full(300, 0.3))
    same = [random.choice(300, 40, p=law) for _ in range(400)]
    mixed = 0.8 * law + 0.2 * other
    near = same[:200] + [random.choice(300, 40, p=mixed) for _ in range(200)]
    human = np.arange(400) < 200
    for texts, low, high in ((same, 0.4, 0.6), (near, 0.65, 1.0)):
        known = fit(features(texts), human)
        found = decisions(known, features(texts), known["folds"].tolist())
        np.testing.assert_allclose(found, known["decisions"])
        auroc = (found[:200, None] > found[None, 200:]).mean()
        assert low <= auroc <= high
        slope, intercept = known["calibration"]
        probability = 1 / (1 + np.exp(-(slope * found + intercept)))
        likely = probability > np.median(probability)
        for part in (likely, ~likely):
            assert abs(human[part].mean() - probability[part].mean()) < 4 * 0.5 / part.sum() ** 0.5
    unseen = [random.choice(300, 40, p=mixed) for _ in range(200)]
    decided = [decisions(known, features(texts), [-1] * 200).mean() for texts in (unseen, near[:200])]
    assert decided[0] < decided[1]


def test_features_are_counts_within_a_text_at_norm_one() -> None:
    """Protects against a length that gives a text away, and pairs that run from one text into the next."""
    ab, ba = np.array([1, 2]), np.array([2, 1])
    found = features([ab, ba, np.concatenate([ab] * 30), np.zeros(0, np.int32)])
    assert found.shape[0] == 4
    assert np.sqrt(np.asarray(found.multiply(found).sum(1)).ravel()).tolist() == pytest.approx([1, 1, 1, 0])
    assert found[0].nnz == found[1].nnz == 3  # two tokens and a pair
    assert found[2].nnz == 4


def test_items_are_drawn_in_proportion_to_their_weights() -> None:
    """4,000 sets: each item as often as it is due, on average (within five standard errors of a rounding), and never
    more than one off; the set's size within two items; equal weights give the set itself; a row without tokens is
    never drawn."""
    human = Pool("human", np.full(5, 12), synthetic=False)
    written = Pool("written", np.array([10, 0, 8]), synthetic=True)
    data = TrainingSet((Draw(human, np.array([4, 2])), Draw(written, np.array([0, 1, 2, 2]))))
    weights = np.array([1.0, 4.0, 2.0, 9.0, 1.0, 0.0])
    due = weights * (12 + 12 + 10 + 8 + 8) / (12 * 1 + 12 * 4 + 10 * 2 + 8 * 1)
    due = np.array([[0, 0, due[1], 0, due[0]], [due[2], 0, due[4], 0, 0]])
    counts = np.zeros((4000, 2, 5))
    for seed in range(4000):
        drawn = resampled(data, weights, np.random.default_rng(seed))
        assert abs(drawn.human_size + drawn.synthetic_size - 50) <= 24
        for draw in drawn.draws:
            np.add.at(counts[seed, int(draw.pool.synthetic)], draw.items, 1)
    assert (abs(counts - due) < 1).all()
    assert (abs(counts.mean(0) - due) <= 5 * 0.5 / 4000**0.5).all()
    same = resampled(data, np.ones(6), np.random.default_rng(0))
    assert [draw.items.tolist() for draw in same.draws] == [[4, 2], [0, 2, 2]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"curation": {"kind": "watermark"}}, r"curation.kind: watermark looks for a mark .* decoding.watermark"),
        ({"curation": {"kind": "watermarks"}}, r"curation.kind: there is no watermarks.*watermark"),
        ({"curation": {"kind": "watermark", "z": "high"}}, r"curation.z"),
        ({"curation": {"kind": "detector", "bias": -1}}, r"curation.bias"),
        ({"curation": {"kind": "detector", "escape": 1.5}}, r"curation.escape"),
        ({"curation": {"kind": "detector"}, "regime": {"kind": "replace"}}, r"regime: replace has none"),
        (
            {"curation": {"kind": "detector"}, "regime": {"kind": "fixed_human", "human": 0, "synthetic": 640}},
            r"regime: fixed_human has none",
        ),
        ({"curation": {"kind": "detector"}, "training__pack": "running"}, r"leave training.pack out"),
        ({"curation": [{"kind": "detector"}, {"kind": "verifier"}]}, r"curation.0.kind: detector .* put it last"),
        ({"decoding__watermark": {"green": 1.0}}, r"decoding.watermark.green: .*lies in \(0, 1\)"),
        ({"decoding__watermark": {"strength": -1}}, r"decoding.watermark.strength"),
        ({"decoding__watermark": {}, "decoding__num_beams": 5, "decoding__temperature": 1.0}, r"num_beams: 5"),
        ({"decoding__watermark": {"context": 9}}, r"watermark.context: a row begins with context_tokens: 8"),
        (
            {
                "curation": {"kind": "watermark"},
                "family": {"kind": "gaussian", "dim": 1},
                "samples_per_generation": 10,
            },
            r"watermark is for texts, and this family writes samples",
        ),
    ],
)
def test_what_cannot_be_detected_is_refused(keys: dict[str, Any], message: str) -> None:
    """One line with the key, before anything starts."""
    content = changed(**keys)
    if "samples_per_generation" in content:
        content = {key: value for key, value in content.items() if key not in _OF_LANGUAGE}
        content["collapse"] = {"metric": "trace_ratio", "threshold": 0.5, "direction": "below"}
    with pytest.raises(UserError, match=message) as error:
        make_study(content, "detection.yaml")
    assert "\n" not in str(error.value)


_OF_LANGUAGE = ("corpus", "decoding", "training", "evaluation", "engine")
