"""Study files: what varies becomes chains, and every mistake gets one line that names the key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from fortifai_ray.errors import UserError
from fortifai_ray.recipe.recipe import Recipe
from fortifai_ray.study import study as study_module
from fortifai_ray.study.grid import resolve, whole_sections
from fortifai_ray.study.study import load_study, make_study
from fortifai_ray.validation import put

PROJECT = Path(__file__).resolve().parents[2]


def study_content(**changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}},
        "corpus": {"source": "pydoc", "train_tokens": 4096},
        "regime": {"kind": "mixed", "synthetic_ratio": 1.0},
        "generations": 3,
        "vary": {"loss": [{"kind": "cross_entropy"}, {"kind": "tce", "gamma": 0.3}], "seed": [0, 1]},
        "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
        **changes,
    }


def test_the_grid_is_the_product_of_what_varies() -> None:
    """Two losses and two seeds are four chains; a varied section shows as its dotted leaves, null where it has none."""
    study = make_study(study_content(), "s.yaml")
    assert [dict(chain.varied) for chain in study.chains] == [
        {"loss.kind": "cross_entropy", "loss.gamma": None, "seed": 0},
        {"loss.kind": "cross_entropy", "loss.gamma": None, "seed": 1},
        {"loss.kind": "tce", "loss.gamma": 0.3, "seed": 0},
        {"loss.kind": "tce", "loss.gamma": 0.3, "seed": 1},
    ]
    assert len({chain.chain_id for chain in study.chains}) == 4


def test_the_chain_is_its_recipe() -> None:
    """A chain's id depends on the recipe and the seed, and not on the study's name, its grid or its resources."""
    study = make_study(study_content(), "s.yaml")
    alone = make_study(
        study_content(name="other", vary={}, loss={"kind": "tce", "gamma": 0.3}, seed=1, resources={"num_cpus": 1}),
        "t.yaml",
    )
    assert alone.chains[0].chain_id == study.chains[3].chain_id


def test_the_baseline_keeps_no_key_of_the_loss_it_replaces() -> None:
    """Cross entropy has no γ: the baseline of a TCE chain is the cross-entropy chain of the same seed, to the id."""
    study = make_study(study_content(), "s.yaml")
    assert study.baseline_of(study.chains[3]).chain_id == study.chains[1].chain_id
    assert study.baseline_of(study.chains[0]).chain_id == study.chains[0].chain_id


@pytest.mark.parametrize("baseline", [{"loss.kind": "cross_entropy"}, {"loss.kind": "cross_entropy", "seed": 7}])
def test_a_baseline_is_checked_once_for_each_cell(baseline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of thousands of seeds; each chain's is what it would be by itself, also where the baseline is
    of one seed."""
    varied = {"loss.gamma": [0.3, 0.5], "seed": {"start": 0, "count": 50}}
    study = make_study(study_content(loss={"kind": "tce"}, vary=varied, baseline=baseline), "s.yaml")
    fresh, asked = replace(study), list[str]()

    def counted(source: str, content: dict[str, Any]) -> Recipe:
        asked.append(source)
        return resolve(source, content)

    monkeypatch.setattr(study_module, "resolve", counted)
    found = [fresh.baseline_of(chain) for chain in fresh.chains]
    assert len(asked) == 2
    keys = whole_sections(baseline)
    for chain, recipe in zip(fresh.chains, found, strict=True):
        assert recipe == resolve("s.yaml", put(chain.recipe.model_dump(mode="json"), keys))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vary": {}},
        {"regime": {"kind": "mixed"}, "vary": {"regime.synthetic_ratio": [0.5, 1.0]}},
        {"vary": {"regime": [{"kind": "replace"}, {"kind": "mixed", "synthetic_ratio": 0.5}]}},
        {"family": {"model": {"preset": "llama-tiny"}}, "vary": {"family.kind": ["language"]}},
        {"corpus": {"written_by": {"study": "runs/other", "generation": 0, "where": {"loss.kind": "tce", "seed": 0}}}},
    ],
)
def test_the_resolved_study_is_a_study(changes: dict[str, Any]) -> None:
    """What lies beside the results can be run again, and gives the same chains, though defaults have changed
    meanwhile: they are in it, where a recipe is only whole once varied too."""
    study = make_study(study_content(**changes), "s.yaml")
    resolved = yaml.safe_load(yaml.safe_dump(study.resolved(), sort_keys=False))
    assert resolved["training"]["epochs"] == study.chains[0].recipe.training.epochs
    assert resolved["decoding"]["temperature"] == 1.0
    again = make_study(resolved, "study.yaml")
    assert [chain.chain_id for chain in again.chains] == [chain.chain_id for chain in study.chains]


