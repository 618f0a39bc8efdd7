"""What is said of content that does not fit: the key as the file has it, and what was meant."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import fortifai_ray
from fortifai_ray.errors import UserError
from fortifai_ray.families.analytic.recipe import AnalyticRecipe
from fortifai_ray.families.images.recipe import ImageRecipe
from fortifai_ray.families.language.recipe import LanguageRecipe
from fortifai_ray.study.study import StudySettings, make_study
from fortifai_ray.validation.keys import dotted_keys, hint
from fortifai_ray.validation.synonyms import KEYS, REMARKS, WORDS, normalised

_LANGUAGE: dict[str, Any] = {
    "name": "tiny",
    "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}},
    "corpus": {"source": "pydoc", "train_tokens": 4096},
    "regime": {"kind": "mixed", "synthetic_ratio": 1.0},
    "generations": 3,
    "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
}
_GAUSSIAN: dict[str, Any] = {
    "name": "tiny",
    "family": {"kind": "gaussian", "dim": 1},
    "generations": 3,
    "collapse": {"metric": "trace_ratio", "threshold": 0.5, "direction": "below"},
}


def said(base: dict[str, Any], *overrides: str, **changes: Any) -> str:
    """What a study is refused with, after the file's name."""
    with pytest.raises(UserError) as error:
        make_study({**base, **changes}, "s.yaml", overrides)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("s.yaml: ")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *((name, "learning_rate") for name in ("lr", "LR", "learningRate", "Learning-Rate", "peak_lr", "eta")),
        *((name, "batch_size") for name in ("bs", "per_device_train_batch_size", "train_batch_size", "Batch-Size")),
        *((name, "epochs") for name in ("num_train_epochs", "max_epochs", "n_epochs", "epoch", "num_epochs", "epcohs")),
        *((name, "block_size") for name in ("max_length", "max_seq_length", "seq_len", "n_ctx", "sequence_length")),
        *((name, "decoding.max_new_tokens") for name in ("max_tokens", "maxTokens", "max_gen_toks")),
        *((name, "decoding.temperature") for name in ("temp", "sampling_temperature")),
        *((name, "loss.gamma") for name in ("γ", "clip_gamma", "clipped_gamma")),
        *((name, "precision") for name in ("fp16", "bf16", "mixed_precision", "torch_dtype", "dtype")),
        ("lr_scheduler_type", "schedule"),
        ("optim", "optimizer"),
        ("wd", "weight_decay"),
        ("gradient_clip_val", "max_grad_norm"),
        ("gradient_accumulation_steps", "gradient_accumulation"),
        ("accumulate_grad_batches", "gradient_accumulation"),
        ("lora_r", "training.lora.rank"),
        ("lora_alpha", "training.lora.alpha"),
        ("target_modules", "training.lora.targets"),
        ("per_device_eval_batch_size", "evaluation.batch_size"),
        ("num_workers", "resources.train.workers"),
    ],
)
def test_names_of_other_tools_in_training(key: str, meant: str) -> None:
    """Keys of this section by their name, those of others by their path; of the study's own settings, too, which a
    recipe does not know."""
    if meant.startswith("resources"):
        assert said(_LANGUAGE, **{key: 1}) == f"{key}: unknown key; did you mean {meant}?"
    else:
        assert said(_LANGUAGE, training={key: 1}) == f"training.{key}: unknown key; did you mean {meant}?"


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("lr", "did you mean training.learning_rate?"),
        ("n_generations", "did you mean generations?"),
        ("Generations", "did you mean generations?"),
        ("num_seeds", "did you mean vary.seed?"),
        ("seeds", "did you mean vary.seed?"),
        ("device", "did you mean resources.train.gpus_per_worker?"),
        ("tensor_parallel_size", "did you mean resources.engines.gpus?"),
        ("model_name_or_path", "did you mean family.model.hub?"),
        ("pretrained_model_name_or_path", "did you mean family.model.hub?"),
        ("dataset_name", "did you mean corpus.dataset?"),
        ("γ", "did you mean loss.gamma?"),
        ("grid", "did you mean vary?"),
        ("batch_size", "its place is training.batch_size or evaluation.batch_size"),
        ("temperature", "or decoding.temperature"),
        ("top-p", "its place is decoding.top_p"),
        ("topk", "its place is decoding.top_k"),
        ("gamma", "its place is loss.gamma or evaluation.signs.gamma"),
        ("threshold", "or collapse.threshold"),
        ("warmup_steps", "training.warmup_ratio is the share"),
        ("output_dir", "--storage FOLDER"),
        ("training.lr", "a dotted key stands under vary and --set alone: write training: {lr: …}"),
        ("_defaults", "begins with x-"),
        (".defaults", "begins with x-"),
        ("learnin_rate", "did you mean training.learning_rate?"),
    ],
)
def test_keys_at_the_top(key: str, answer: str) -> None:
    assert answer in said(_LANGUAGE, **{key: 1})


