"""A model given as a GGUF file is the model that was written, text is split as it was trained, and what cannot be read
whole is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engines.gguf_writing import END, TEXT, make_llama, make_tokenizer, write_gguf
from fortifai_ray.engines import gguf_files
from fortifai_ray.engines.gguf_files import check_room, gguf_folder, opened
from fortifai_ray.engines.pretrained import WeightsError, load_network, load_tokenizer
from fortifai_ray.engines.soundness import check_checkpoint
from fortifai_ray.errors import UserError

TEXTS = (TEXT, "x  1", "2024", " 7 8  9", "it's\n\n1,000", f"a{END}b 12", "Über  naïve 文 3", "   ", "\t1 \n")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has its own cache."""
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "cache"))
    gguf_files._cached.cache_clear()
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("kind", "tied", "step"),
    [
        ("F32", True, 0.0),
        ("F32", False, 0.0),
        ("F16", True, 2**-11),
        ("BF16", True, 2**-8),
        ("Q8_0", False, 1 / 254 + 2**-11),  # half a step of the largest number of a block, and its scale as F16
        ("Q4_1", True, 1 / 15 + 3 * 2**-11),  # half a step of its range, at most twice its largest number
        ("Q5_0", True, 1 / 16 + 2**-11),  # a whole step: the range has one step less above than below
    ],
)
def test_a_model_is_read_back(tmp_path: Path, kind: str, tied: bool, step: float) -> None:
    """Every tensor as it was written, within the rounding of its format."""
    network = make_llama(tied)
    folder = gguf_folder(write_gguf(tmp_path / "model.gguf", network, kind=kind))
    check_checkpoint(folder)
    loaded = load_network(folder, "auto")
    assert loaded.dtype == torch.float32
    assert loaded.config.tie_word_embeddings == tied
    assert loaded.config.rope_parameters["rope_theta"] == 5e4
    assert not hasattr(loaded.config, "quantization_config")
    written = dict(network.named_parameters())
    assert dict(loaded.named_parameters()).keys() == written.keys()
    for name, read in loaded.named_parameters():
        wanted = written[name]
        blocks = wanted.reshape(-1, 32) if wanted.ndim == 2 else wanted[:, None]
        bound = (step * blocks.abs().amax(1, keepdim=True)).expand_as(blocks).reshape(wanted.shape)
        assert bool(((read - wanted).abs() <= (bound if wanted.ndim == 2 else 0.0)).all()), name
    if step == 0.0:
        row = torch.arange(20)[None]
        assert torch.equal(loaded(input_ids=row).logits, network(input_ids=row).logits)


@pytest.mark.parametrize("split", ["gpt-2", "smollm", "llama-bpe"])
def test_text_is_split_as_it_was_trained(tmp_path: Path, split: str) -> None:
    """Token by token as the original tokenizer, which the file does not hold; nothing is added before the text."""
    original = make_tokenizer(split)
    folder = gguf_folder(write_gguf(tmp_path / "model.gguf", make_llama(), original, split=split))
    read = load_tokenizer(folder)
    for text in TEXTS:
        assert read(text)["input_ids"] == original.encode(text).ids, text
        assert read.decode(original.encode(text).ids) == text
    assert (read.eos_token, read.eos_token_id, len(read)) == (END, 0, 300)


def test_smollms_digits_are_split(tmp_path: Path) -> None:
    """Two spaces before a number stay together, which GPT-2's rule would part."""
    folder = gguf_folder(write_gguf(tmp_path / "model.gguf", make_llama(), make_tokenizer("smollm")))
    assert load_tokenizer(folder).backend_tokenizer.pre_tokenizer.pre_tokenize_str("x  12") == [
        ("x", (0, 1)), ("ĠĠ", (1, 3)), ("1", (3, 4)), ("2", (4, 5)),
    ]  # fmt: skip