def test_set_puts_a_value_at_a_dotted_key() -> None:
    """`--set` reaches into sections and makes those that lack; its value is YAML."""
    overrides = ["training.epochs=3", "regime.synthetic_ratio=0.5", "vary.seed=[4, 5, 6]"]
    study = make_study(study_content(), "s.yaml", overrides)
    assert study.chains[0].recipe.training.epochs == 3
    assert {chain.recipe.seed for chain in study.chains} == {4, 5, 6}
    assert study.chains[0].recipe.regime.synthetic_ratio == 0.5


@pytest.mark.parametrize("file", sorted((PROJECT / "sweeps").glob("*.yaml")), ids=lambda path: path.name)
def test_every_study_that_ships_is_valid(
    file: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Read as a user would, from the project's folder (real data put where the file looks for it)."""
    monkeypatch.chdir(PROJECT)
    content = yaml.safe_load(file.read_text())
    corpus = content.get("corpus", {})
    overrides = []
    for key, section in (("corpus", corpus), ("corpus.validation", corpus.get("validation", {}))):
        if "path" in section:
            there = Path(section["path"]).relative_to("../shared/data")
            overrides.append(f"{key}.path={request.getfixturevalue('data_dir') / there}")
    if any("path" in entry for entry in content.get("evaluation", {}).get("benchmarks", [])):
        exam = "{task: kr_test, fractions: 6}" if "keep_by" in content.get("training", {}) else ""  # needs no files
        overrides.append(f"evaluation.benchmarks=[{exam}]")  # their files: tests/study/test_paper_studies.py has some
    if not Path(content.get("family", {}).get("model", {}).get("path", PROJECT)).exists():
        overrides.append("family.model={preset: llama-tiny}")  # `fortifai fetch` puts it there
    study = load_study(file, overrides)
    assert study.chains
    assert not study.warnings


CRITERION = {"metric": "perplexity", "threshold": 2.0, "direction": "above"}
TAIL = {"metric": "kept_fraction", "threshold": 0.5, "direction": "below"}
ANY = {"any_of": [CRITERION, TAIL]}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"famly": {}}, r"famly: unknown key; did you mean family\?"),
        ({"training": {"epoch": 2}}, r"training\.epoch: unknown key; did you mean epochs\?"),
        (
            {"resources": {"engines": {"gpus": -1}}},
            r"resources\.engines\.gpus: a number greater than or equal to 0 is needed, not -1$",
        ),
        (
            {"training": {"lora": {"bias": "none"}}},
            r"training\.lora\.bias: unknown key; biases are as the model has them",
        ),
        ({"vary": {"loss": [{"kind": "tce", "gama": 0.3}]}}, r"loss\.gam.*\(under vary\)"),
        ({"vary": {"loss.gamma": [0.3]}}, r"loss\.kind: this key is needed"),
        ({"loss": {"kind": "tce", "gamma": 1.7}, "vary": {}}, r"loss\.gamma: γ is a probability in \(0, 1\]: 1\.7"),
        ({"loss": {"kind": "tce", "gamma": 0}, "vary": {}}, r"loss\.gamma: γ is a probability in \(0, 1\]"),
        ({"loss": {"kind": "tec"}, "vary": {}}, r"loss\.kind: there is no loss 'tec'; did you mean tce\?"),
        ({"regime": {"kind": "mixed", "synthetic_ratio": 1.2}}, r"regime\.synthetic_ratio: .*\[0, 1\]"),
        ({"regime": {"kind": "mixed"}}, r"regime\.synthetic_ratio: this key is needed"),
        ({"generations": 0}, r"generations: .*greater than or equal to 1 is needed, not 0"),
        ({"generations": "many"}, r"generations: a whole number is needed, not 'many'"),
        ({"corpus": {"path": "no/such/file.txt"}}, r"corpus: there is no no/such/file\.txt"),
        (
            {"corpus": {"source": "pydoc", "path": "."}},
            r"corpus: give exactly one of source, path, dataset, written_by",
        ),
        ({"family": {"kind": "language", "model": {"path": "no/such/model"}}}, r"family\.model: there is no folder"),
        (
            {"family": {"kind": "language", "model": {"path": "somebody/model"}}},
            r"family\.model: there is no folder somebody/model; a model of the Hugging Face hub is named under hub",
        ),
        ({"family": {"kind": "language", "model": {"path": " "}}}, r"family\.model: path: there is none here: give a"),
        ({"family": {"kind": "langauge", "model": {"preset": "llama-tiny"}}}, r"family\.kind: .*language"),
        (
            {"family": {"kind": "language", "model": {"preset": "llama-docs", "revision": "main"}}},
            r"family\.model: revision: it is of a hub's model, and preset has none",
        ),
        ({"training": {"momentum": 0.5}}, r"training: momentum: adamw has none"),
        ({"training": {"optimizer": "adam", "momentum": 0.0}}, r"training: momentum: adam has none"),
        ({"training": {"schedule": "rising", "warmup_ratio": 0.1}}, r"training: warmup_ratio: schedule: rising"),
        ({"decoding": {"temperature": -1}}, r"decoding\.temperature: .*0 \(greedy\)"),
        ({"collapse": {"metric": "perplexity", "threshold": 0, "direction": "above"}}, r"collapse.*threshold"),
        ({"collapse": []}, r"collapse: "),
        ({"collapse": [CRITERION, CRITERION]}, r"collapse: entries 0 and 1 \(counted from 0\) are the same criterion"),
        ({"collapse": [CRITERION, TAIL, {**CRITERION, "threshold": 2}]}, r"collapse: entries 0 and 2 .* are the same"),
        ({"collapse": [ANY, {"any_of": [TAIL, CRITERION]}]}, r"collapse: entries 0 and 1 .* are the same criterion"),
        ({"vary": {"seed": []}}, r"vary\.seed: "),
        ({"vary": {"seed": [1, 1]}}, r"vary: the same chain comes out twice"),
        ({"name": "../elsewhere"}, r"name: "),
        ({"seed": -1, "vary": {}}, r"seed: "),
        ({"claims": [{"id": "x"}]}, r"claims.0.source: this key is needed and missing"),
        ({"baseline": {"loss.kid": "cross_entropy"}}, r"baseline: loss\.kid: unknown key"),
    ],
)
def test_a_mistake_gets_one_line(changes: dict[str, Any], complaint: str) -> None:
    """The file and the key as the user wrote them, and what would be right."""
    with pytest.raises(UserError, match=r"^s\.yaml: " + complaint) as error:
        make_study(study_content(**changes), "s.yaml")
    assert "\n" not in str(error.value)