def test_an_answer_is_one_that_the_family_has() -> None:
    """A Gaussian has no training: its own keys are offered, and never those of language models."""
    assert "corpus" not in said(_GAUSSIAN, lr=1)
    assert "did you mean samples_per_generation?" in said(_GAUSSIAN, n_samples=1)
    assert said(_GAUSSIAN, family={"kind": "gaussian", "dimension": 1}) == (
        "family.dimension: unknown key; did you mean dim?"
    )
    assert said(_GAUSSIAN, family={"kind": "gaussian", "bandwidth": 1}).startswith(
        "family.bandwidth: unknown key (known: "
    )
    anchored = said(_LANGUAGE, zzz={"a": 1})
    assert anchored.startswith("zzz: unknown key; a key that is there for its anchors begins with x- (known: ")


@pytest.mark.parametrize("name", ["a b", "", "-a", "ä", "a/b", "a\n"])
def test_a_name_that_no_folder_has(name: str) -> None:
    assert said(_LANGUAGE, name=name).startswith("name: letters (a to z), digits and . _ - are allowed, ")


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"training": {"lora": {"r": 8}}}, "training.lora.r: unknown key; did you mean rank?"),
        ({"regime": {"kind": "mixed", "ratio": 0.5}}, "regime.ratio: unknown key; did you mean synthetic_ratio?"),
        ({"vary": {"lr": [1]}}, "lr (under vary): unknown key; did you mean training.learning_rate?"),
        ({"vary": {"training.lr": [1]}}, "training.lr (under vary): unknown key; did you mean learning_rate?"),
        ({"vary": {"loss": [{"kind": "tce", "γ": 0.3}]}}, "loss.γ (under vary): unknown key; did you mean gamma?"),
        (
            {"collapse": {"metric": "perplexity", "mode": "above"}},
            "collapse.mode: unknown key; did you mean direction?",
        ),
        ({"collapse": [{"metirc": "perplexity"}]}, "collapse.0.metirc: unknown key; did you mean metric?"),
        ({"decoding": {"top-p": 0.5}}, "decoding.top-p: unknown key; did you mean top_p?"),
        ({"evaluation": {"tasks": []}}, "evaluation.tasks: unknown key; did you mean benchmarks?"),
        ({"evaluation": {"benchmarks": [{"path": "x"}]}}, "evaluation.benchmarks.0.task: this key is needed"),
        ({"loss": {"kind": "ce"}}, "loss.kind: there is no loss 'ce'; did you mean cross_entropy?"),
        ({"loss": {"kind": "Cross-Entropy"}}, "did you mean cross_entropy?"),
        ({"regime": {"kind": "augment"}}, "regime.kind: there is no augment; did you mean accumulate?"),
        ({"family": {"kind": "LLM"}}, "family.kind: there is no family 'LLM'; did you mean language?"),
    ],
)
def test_keys_and_kinds_inside(changes: dict[str, Any], answer: str) -> None:
    assert answer in said(_LANGUAGE, **changes)