def test_a_file_is_dequantised_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its content: a copy under another name is the same folder, another content is another; nothing else is."""
    file = write_gguf(tmp_path / "one.gguf", make_llama(), make_tokenizer())
    folder = gguf_folder(file)
    assert folder.is_relative_to(cache)
    shutil.copy(file, tmp_path / "two.GGUF")
    other = write_gguf(tmp_path / "other.gguf", make_llama(hidden_act="gelu", tied=False))
    assert opened(other) != folder
    gguf_files._cached.cache_clear()  # as in a new process
    monkeypatch.setattr(gguf_files, "write_folder", lambda file, folder: pytest.fail("dequantised again"))
    assert opened(tmp_path / "two.GGUF") == folder
    assert opened(folder) == folder
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors") == ["model.safetensors"]


def test_the_same_file_gives_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte, on any machine: a study's stages are known by it."""
    file = write_gguf(tmp_path / "model.gguf", make_llama(), make_tokenizer(), kind="Q8_0")
    made = []
    for name in ("first", "second"):
        monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / name))
        gguf_files._cached.cache_clear()
        files = [path for path in gguf_folder(file).iterdir() if path.name != "manifest.json"]
        made.append({path.name: path.read_bytes() for path in files})
    assert made[0] == made[1]
    assert not any(str(tmp_path).encode() in content for content in made[0].values())


def cut(share: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return damage


def at(place: int, content: bytes) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with file.open("r+b") as opened_file:
            opened_file.seek(place)
            opened_file.write(content)

    return write


def renamed(name: str) -> Callable[[Path], Path]:
    return lambda file: file.rename(file.with_name(name))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
ROWS = {"rope_freqs.weight": np.ones(8, np.float32)}
NAN = {"blk.0.attn_norm.weight": np.full(64, np.nan, np.float32)}
REFUSED: list[tuple[dict[str, Any], Callable[[Path], Any] | None, tuple[str, ...]]] = [
    ({}, cut(0.99), ("cut short or damaged", "fetch the whole file again")),
    ({}, cut(0.5), ("cut short or damaged",)),
    ({}, cut(0.01), ("cut short or damaged",)),
    ({}, lambda file: file.write_bytes(b"GGUF"), ("cut short or damaged",)),
    ({}, lambda file: file.write_bytes(b""), ("is empty",)),
    ({}, lambda file: file.write_bytes(POINTER), ("pointer of Git LFS", "git lfs pull")),
    ({}, lambda file: file.write_bytes(b"PK\x03\x04 a zip"), ("is no GGUF",)),
    ({}, lambda file: file.unlink(), ("there is no file",)),
    ({}, renamed("model-00001-of-00003.gguf"), ("one part of a GGUF in several files", "--merge")),
    ({"fields": {"split.count": 3}}, None, ("one part of a GGUF in several files",)),
    ({"family": "martian"}, None, ("martian", "reads GGUF files of", "llama", "qwen2")),
    ({"family": "bert"}, None, ("bert", "reads GGUF files of")),
    ({"lacking": "blk.1.ffn_up.weight"}, None, ("lack the tensor model.layers.1.mlp.up_proj.weight",)),
    ({"lacking": "output_norm.weight"}, None, ("lack the tensor model.norm.weight",)),
    ({"extra": ROWS}, None, ("rope_freqs.weight", "leave out", "safetensors")),
    ({"extra": {**ROWS, "blk.0.attn_q.bias": ROWS["rope_freqs.weight"]}}, None, ("1 more tensor", "leave out")),
    ({"extra": NAN}, None, ("not finite",)),
    ({"extra": {"blk.0.attn_norm.weight": np.ones(32, np.float32)}}, None, ("shape", "32")),
    ({"fields": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}}, None, ("yarn", "positions")),
    ({"fields": {"llama.rope.scaling.type": "linear"}}, None, ("linear", "positions")),
    ({"fields": {"llama.logit_scale": 0.0625}}, None, ("logit_scale is 0.0625", "safetensors")),
    ({}, at(4, (1).to_bytes(4, "little")), ("version 1 of GGUF", "reads 2 and 3", "safetensors")),
    ({}, at(4, (9).to_bytes(4, "little")), ("version 9 of GGUF", "convert the model again")),
    ({"fields": {"general.type": "adapter"}}, None, ("general.type: adapter", "no model by itself")),
    ({"fields": {"general.type": "mmproj"}}, None, ("general.type: mmproj", "give the model's")),
    ({"fields": {"tokenizer.ggml.model": "martian"}}, None, ("its tokenizer (martian) cannot be", "tokenizer.json")),
    ({"split": "superbpe"}, None, ("splits text by the rule superbpe", "tokenizer.json")),
]


