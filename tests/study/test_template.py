"""``fortifai new``: the file that it writes runs as it is, for every family, and never takes another file's place."""

from pathlib import Path

import pytest
import yaml

from fortifai_ray.cli import main
from fortifai_ray.recipe.recipe import recipe_types
from fortifai_ray.storage.store import StageStore, Storage
from fortifai_ray.study.study import load_study
from fortifai_ray.study.template import write_study
from fortifai_ray.sweep.preflight import check_study, notices

OTHERS = [kind for kind in recipe_types() if kind != "language"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StageStore:
    return StageStore(Storage.of(str(tmp_path_factory.mktemp("store"))))


@pytest.mark.parametrize("family", OTHERS)
def test_every_family_passes_a_dry_run(family: str, store: StageStore) -> None:
    """As it is written, without a warning: what a dry run checks before it prints its plan."""
    study = load_study(write_study(Path(f"my_{family}"), family))
    check_study(study, store)
    assert study.name == f"my_{family}"
    assert len(study.chains) == 2 * (20 if study.cells[0].recipe.batched else 3)
    assert not [line for line in notices(study) if line.startswith("warning")]


@pytest.mark.parametrize("positions", [64, 512])
def test_a_model_of_ones_own_passes_a_dry_run(elsewhere: Path, store: StageStore, positions: int) -> None:
    """Also one whose context is shorter than the rows that a study has by default."""
    import transformers

    from fortifai_ray.families.language.config import ModelConfig

    tokenizer = transformers.AutoTokenizer.from_pretrained(ModelConfig(preset="llama-docs").folder)
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = {"vocab_size": 2048, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": positions}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **ends)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    study = load_study(write_study(Path("mine"), "language", "model"))
    check_study(study, store)
    assert study.chains[0].recipe.flat()["family.model.path"] == "model"


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (None, {"preset": "llama-docs"}),
        ("llama-tiny", {"preset": "llama-tiny"}),
        ("org/model-1b", {"hub": "org/model-1b"}),
    ],
)
def test_a_preset_or_a_name_on_the_hub(model: str | None, key: dict[str, str]) -> None:
    content = yaml.safe_load(write_study(Path("mine.yaml"), "language", model).read_text(encoding="utf-8"))
    assert content["family"] == {"kind": "language", "model": key}


def test_a_family_of_ones_own(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / "my_coins.py").write_text(
        "class Coins:\n"
        "    metrics = ('heads',)\n"
        "    def human(self, draw, samples):\n        return draw.random(samples)\n"
        "    def fit(self, samples, weights=None):\n        return samples.mean()\n"
        "    def generate(self, model, draw, samples):\n        return draw.random(samples)\n"
        "    def evaluate(self, model):\n        return {'heads': 1.0}\n"
    )
    monkeypatch.syspath_prepend(elsewhere)
    study = load_study(write_study(Path("mine"), "my_coins:Coins"))
    assert study.varied == ["regime.kind", "seed"]  # no loss weighs its samples: it has no log_likelihood


def test_every_key_is_there_with_what_it_means() -> None:
    """What is behind a # is its default: the file with every one of those put in is the same study."""
    path = write_study(Path("mine"), "vae")
    lines = path.read_text(encoding="utf-8").splitlines()
    head, body = lines[:3], lines[3:]
    known = {key for line in body for key in [line.strip("# ").partition(":")[0]]}
    assert {"curation", "early_stopping", "latent", "epochs", "workers", "held_out"} <= known
    uncommented = [line.replace("# ", "", 1) if line.lstrip().startswith("#") else line for line in body]
    whole = yaml.safe_load("\n".join([*head, *uncommented]))
    Path("whole.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    assert load_study(Path("whole.yaml")).resolved() == load_study(path).resolved()


@pytest.mark.parametrize(
    ("name", "family", "model", "said"),
    [
        ("there", "gaussian", None, "there.yaml: is there already"),
        ("there.yaml", "gaussian", None, "there.yaml: is there already"),
        ("link", "gaussian", None, "link.yaml: is there already"),
        ("no/such/mine", "gaussian", None, "there is no folder no/such"),
        ("my study", "gaussian", None, "mine.yaml"),
        ("stages", "gaussian", None, "another name is needed"),
        ("mine", "gausian", None, "did you mean gaussian?"),
        ("mine", "no_such_module:Family", None, "no_such_module"),
        ("mine", "gaussian", "llama-docs", "--model: gaussian starts from no model"),
        ("mine", "vae", "model", "--model: vae starts from no model"),
        ("mine", "language", "no-such-folder", "there is no folder no-such-folder"),
        ("mine", "language", "empty", "empty"),
    ],
)
def test_what_is_refused(
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    family: str,
    model: str | None,
    said: str,
) -> None:
    """One line, exit code 2, and nothing is written."""
    (elsewhere / "there.yaml").write_text("mine")
    (elsewhere / "link.yaml").symlink_to("nowhere")
    (elsewhere / "empty").mkdir()
    before = sorted(elsewhere.rglob("*"))
    arguments = ["fortifai", "new", name, "--family", family, *(["--model", model] if model else [])]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count("\n") == 1
    assert said in error or name == "my study"
    assert sorted(elsewhere.rglob("*")) == before
    assert (elsewhere / "there.yaml").read_text() == "mine"