@pytest.mark.parametrize(
    ("vary", "answer"),
    [
        ({"loss": {"kind": "tce", "gamma": 0.3}}, r"vary.loss: a list is needed.*e.g. [{kind: tce, gamma: 0.3}]"),
        (
            {"loss": {"kind": ["tce"]}},
            "vary: loss: a key inside a section varies under its dotted path, loss.kind: […]",
        ),
        ({"seed": 3}, "vary.seed: a list is needed, with an entry for each value, e.g. [3]; or a range, {start: 0"),
        ({"loss.gamma": 0.3}, "vary.loss.gamma: a list is needed, with an entry for each value, e.g. [0.3]"),
        ({"seed": "0, 1"}, "vary.seed: a list is needed"),
        ({"seed": None}, "vary.seed: a list is needed"),
        ({"seed": {"from": 0, "to": 3}}, "a range, {start: 0, count: 10}"),
        ({"seed": {"start": 0}}, "vary.seed.count: this key is needed and missing"),
        ({"seed": []}, "vary.seed: this list is empty: give at least one value"),
        ({"collapse.threshold": [2, 3]}, "vary: collapse.threshold is no key of the recipe: only those vary"),
        ({"training": [None]}, "training (under vary): this section is empty; it may hold batch_size"),
        ([{"seed": [1]}], "vary: dotted keys of the recipe are needed, each with a list of its values"),
        (3, "vary: dotted keys of the recipe are needed"),
        (None, "vary: dotted keys of the recipe are needed"),
    ],
)
def test_what_varies_is_a_list(vary: Any, answer: str) -> None:
    pattern = ".*".join(re.escape(part) for part in answer.split(".*"))
    assert re.search(pattern, said(_LANGUAGE, vary=vary))


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        (
            {"training": None},
            "training: this section is empty; it may hold batch_size, .*; or leave it out",
        ),
        ({"decoding": None}, "decoding: this section is empty; it may hold context_tokens, .*; or leave it out"),
        ({"evaluation": None}, "evaluation: this section is empty; it may hold batch_size, .*; or leave it out"),
        ({"engine": None}, "engine: this section is empty; it may hold kind, .*; or leave it out"),
        ({"resources": None}, "resources: this section is empty; it may hold chains_at_once, .*; or leave it out"),
        ({"resources": {"engines": None}}, "resources.engines: this section is empty; it may hold count, gpus"),
        ({"loss": None}, r"loss: this section is empty; it may hold kind \(cross_entropy, tce, .*; or leave it out"),
        ({"regime": None}, r"regime: this section is empty; it may hold kind \(replace, .*synthetic_ratio"),
        ({"curation": None}, r"curation: this section is empty; it may hold kind \(none, "),
        ({"corpus": None}, "corpus: this section is empty; it may hold dataset, .*written_by$"),
        ({"collapse": None}, "collapse: this section is empty; it may hold .*metric, .*threshold$"),
        ({"claims": None}, "claims: this section is empty; it may hold kind, id"),
        ({"family": None}, r"family: this key is needed and missing \(kinds: language"),
        ({"family": {"kind": "language", "model": None}}, "family.model: this section is empty; it may hold .*hub, "),
        ({"evaluation": {"benchmarks": None}}, r"evaluation.benchmarks: .* it may hold task \(blimp, "),
        ({"generations": None}, "generations: a whole number is needed, not nothing$"),
        ({"training": 3}, "training: a section with keys is needed, not 3; it may hold batch_size"),
        ({"collapse": "perplexity"}, "collapse: a section with keys is needed, not 'perplexity'; it may hold "),
    ],
)
def test_an_empty_section_says_what_may_stand_in_it(changes: dict[str, Any], answer: str) -> None:
    assert re.match(answer, said(_LANGUAGE, **changes))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    ("base", "changes", "where"),
    [
        (_LANGUAGE, {"training": {"learning_rate": ...}}, "training.learning_rate"),
        (_LANGUAGE, {"training": {"weight_decay": ...}}, "training.weight_decay"),
        (_LANGUAGE, {"generations": ...}, "generations"),
        (_LANGUAGE, {"decoding": {"temperature": ...}}, "decoding.temperature"),
        (_LANGUAGE, {"vary": {"training.learning_rate": [1e-3, ...]}}, "vary.training.learning_rate.1"),
        (_LANGUAGE, {"vary": {"loss": [{"kind": "tce", "gamma": ...}]}}, "vary.loss.0.gamma"),
        (
            _LANGUAGE,
            {"collapse": {"metric": "x", "threshold": ..., "direction": "above"}},
            "collapse.threshold",
        ),
        (_LANGUAGE, {"baseline": {"loss.gamma": ...}}, "baseline.loss.gamma"),
        (_LANGUAGE, {"resources": {"train": {"gpus_per_worker": ...}}}, "resources.train.gpus_per_worker"),
        (_GAUSSIAN, {"family": {"kind": "gaussian", "mean": ...}}, "family.mean"),
        (_GAUSSIAN, {"family": {"kind": "my_module:Mine", "anything": {"deep": [...]}}}, "family.anything.deep.0"),
        (_GAUSSIAN, {"family": {"kind": "linear_regression", "ridge": ...}}, "family.ridge"),
    ],
)
def test_numbers_are_finite(base: dict[str, Any], changes: dict[str, Any], where: str, value: float) -> None:
    """Everywhere, also where a section takes anything."""

    def put(content: Any) -> Any:
        if isinstance(content, dict):
            return {key: put(inner) for key, inner in content.items()}
        if isinstance(content, list):
            return [put(inner) for inner in content]
        return value if content is ... else content

    assert said(base, **put(changes)) == f"{where}: a finite number is needed, not {value}"


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("a", "--set a: key=value is needed"),
        ("=3", "--set =3: key=value is needed"),
        ("training.=3", "--set training.=3: key=value is needed"),
        ("a..b=1", "--set a..b=1: key=value is needed"),
        ("training.lr=1e-3", "training.lr: unknown key; did you mean learning_rate?"),
        ("training={lr: 1}", "training.lr: unknown key; did you mean learning_rate?"),
        ("training.learning_rate=.inf", "training.learning_rate: a finite number is needed, not inf"),
        ("training.learning_rate=nan", "training.learning_rate: a finite number is needed, not 'nan'"),
        ("training.epochs=yes", "training.epochs: a number is needed, not true"),
        ("seed=010", "--set seed=010: line 1, column 1: 010 is ambiguous"),
        (
            "seed=99999999999999999999",
            "seed: a number less than or equal to 1000000000000000000 is needed, not 99999999999999999999",
        ),
        ("vary.seed=3", "vary.seed: a list is needed, with an entry for each value, e.g. [3]"),
        ("vary.training.lr=[1]", "training.lr (under vary): unknown key; did you mean learning_rate?"),
        ("name=2024", "name: text is needed, not the number 2024: write it in quotes"),
        ("name=on", "name: text is needed, not true: write it in quotes (YAML reads yes, no, on and off so, too)"),
        ("loss=", "loss: this section is empty"),
        ("collapse=[", "--set collapse=[: line 1, column 2: is not valid YAML"),
    ],
)
def test_overrides(override: str, answer: str) -> None:
    assert said(_LANGUAGE, override).startswith(answer)