@pytest.mark.parametrize(("settings", "damage", "said"), REFUSED)
def test_what_is_no_whole_model_is_refused(
    tmp_path: Path, settings: dict[str, Any], damage: Callable[[Path], Any] | None, said: tuple[str, ...]
) -> None:
    """In one line that names the file, not a folder in the cache; and nothing is left in the cache."""
    file = write_gguf(tmp_path / "model.gguf", make_llama(), make_tokenizer(), **settings)
    moved = damage(file) if damage else None
    named = moved if isinstance(moved, Path) else file
    with pytest.raises(WeightsError) as error:
        gguf_folder(named)
    message = str(error.value)
    assert str(named) in message
    assert "\n" not in message
    assert "cache" not in message
    for words in said:
        assert words in message
    assert not list(tmp_path.glob("cache/gguf/*/*.safetensors"))


def test_a_file_without_a_tokenizer_is_a_model(tmp_path: Path) -> None:
    """`fortifai evaluate --tokenizer` gives it one; a study says that it lacks one."""
    folder = gguf_folder(write_gguf(tmp_path / "model.gguf", make_llama()))
    check_checkpoint(folder)
    with pytest.raises(WeightsError, match="no tokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["sha256-7d8bb6", "model.Q4_1", "model.gguf.part", "model.bin", "MODEL.GGUF"])
def test_a_file_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    """Whatever its name: other tools store theirs under hashes."""
    file = write_gguf(tmp_path / "model.gguf", make_llama(), make_tokenizer())
    whole = opened(file)
    assert opened(file.rename(tmp_path / name)) == whole


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.bin", b"\x80\x02", "is a file of PyTorch's pickles, which can run code and are not read"),
        ("model.onnx", b"\x08", "is a file of an ONNX graph"),
        ("model.safetensors", b"\x08", "is one file of a checkpoint: give the folder that holds it, "),
        ("config.json", b"{}", "is one file of a checkpoint: give the folder that holds it, "),
        (
            "model.zip",
            b"PK",
            "is a file, and no GGUF (it does not begin with these letters): a folder with config.json",
        ),
        ("model", b"FUGG", "is a file, and no GGUF"),
        ("model", b"", "is empty"),
        ("model.gguf.part", POINTER, "pointer of Git LFS"),
    ],
)
def test_a_file_that_is_no_model_is_told_what_it_is(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """It is there, so it is not said that there is no folder."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as error:
        check_checkpoint(opened(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_without_its_suffix_is_completed(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", make_llama())
    with pytest.raises(WeightsError, match=f"there is no folder {tmp_path}/model; {file} is to be named whole"):
        check_checkpoint(opened(tmp_path / "model"))


def test_a_disk_without_room_for_the_weights_is_said(tmp_path: Path) -> None:
    check_room(tmp_path, 1, "one byte")
    with pytest.raises(WeightsError, match=r"^x take 1,000,000,000,000 MB, and .* MB are free .*FORTIFAI_CACHE"):
        check_room(tmp_path, 10**18, "x")


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "model.gguf", make_llama())
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path / "taken"))
    with pytest.raises((WeightsError, UserError), match="FORTIFAI_CACHE"):
        gguf_folder(file)


@pytest.mark.parametrize("split", [None, "default"])
def test_a_file_that_names_no_rule_splits_as_gpt2(tmp_path: Path, split: str | None) -> None:
    original = make_tokenizer("gpt-2")
    folder = gguf_folder(write_gguf(tmp_path / "model.gguf", make_llama(), original, split=split))
    assert load_tokenizer(folder)(TEXT)["input_ids"] == original.encode(TEXT).ids


def test_without_the_package_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "model.gguf", make_llama())
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="the package gguf reads it, and is not installed: pip install gguf"):
        gguf_folder(file)


@pytest.mark.parametrize("names", [["a.gguf"], ["a.gguf", "b.gguf"]])
def test_a_folder_of_ggufs_says_which_to_name(tmp_path: Path, names: list[str]) -> None:
    """A folder is one of safetensors; its GGUF is named itself, for there may be several."""
    for name in names:
        write_gguf(tmp_path / name, make_llama())
    for config in (None, make_llama().config.to_dict()):
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(WeightsError) as error:
            check_checkpoint(tmp_path)
        assert all(name in str(error.value) for name in names)
        assert f"named itself, as {tmp_path / 'a.gguf'}" in str(error.value)


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    folder = gguf_folder(write_gguf(tmp_path / "model.gguf", make_llama(tied=True)))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
