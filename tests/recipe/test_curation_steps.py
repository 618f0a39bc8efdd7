"""Steps of curation on samples: each keeps what its definition says, alone and in a list, and is measured against the
truth; what makes no sense is refused in one line that names the key."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from fortifai_ray.chain.cohort import cohorts, run_cohort
from fortifai_ray.errors import UserError
from fortifai_ray.families.analytic.base import Streams
from fortifai_ray.families.analytic.curating import Written, curated
from fortifai_ray.families.analytic.gaussian import Gaussian
from fortifai_ray.recipe.curation import (
    KEPT,
    PRECISION,
    RECALL,
    Curation,
    Several,
    Step,
    blocks,
    measured,
    of_written,
    sizes,
    together,
)
from fortifai_ray.storage.steps import Steps
from fortifai_ray.storage.store import StageStore
from fortifai_ray.study.study import make_study

FAMILY = Gaussian()
SEEDS = (3, 4, 5)


@pytest.fixture(autouse=True)
def _beside_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def curation(content: Any) -> Step | Several:
    return TypeAdapter(Curation).validate_python(content)


def written(n: int, std: float = 2.0) -> Written:
    """Samples of a model that is too wide and off the centre; generation 0 is a little wrong."""
    streams = Streams(SEEDS, 2)
    own = {"mean": np.full((3, 1), 0.5), "covariance": np.full((3, 1, 1), std**2)}
    first = {"mean": np.full((3, 1), 0.1), "covariance": np.full((3, 1, 1), 1.1)}
    samples = FAMILY.generate(own, n, streams)
    human = FAMILY.human(400, Streams(SEEDS, -1))
    places = np.broadcast_to(np.arange(n), (3, n))
    return Written(FAMILY, samples, places, human, {"own": own, "generation_0": first}, streams)


def curate(content: Any, size: int, n: int | None = None, **changes: Any) -> tuple[np.ndarray, dict[str, Any], Written]:
    asked = curation(content)
    items = written(int(asked.to_generate(size)) if n is None else n, **changes)
    kept, measures = curated(asked.steps, size, items)
    return kept[..., 0], measures, items


def log_normal(x: np.ndarray, mean: float = 0.0, variance: float = 1.0) -> np.ndarray:
    return -((x - mean) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2


@pytest.mark.parametrize(
    ("reward", "value"),
    [
        ("my_curation:first_number", lambda x: x),
        ({"function": "my_curation:first_number", "scale": -2.0}, lambda x: -2 * x),
        ("truth", log_normal),
        ("own", lambda x: log_normal(x, 0.5, 4.0)),
        ("generation_0", lambda x: log_normal(x, 0.1, 1.1)),
        ({"family": {"mean": 3.0, "std": 0.5}}, lambda x: log_normal(x, 3.0, 0.25)),
    ],
)
def test_the_best_of_each_four(reward: Any, value: Any) -> None:
    """By a loop over prompts, in the order in which they were written."""
    kept, measures, items = curate({"kind": "choice", "of": 4, "reward": reward}, 25)
    for own, samples in zip(kept, items.samples[..., 0], strict=True):
        assert own.tolist() == [max(four, key=value) for four in samples.reshape(25, 4)]
    assert measures[KEPT].tolist() == [0.25] * 3


@pytest.mark.parametrize(("of", "temperature"), [(2, 1.0), (5, 0.5), (3, 100.0)])
def test_a_choice_at_a_temperature(of: int, temperature: float) -> None:
    """Item k of each K is chosen with probability e^(r_k/T)/Σ e^(r_j/T): over 3·4000 choices the mean reward of the
    chosen is the mean of its expectations, to five standard errors."""
    step = {"kind": "choice", "of": of, "reward": "my_curation:first_number", "temperature": temperature}
    kept, _, items = curate(step, 4000)
    rewards = items.samples[..., 0].reshape(3, 4000, of)
    weights = np.exp(rewards / temperature)
    weights /= weights.sum(-1, keepdims=True)
    expected = (weights * rewards).sum(-1)
    spread = (weights * (rewards - expected[..., None]) ** 2).sum(-1)
    assert abs(kept.mean() - expected.mean()) < 5 * np.sqrt(spread.sum()) / kept.size


def test_a_choice_after_another_step_stays_within_its_prompts() -> None:
    """The best of the survivors of each prompt; a prompt without one gives nothing."""
    steps = [{"kind": "my_curation:Positive"}, {"kind": "choice", "of": 3, "reward": "my_curation:first_number"}]
    kept, _, items = curate(steps, 40, n=300)
    for own, samples in zip(kept, items.samples[..., 0], strict=True):
        groups = [[x for x in three if x > 0] for three in samples.reshape(100, 3)]
        survivors = [x for group in groups for x in group][:120]  # no more are asked of the first step
        expected = [max(x for x in group if x in survivors) for group in groups if set(group) & set(survivors)]
        assert own.tolist() == expected[:40]


def test_a_choice_among_samples_that_were_repeated_stays_within_its_prompts() -> None:
    """A step that lets fewer pass than are asked of it has its samples repeated. The last one written is among them,
    and the prompts are told by the samples' numbers all the same."""
    steps = [{"kind": "my_curation:Later"}, {"kind": "choice", "of": 2, "reward": "my_curation:first_number"}]
    kept, _, items = curate(steps, 20)
    for own, samples in zip(kept, items.samples[..., 0], strict=True):
        groups = [[samples[13]], *samples[14:].reshape(-1, 2).tolist()]
        assert set(own) == {max(group) for group in groups}