@pytest.mark.parametrize(
    ("base", "changes", "answer"),
    [
        (_GAUSSIAN, {"family": {"kind": "gaussian", "dim": 1.5}}, "family.dim: a whole number is needed, not 1.5"),
        (_GAUSSIAN, {"family": {"kind": "gaussian", "dim": "two"}}, "family.dim: a whole number is needed, not 'two'"),
        (
            _GAUSSIAN,
            {"family": {"kind": "gaussian", "dim": 0}},
            "family.dim: a number greater than or equal to 1 is needed, not 0",
        ),
        (_GAUSSIAN, {"family": {"kind": "gaussian", "std": [1]}}, "family.std: a number is needed, not [1]"),
        (_GAUSSIAN, {"generations": 10**30}, "generations: a number less than or equal to 1000000 is needed, not 1000"),
        (_GAUSSIAN, {"regime": {"kind": True}}, "regime.kind: a name is needed, not true (known: replace, accumulate"),
        (_GAUSSIAN, {"regime": {"kind": {"a": 1}}}, "regime.kind: a name is needed, not {a: 1} (known: replace"),
        (_GAUSSIAN, {"loss": {"kind": [1]}}, "loss.kind: there is no loss [1] (known: cross_entropy"),
        (_GAUSSIAN, {"family": {"kind": None}}, "family.kind: there is no family nothing (known: language"),
        (
            _GAUSSIAN,
            {"curation": {"kind": "verifier", "by": None}},
            "curation.by: this section is empty; it may hold ",
        ),
        (_GAUSSIAN, {"claims": "all"}, "claims: a list is needed, not 'all'"),
        (
            _LANGUAGE,
            {"loss": {"kind": "focal", "gamma": -1}},
            "loss.gamma: a number greater than or equal to 0 is needed, not -1",
        ),
        (_LANGUAGE, {"loss": {"kind": "tce", "gamma": None}}, "loss.gamma: a number is needed, not nothing"),
        (_LANGUAGE, {"training": {"init": "previos"}}, "training.init: there is no 'previos'; did you mean previous?"),
        (_LANGUAGE, {"training": {"init": 3}}, "training.init: scratch, base or previous is needed, not 3"),
        (_LANGUAGE, {"training": [{"init": "base"}]}, "training: a section with keys is needed, not [{init: base}]"),
        (_LANGUAGE, {"decoding": {"ignore_eos": "maybe"}}, "decoding.ignore_eos: true or false is needed, not 'maybe'"),
    ],
)
def test_what_is_needed_is_said_in_the_words_of_a_file(
    base: dict[str, Any], changes: dict[str, Any], answer: str
) -> None:
    """No message is pydantic's own, and no value is shown as Python has it."""
    assert said(base, **changes).startswith(answer)