OWN = {"relative_to": "own_generation_0"}


@pytest.mark.parametrize(
    ("generations", "collapse", "at", "most"),
    [
        (4, {**CRITERION, "confirm": 3}, None, 3),  # generation 0 may cross: the baseline's is its reference
        (4, {**CRITERION, "confirm": 4}, "collapse.confirm", 3),
        (4, {**CRITERION, "confirm": 40}, "collapse.confirm", 3),
        (4, {**CRITERION, **OWN, "confirm": 2}, None, 2),
        (4, {**CRITERION, **OWN, "confirm": 3}, "collapse.confirm", 2),
        (4, {**CRITERION, **OWN, "threshold": 0.5, "confirm": 3}, None, 3),  # beyond its limit from the start
        (4, {**TAIL, **OWN, "confirm": 3}, "collapse.confirm", 2),
        (4, {**TAIL, **OWN, "direction": "outside", "threshold": [0.5, 2], "confirm": 3}, "collapse.confirm", 2),
        (4, {**TAIL, "relative_to": "absolute", "confirm": 3}, None, 3),
        (1, CRITERION, "collapse.confirm", 0),
        (1, {**CRITERION, **OWN, "confirm": 0}, None, 0),
        (2, [CRITERION, {**TAIL, "confirm": 2}], "collapse.1.confirm", 1),
        (2, {"any_of": [CRITERION, {**TAIL, "confirm": 2}]}, "collapse.any_of.1.confirm", 1),
        (2, [TAIL, {"any_of": [{**CRITERION, "confirm": 2}, TAIL]}], "collapse.1.any_of.0.confirm", 1),
    ],
)
def test_a_crossing_that_nothing_confirms_is_said(generations: int, collapse: Any, at: str | None, most: int) -> None:
    """The longest chain has no room for a crossing and for what confirms it; a short try runs all the same."""
    content = study_content(generations=generations, collapse=collapse)
    said = make_study(content, "s.yaml").warnings
    assert [line.startswith(f"warning: {at}: ") for line in said] == [True] * (at is not None)
    assert all(line.endswith(f"at most {most} is right, or more generations") and "\n" not in line for line in said)
    longer = content | {"vary": {"generations": [generations, 50]}}
    assert make_study(longer, "s.yaml").warnings == ()


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    """A folder with a config and no safetensors, or with pickled weights only."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"family\.model: .*has no weights: \*\.safetensors is needed"):
        make_study(study_content(family={"kind": "language", "model": {"path": str(tmp_path)}}), "s.yaml")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("model.safetensors", b"short"),
        ("model.safetensors", b"\xff" * 64),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """Broken JSON or torn weights are found before anything starts, and the file is named."""
    save_file({"weight": np.zeros((2, 2), dtype=np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    model = {"kind": "language", "model": {"path": str(tmp_path)}}
    make_study(study_content(family=model), "s.yaml")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"family\.model: .*{name} .*a complete checkpoint is needed"):
        make_study(study_content(family=model), "s.yaml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: a\nname: b\n", "the key 'name' is given twice"),
        ("name: [", "is not valid YAML"),
        ("- a\n", "is a mapping"),
    ],
)
def test_a_file_that_is_no_study(tmp_path: Path, text: str, complaint: str) -> None:
    """Broken YAML, a key given twice (YAML would keep the last in silence), or a list."""
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_study(file)
    with pytest.raises(UserError, match="cannot be read"):
        load_study(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match=r"--set epochs: key=value is needed"):
        make_study(study_content(), "s.yaml", ["epochs"])