def test_two_choices_in_a_row() -> None:
    """The best of two, then the best of three such: the best of six."""
    twice = [{"kind": "choice", "of": k, "reward": "my_curation:first_number"} for k in (2, 3)]
    once = {"kind": "choice", "of": 6, "reward": "my_curation:first_number"}
    assert curate(twice, 20)[0].tolist() == curate(once, 20)[0].tolist()
    assert blocks(curation(twice).steps) == [2, 6]


@pytest.mark.parametrize(("accept", "reject"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.25, 0.1)])
def test_a_stated_error_rate(accept: float, reject: float) -> None:
    """Over 3·20,000 verdicts, recall is 1 − false_reject and the share of wrong items that pass false_accept, to five
    standard errors; precision and recall are those of a loop over the items."""
    step = {"kind": "verifier", "by": "truth", "false_accept": accept, "false_reject": reject, "keep": 0.1}
    kept, measures, items = curate(step, 2000)
    human = log_normal(FAMILY.human(400, Streams(SEEDS, -1))[..., 0])
    true = log_normal(items.samples[..., 0]) >= np.quantile(human, 0.05, axis=1)[:, None]
    passed = measures[KEPT] * 20_000
    hits = measures[PRECISION] * passed
    assert hits == pytest.approx(measures[RECALL] * true.sum(1))
    for rate, given, of in (
        (reject, 1 - hits / true.sum(1), true.sum(1)),
        (accept, (passed - hits) / (~true).sum(1), (~true).sum(1)),
    ):
        assert np.all(np.abs(given - rate) <= 5 * np.sqrt(rate * (1 - rate) / of) + 1e-12)
    if accept == reject == 0.0:
        for own, samples, right in zip(kept, items.samples[..., 0], true, strict=True):
            assert own.tolist() == samples[right][:2000].tolist()


def test_precision_and_recall_of_a_ranking() -> None:
    """By generation 0, against the truth, counted one by one."""
    _, measures, items = curate({"kind": "verifier", "keep": 0.25}, 50)
    human = log_normal(FAMILY.human(400, Streams(SEEDS, -1))[..., 0])
    for chain, samples in enumerate(items.samples[..., 0]):
        scores = log_normal(samples, 0.1, 1.1)
        chosen = set(sorted(range(200), key=lambda i: -scores[i])[:50])
        true = {i for i in range(200) if log_normal(samples[i]) >= np.quantile(human[chain], 0.05)}
        assert measures[PRECISION][chain] == pytest.approx(len(chosen & true) / 50)
        assert measures[RECALL][chain] == pytest.approx(len(chosen & true) / len(true))