@pytest.mark.parametrize(
    ("judge", "answer"),
    [
        ({"sgnal": 2}, "curation.by.family.sgnal: unknown key (known: "),
        ({"stdd": 2}, "curation.by.family.stdd: unknown key; did you mean std?"),
        ({"std": "wide"}, "curation.by.family.std: a number is needed, not 'wide'"),
        ({"std": -1}, "curation.by.family.std: a number greater than 0 is needed, not -1"),
        ({"kind": "gmm"}, "curation.by.family.kind: it is the chain's, gaussian: leave it out"),
    ],
)
def test_a_judge_is_told_as_a_family_is(judge: dict[str, Any], answer: str) -> None:
    assert said(_GAUSSIAN, curation={"kind": "verifier", "keep": 0.5, "by": {"family": judge}}).startswith(answer)


def test_overrides_that_work() -> None:
    """Dotted keys under ``vary`` and ``baseline`` are one key, a number names a list's entry, a name may be a date."""
    overrides = [
        "vary.training.learning_rate=[1e-3, 2e-3]",
        "collapse.0.threshold=3",
        "name=2024-01-01",
        "training.epochs=2",
        "baseline.loss.kind=cross_entropy",
    ]
    study = make_study({**_LANGUAGE, "collapse": [_LANGUAGE["collapse"]]}, "s.yaml", overrides)
    assert [chain.recipe.training.learning_rate for chain in study.chains] == [1e-3, 2e-3]
    assert study.settings.collapse[0].threshold == 3
    assert study.name == "2024-01-01"
    assert _LANGUAGE["collapse"]["threshold"] == 2.0, "the content given is left as it is"


def test_nothing_follows_a_question() -> None:
    """A message ends with "did you mean …?": whatever the text that it stands in."""
    for path in Path(fortifai_ray.__file__).parent.rglob("*.py"):
        for text in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr)):
            for part in text.values[:-1]:
                called = getattr(getattr(getattr(part, "value", None), "func", None), "id", "")
                assert called not in ("hint", "unknown_key"), f"{path}, line {text.lineno}"
    assert said(_LANGUAGE, lss={"kind": "tce"}) == "lss: unknown key; did you mean loss?"
    assert said(_LANGUAGE, family={"kind": "gausian"}).endswith("there is no family 'gausian'; did you mean gaussian?")
    far = said(_LANGUAGE, family={"kind": "xyz"})
    assert "(known: " in far
    assert far.endswith("); a family of your own is named module:Class")


def test_the_table_of_synonyms_names_keys_that_exist() -> None:
    """Each target is a key of some family's study, and no other tool's name for a key has a remark besides."""
    models = (StudySettings, LanguageRecipe, ImageRecipe, AnalyticRecipe)
    known = {key for model in models for key in dotted_keys(model)} | {"vary.seed"}
    assert not {key for keys in KEYS.values() for key in keys} - known
    assert not KEYS.keys() & {normalised(name) for name in REMARKS}
    assert all(hint(name, [words[0]]) == f"; did you mean {words[0]}?" for name, words in WORDS.items())