def test_a_list_is_one_step_after_the_other() -> None:
    """The same samples as by hand; shares and recalls multiply, and the precision is the last step's."""
    steps = [{"kind": "surplexity", "keep": 0.5}, {"kind": "verifier", "keep": 0.25}]
    kept, measures, items = curate(steps, 10)
    for chain, samples in enumerate(items.samples[..., 0]):
        half = sorted(sorted(range(80), key=lambda i: log_normal(samples[i], 0.5, 4.0))[:40])
        ten = sorted(sorted(half, key=lambda i: -log_normal(samples[i], 0.1, 1.1))[:10])
        assert kept[chain].tolist() == samples[ten].tolist()
    assert measures[KEPT] == pytest.approx(0.125)
    assert measures[RECALL] == pytest.approx(measures[f"{RECALL}_1"] * measures[f"{RECALL}_2"])
    assert measures[PRECISION].tolist() == measures[f"{PRECISION}_2"].tolist()


RULES: dict[str, Any] = {
    "my_curation:EveryOther": lambda x: list(range(0, len(x), 2)),
    "my_curation:Later": lambda x: list(range(len(x) // 3, len(x))),
    "my_curation:Positive": lambda x: [place for place, value in enumerate(x) if value > 0],
}


@pytest.mark.parametrize(
    ("kinds", "n"),
    [
        (("EveryOther", "Later"), 60),
        (("Later", "EveryOther"), 31),  # fewer pass than are asked for, and are repeated
        (("Positive", "EveryOther", "Later"), 40),
        (("Later", "Positive"), 200),  # more pass than are asked for: the rest is never read
        (("EveryOther", "EveryOther", "EveryOther"), 80),
    ],
)
def test_what_all_steps_let_pass_is_counted(kinds: tuple[str, ...], n: int) -> None:
    """Share, precision and recall of a list, by an own loop over numbered items: of those that were written, those that
    came through every step, each counted once."""
    names = [f"my_curation:{kind}" for kind in kinds]
    asked = curation([{"kind": name} for name in names])
    _, measures, items = curate([{"kind": name} for name in names], 20, n=n)
    human = log_normal(FAMILY.human(400, Streams(SEEDS, -1))[..., 0])
    for chain, samples in enumerate(items.samples[..., 0]):
        now, came = list(range(n)), list[int]()
        for name, needed in zip(names, sizes(asked.steps, 20), strict=True):
            came = [now[place] for place in RULES[name]([samples[item] for item in now])]
            now = sorted((came * n)[: int(needed)], key=came.index)
        true = {i for i in range(n) if log_normal(samples[i]) >= np.quantile(human[chain], 0.05)}
        assert measures[KEPT][chain] == pytest.approx(len(set(came)) / n)
        assert measures[PRECISION][chain] == pytest.approx(len(set(came) & true) / len(set(came)))
        assert measures[RECALL][chain] == pytest.approx(len(set(came) & true) / len(true))


VERIFIER, COPIES = {"kind": "verifier", "by": "truth"}, {"kind": "deduplicate"}
CHOICE, MARK = {"kind": "choice", "reward": "truth"}, {"kind": "watermark"}


@pytest.mark.parametrize(
    ("steps", "truth", "whole", "numbered"),
    [
        ([VERIFIER], True, "kept precision recall", ""),
        ([VERIFIER], False, "kept", ""),
        ([VERIFIER, CHOICE], True, "kept precision recall reward", "kept precision recall"),
        ([VERIFIER, COPIES], True, "kept", "kept precision_1 recall_1"),  # a copy is not wrong: there is no one truth
        ([CHOICE, CHOICE], False, "kept", "kept reward"),
        ([CHOICE, MARK], False, "kept reward really detected", "kept precision_2 recall_2"),
        ([MARK, MARK], False, "kept precision recall", "kept precision recall really detected"),
        ([VERIFIER, MARK], True, "kept really detected", "kept precision recall"),  # two truths
        ([{"kind": "detector"}], True, "found_right found auroc", ""),
        ([VERIFIER, {"kind": "detector"}], True, "kept precision recall found_right found auroc", ""),
    ],
)
def test_what_a_list_of_steps_tells(steps: list[dict[str, Any]], truth: bool, whole: str, numbered: str) -> None:
    """Precision and recall of the whole where all steps have one truth, and of each step by its own; what two steps
    measure has no name without a number. What is declared is what is measured."""
    names = {
        **dict(kept=KEPT, precision=PRECISION, recall=RECALL, reward="curation_reward"),
        **dict(really="detection_precision", detected="detection_recall"),
        **dict(found_right="detector_precision", found="detector_recall", auroc="detector_auroc"),
    }
    asked = curation(steps).steps
    expected = [names[name] for name in whole.split()]
    for name in numbered.split():
        stem, _, number = name.partition("_")
        expected += [f"{names[stem]}_{place}" for place in ([number] if number else range(1, len(steps) + 1))]
    declared = [name for name in measured(asked, truth=truth) if name in expected]
    assert sorted(measured(asked, truth=truth)) == sorted(expected) == sorted(declared)

    each: list[dict[str, Any]] = []
    for step in of_written(asked):
        known = step.truth_is == "unmarked" or (truth and step.truth_is is not None)
        own = (KEPT, *((PRECISION, RECALL) if known else ()), *step.measures)
        each.append(dict.fromkeys(own, 0.5))
    if each:
        one = (KEPT, *((PRECISION, RECALL) if "precision" in whole.split() else ()))
        assert set(together(each, dict.fromkeys(one, 0.5))) <= set(expected)
        assert set(together(each, dict.fromkeys(one, 0.5))) >= {name for name in expected if "detector" not in name}


def test_a_list_of_one_is_that_step() -> None:
    """So both are one chain; and what is generated for a list is enough for each step."""
    assert curation([{"kind": "verifier"}]) == curation({"kind": "verifier"})
    several = curation([{"kind": "verifier", "keep": 0.3}, {"kind": "choice", "of": 4}, {"kind": "surplexity"}])
    assert sizes(several.steps, 10) == [80, 20, 10]
    assert several.to_generate(10) == 267


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("my_curation:EveryOther", lambda x: x[::2]),
        ("my_curation:LikelyHalf", lambda x: x[log_normal(x, 0.5, 4.0) >= np.median(log_normal(x, 0.5, 4.0))]),
    ],
)
def test_a_step_of_ones_own(kind: str, expected: Any) -> None:
    """Called chain by chain with samples and scores; the few that pass are repeated in turn where more are needed."""
    kept, measures, items = curate({"kind": kind}, 60, n=60)
    for own, samples in zip(kept, items.samples[..., 0], strict=True):
        passed = expected(samples)
        assert own.tolist() == [x for x in passed for _ in range(2)][:60]
    assert measures[KEPT].tolist() == [0.5] * 3


def test_a_step_that_draws_is_reproducible() -> None:
    """The same draws for the same seed, generation and step; others for the next chain."""
    first, second = (curate({"kind": "my_curation:Random"}, 20, n=40)[0] for _ in range(2))
    assert first.tolist() == second.tolist()
    alone = [set(row) for row in first]
    assert not any(a & b for a, b in itertools.combinations(alone, 2))


STUDY: dict[str, Any] = {
    "name": "curated",
    "family": {"kind": "gaussian"},
    "samples_per_generation": 20,
    "generations": 3,
    "vary": {"seed": {"count": 2}},
    "collapse": {"metric": "kl_divergence", "threshold": 0.5, "direction": "above", "relative_to": "absolute"},
}
LANGUAGE: dict[str, Any] = {
    "name": "texts",
    "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}},
    "corpus": {"source": "pydoc", "train_tokens": 4096},
    "generations": 2,
    "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
}
VAE: dict[str, Any] = {
    "name": "pictures",
    "family": {"kind": "vae"},
    "samples_per_generation": 200,
    "generations": 2,
    "collapse": {"metric": "elbo", "threshold": 2.0, "direction": "above"},
}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"kind": "verifier", "keep": 0}, r"curation\.keep: .*greater than 0"),
        ({"kind": "verifier", "keep": 1.5}, r"curation\.keep: .*less than or equal to 1"),
        ({"kind": "verifier", "keep": True}, r"curation\.keep: a number is needed"),
        ([{"kind": "surplexity"}, {"kind": "verifier", "keep": 0}], r"curation\.1\.keep: .*greater than 0"),
        ([], r"curation: this list of steps is empty"),
        ([{"kind": "none"}, {"kind": "verifier"}], r"curation\.0\.kind: none keeps everything"),
        ([[{"kind": "verifier"}]], r"curation\.0: a curation is a section"),
        ("verifier", r"curation: a curation is a section"),
        ({"keep": 0.5}, r"curation\.kind: this key is needed and missing"),
        ({"kind": "verifyer"}, r"curation\.kind: there is no verifyer; .*did you mean verifier\?"),
        ([{"kind": "verifier"}, {"kind": "chioce"}], r"curation\.1\.kind: there is no chioce; .*did you mean choice\?"),
        ({"kind": "choice", "of": 0}, r"curation\.of: a number greater than or equal to 1 is needed, not 0"),
        ({"kind": "choice", "of": 2.5}, r"curation\.of: "),
        ({"kind": "choice", "temperature": -1}, r"curation\.temperature: "),
        ({"kind": "choice", "reward": "likelihood"}, r"curation\.reward: .*there is no judge 'likelihood'"),
        (
            {"kind": "choice", "reward": "my_curation:letter"},
            r"curation\.reward.*: .*has no letter; did you mean letters",
        ),
        ({"kind": "choice", "reward": "no_such_module:f"}, r"curation\.reward.*: there is no module no_such_module"),
        ({"kind": "verifier", "by": "generation_1"}, r"curation\.by: there is no judge .*did you mean generation_0"),
        ({"kind": "verifier", "by": {}}, r"curation\.by: give one of model .* and family"),
        ({"kind": "verifier", "by": {"modle": {}}}, r"curation\.by\.modle: unknown key"),
        ({"kind": "verifier", "by": {"family": {"width": 1}}}, r"curation\.by\.family\.width: "),
        (
            {"kind": "verifier", "by": {"family": {"std": -1.0}}},
            r"curation\.by\.family\.std: a number greater than 0 is needed",
        ),
        ({"kind": "verifier", "by": {"family": {"kind": "kde"}}}, r"curation\.by\.family\.kind: it is the chain's"),
        ({"kind": "verifier", "by": {"model": {"hub": "a/b"}}}, r"curation\.by: model is of language models"),
        ({"kind": "verifier", "false_accept": 0.1}, r"false_accept: an error rate is against the truth: add by: truth"),
        (
            {"kind": "verifier", "by": "truth", "false_reject": 1.0},
            r"curation\.false_reject: a number less than 1 is needed",
        ),
        (
            {"kind": "verifier", "by": "truth", "false_accept": 0, "select": "typical"},
            r"select: a verdict .* ranks nothing",
        ),
        ({"kind": "deduplicate"}, r"curation: deduplicate is for texts, and gaussian writes samples of numbers"),
        ({"kind": "my_curation:Missing"}, r"curation\.kind: my_curation has no Missing"),
        ({"kind": "my_curation:letters"}, r"curation\.kind: my_curation:letters is not a class"),
        ({"kind": "my_curation:NoKeep"}, r"curation\.kind: my_curation:NoKeep has no method keep"),
        ({"kind": "my_curation:Greedy"}, r"curation\.kind: my_curation:Greedy\.share is the planned share"),
        ({"kind": "my_curation:Positive", "abov": 1}, r"curation\.abov: unknown key: my_curation:Positive takes above"),
        (
            {"kind": "choice", "reward": {"function": "my_curation:first_number", "scal": 2}},
            r"curation\.reward: scal: unknown key: my_curation:first_number takes scale",
        ),
        (
            {"kind": "choice", "reward": {"function": "my_curation:letters", "scale": 2}},
            r"curation\.reward: scale: unknown key: my_curation:letters takes no settings",
        ),
        (
            {"kind": "choice", "reward": {"function": "my_curation:nearest", "to": 1.0}},
            r"curation\.reward: of: this setting of my_curation:nearest is needed and missing",
        ),
        (
            {"kind": "choice", "reward": "my_curation:nearest"},
            r"curation\.reward: of: this setting of my_curation:nearest is needed and missing",
        ),
    ],
)
def test_refused_before_anything_starts(content: Any, said: str) -> None:
    """In one line that begins with the file and names the key."""
    with pytest.raises(UserError, match=rf"^curated\.yaml: .*{said}") as error:
        make_study({**STUDY, "curation": content}, "curated.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("study", "content", "said"),
    [
        (LANGUAGE, {"kind": "verifier", "by": "truth"}, r"curation\.by: the truth of texts is not known"),
        (LANGUAGE, {"kind": "choice", "reward": "truth"}, r"curation\.reward: the truth of texts is not known"),
        (LANGUAGE, {"kind": "verifier", "by": {"family": {"std": 2}}}, r"curation\.by: model is of language models"),
        (VAE, [{"kind": "surplexity"}, {"kind": "verifier", "by": "truth"}], r"curation\.1\.by: the truth of images"),
        (VAE, {"kind": "verifier", "by": {"model": {"hub": "a/b"}}}, r"curation\.by: "),
    ],
)
def test_a_step_that_a_family_cannot_take(study: dict[str, Any], content: Any, said: str) -> None:
    """Texts and images have no known truth, and another family's judge is none of theirs."""
    with pytest.raises(UserError, match=rf"^study\.yaml: {said}"):
        make_study({**study, "curation": content}, "study.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"kind": "choice", "reward": "my_curation:raises"},
            r"curation\.reward: my_curation:raises failed: ValueError: no reward today, at my_curation.py:\d+ "
            r"\(generation 0, seed 0\)$",
        ),
        ({"kind": "choice", "reward": "my_curation:one_short"}, r"my_curation:one_short must return 40 numbers"),
        ({"kind": "choice", "reward": "my_curation:some_nan"}, r"my_curation:some_nan returned NaN for 1 of 40 items"),
        ({"kind": "my_curation:Fails"}, r"curation\.kind: my_curation:Fails\.keep failed: RuntimeError: no luck"),
        ({"kind": "my_curation:ByNobody"}, r"no judge 'generation_1'; did you mean generation_0\?"),
        ({"kind": "my_curation:OutOfRange"}, r"must return different indices from 0 to 19"),
        ({"kind": "my_curation:Twice"}, r"must return different indices from 0 to 19"),
        ({"kind": "my_curation:Words"}, r"must return indices of items"),
        ({"kind": "my_curation:Nothing"}, r"my_curation:Nothing lets none of the samples pass that seed 0 wrote"),
    ],
)
def test_what_only_its_run_can_tell(content: Any, said: str, tmp_path: Path) -> None:
    """A user's code that fails or answers wrongly is one line too."""
    (task,) = cohorts(make_study({**STUDY, "curation": content}, "curated.yaml").chains)
    with pytest.raises(UserError, match=said):
        run_cohort(task, Steps(StageStore(tmp_path)))


def test_a_users_code_is_part_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another source, another stage; an ordinary curation keeps the stage that it had before there were others."""
    keys = []
    for number, text in enumerate(("return [0]", "return [1]")):
        name = f"own_filter_{number}"
        (tmp_path / f"{name}.py").write_text(f"class Filter:\n    def keep(self, items):\n        {text}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        (task,) = cohorts(make_study({**STUDY, "curation": {"kind": f"{name}:Filter"}}, "curated.yaml").chains)
        keys.append(task.key.inputs["curation"])
    assert keys[0] != keys[1]
    (plain,) = cohorts(make_study({**STUDY, "curation": {"kind": "verifier"}}, "curated.yaml").chains)
    assert "curation" not in plain.key.inputs
    assert plain.recipe.model_dump(mode="json")["curation"] == {
        "kind": "verifier",
        "keep": 0.5,
        "by": "generation_0",
        "select": "likeliest",
    }
