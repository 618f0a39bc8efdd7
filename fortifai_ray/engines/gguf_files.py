"""A model given as one GGUF file: dequantised once into a Hugging Face folder, which is then what everything reads.

transformers reads the file with the package ``gguf``, whose readers of the quantised formats are the format's own. What
it would leave out in silence (tensors, scaled positions, how a tokenizer splits text) is made good here or refused.
"""

import errno
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache, partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from fortifai_ray.engines.pretrained import WeightsError, check_content, loaded, network_class, quiet
from fortifai_ray.engines.soundness import check_causal, check_checkpoint
from fortifai_ray.errors import in_short
from fortifai_ray.storage.local import LocalStages
from fortifai_ray.storage.location import cache_root
from fortifai_ray.storage.stage import StageKey, file_sha256

VERSION = 1  # bump when the same file gives another folder

_SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_OF_EXPERTS = re.compile(r"_exps\.|_shexp|_projs\.|ffn_gate_inp")  # which transformers joins or splits, and renames
_WHOLE = "fetch the whole file again"
_SAFETENSORS = "give the model's own folder, of safetensors"
# Pre-tokenizers of byte-level vocabularies, by their names in llama.cpp, beside those that transformers knows. The
# first split as GPT-2's; the others split digits one by one before that.
_AS_GPT2 = frozenset({"default", "gpt-2", "phi-2", "roberta-bpe", "jina-es", "jina-de", "gigachat", "mellum"})
_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
_NO_TOKENIZER = (None, "none", "no_vocab")
# What scales positions or logits, by the end of its key, and the value that changes nothing. transformers reads none.
_NEUTRAL = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scale_linear": 1.0}
_OF_CONFIG = ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale")


def opened(path: Path) -> Path:
    """The folder of a model: ``path`` itself, or what a GGUF file there was made into.

    Raises:
        WeightsError: it is a GGUF file that cannot be read as a causal LM, whole.
    """
    return gguf_folder(path) if is_gguf(path) else path


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file: by its first letters, as tools store some under other names or none, or by its
    name."""
    if path.is_dir():
        return False
    return path.suffix.lower() == _SUFFIX or (path.is_file() and _begins(path) == _MAGIC)


def _begins(file: Path) -> bytes:
    try:
        with file.open("rb") as content:
            return content.read(len(_MAGIC))
    except OSError:
        return b""


def gguf_folder(file: Path) -> Path:
    """The folder that a GGUF file is made into: float32 weights (4 bytes a parameter), configuration and tokenizer.

    It lies in this machine's cache (``FORTIFAI_CACHE``) under the hash of the file's content, so that the file is
    dequantised once, whatever its name. Processes that want it at once take turns.

    Raises:
        WeightsError: see :func:`write_folder`.
    """
    _check_start(file)
    stat = file.stat()
    try:
        return _cached(file.absolute(), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise WeightsError(
            f"{file}: {cache_root()} (FORTIFAI_CACHE), which gets its folder, cannot be written ({error.strerror}): "
            "set FORTIFAI_CACHE to another folder"
        ) from error


@lru_cache(maxsize=16)
def _cached(file: Path, size: int, changed: int) -> Path:
    stages = LocalStages(cache_root() / "gguf", f"{cache_root()} (FORTIFAI_CACHE)")
    key = StageKey("gguf", VERSION, {"sha256": file_sha256(file)})
    stage = stages.open(key.hash) or stages.step(key, partial(_compute, file), lambda waited: None)
    return stage.path


def _compute(file: Path, folder: Path) -> Mapping[str, Any]:
    write_folder(file, folder)
    return {"file": file.name}


def write_folder(file: Path, folder: Path) -> None:
    """Write a GGUF file's model into ``folder``: float32 weights as safetensors, configuration and tokenizer (none
    where the file has none).

    Raises:
        WeightsError: the file is cut short, one of several, or of an architecture that transformers does not read; it
            is no sound causal LM (:mod:`fortifai_ray.engines.soundness`); something in it would be left out; ``gguf``
            is not installed; the folder's disk has no room for its weights.
        OSError: the folder cannot be written.
    """
    fields, sizes = _head(file)
    config = _config(file)
    _check_scales(file, fields, config)
    check_causal(config, file)
    check_room(folder, 4 * sum(sizes.values()), f"{file}: its weights in float32")
    network = _network(file, config, list(sizes))
    with _written():
        network.save_pretrained(folder)
        if fields.get("tokenizer.ggml.model") not in _NO_TOKENIZER:
            _tokenizer(file, fields).save_pretrained(folder)
    try:
        check_checkpoint(folder)
    except WeightsError as error:
        raise WeightsError(str(error).replace(str(folder), str(file))) from None


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise :class:`WeightsError` where the disk of ``folder`` has less than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WeightsError(
            f"{what} take {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free on the disk of {folder}: make "
            "room, or name another place (fetch: --into; GGUF files: FORTIFAI_CACHE; while fetching: TMPDIR)"
        )


@contextmanager
def _written() -> Iterator[None]:
    """What safetensors says of a disk, as the error of the system that it is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, in_short(error)) from None


def _check_start(file: Path) -> None:
    """What can be said of a file without reading it."""
    if not file.is_file():
        raise WeightsError(f"there is no file {file}")
    check_content(file)
    if _begins(file) != _MAGIC:
        raise WeightsError(f"{file} is no GGUF: it does not begin with the letters GGUF; {_WHOLE}")
    if _PART.search(file.name.removesuffix(file.suffix) if file.suffix.lower() == _SUFFIX else file.name):
        raise _one_of_several(file)
    if find_spec("gguf") is None:
        raise WeightsError(f"{file}: the package gguf reads it, and is not installed: pip install gguf")


def _one_of_several(file: Path) -> WeightsError:
    return WeightsError(
        f"{file} is one part of a GGUF in several files: join them first (llama-gguf-split --merge FIRST OUT), and "
        "give the whole"
    )


def _head(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The values of a file's keys (of arrays, only how long they are), and how many numbers each tensor has."""
    from gguf import GGUFReader

    _check_version(file)
    try:
        reader = GGUFReader(file)
        fields = {
            name: len(field.data) if field.types and int(field.types[0]) == 9 else field.contents()  # 9: an array
            for name, field in reader.fields.items()
        }
    except Exception as error:  # its reader raises what NumPy and Python raise beyond the end of a file
        raise WeightsError(f"{file} cannot be read ({in_short(error)}): it is cut short or damaged; {_WHOLE}") from None
    if fields.get("split.count", 1) > 1:
        raise _one_of_several(file)
    if not reader.tensors:
        raise WeightsError(f"{file} holds no tensors: a model's file is needed, not that of its vocabulary alone")
    if (kind := fields.get("general.type", "model")) != "model":
        raise WeightsError(f"{file} is a GGUF of general.type: {kind}, which is no model by itself: give the model's")
    return fields, {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}


def _check_version(file: Path) -> None:
    from gguf.gguf_reader import READER_SUPPORTED_VERSIONS

    with file.open("rb") as content:
        number = content.read(8)[len(_MAGIC) :]
    versions = {int.from_bytes(number, "little"), int.from_bytes(number, "big")}
    if len(number) == 4 and versions.isdisjoint(READER_SUPPORTED_VERSIONS):
        raise WeightsError(
            f"{file} is written in version {min(versions)} of GGUF, and the package gguf reads "
            f"{' and '.join(map(str, READER_SUPPORTED_VERSIONS))}: convert the model again, or {_SAFETENSORS}"
        )


@quiet()
def _config(file: Path) -> Any:
    from transformers import AutoConfig, __version__
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except Exception as error:  # of many kinds; each means that there is no configuration
        known = ", ".join(sorted({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS} - {"general", "tokenizer"}))
        raise WeightsError(
            f"{file}: {in_short(error).rstrip('.')}; {_SAFETENSORS}: transformers {__version__} reads GGUF files of "
            f"{known}"
        ) from None
    vars(config).pop("_model_name_or_path", None)
    config._attn_implementation = None
    return config


def _check_scales(file: Path, fields: Mapping[str, Any], config: Any) -> None:
    """Refuse what scales positions or logits otherwise than the configuration does."""
    family = fields.get("general.architecture")
    for name, neutral in _NEUTRAL.items():
        given = fields.get(f"{family}.{name}", neutral)
        if given not in (neutral, 0.0):
            raise WeightsError(
                f"{file}: {family}.{name} is {given}, which transformers does not read from GGUF: its positions would "
                "not be scaled; give the model's own safetensors"
            )
    for name in _OF_CONFIG:
        given = fields.get(f"{family}.{name}")
        held = getattr(config, name, None)
        if given is not None and given != held:
            raise WeightsError(
                f"{file}: {family}.{name} is {given}, which transformers does not read from GGUF: it would be {held}; "
                "give the model's own safetensors"
            )


def _network(file: Path, config: Any, names: list[str]) -> Any:
    """The network with the file's weights as float32, as one that was never quantised."""
    import torch

    kind = network_class(config, file)
    load = partial(kind.from_pretrained, file.parent, gguf_file=file.name, dtype=torch.float32)
    with redirect_stderr(StringIO()):  # a progress bar that nothing else turns off
        quantised = loaded(load, config, file)
    _check_all_taken(file, quantised, names)
    clean = type(config).from_dict(
        {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"):
        network = kind(clean)
    tensors = quantised.state_dict()
    for name, place in network.state_dict().items():
        if tensors[name].shape != place.shape:
            raise WeightsError(
                f"{file}: the shape of {name} is {list(tensors[name].shape)}, and {list(place.shape)} by its keys; "
                "the file was not written whole: take another"
            )
    network.load_state_dict(tensors, assign=True)
    return network


def _check_all_taken(file: Path, network: Any, names: list[str]) -> None:
    """Refuse tensors of the file that have no place in the network. transformers reports them only of the
    architectures that its newer reader serves, and leaves the others' out."""
    from transformers.integrations.gguf import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    if is_gguf_arch_supported(network.config.model_type):
        return
    places = get_gguf_hf_weights_map(network, TensorProcessor())
    left = [name for name in names if name not in places and not _OF_EXPERTS.search(name)]
    if left:
        more = f" and {len(left) - 1} more tensors" if len(left) > 1 else ""
        raise WeightsError(
            f"{file} holds {left[0]}{more}, which transformers has no place for and would leave out; give the model's "
            "own safetensors"
        )


@quiet()
def _tokenizer(file: Path, fields: Mapping[str, Any]) -> Any:
    """The file's tokenizer, which splits text as it was trained to."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here; each means that there is no tokenizer
        raise WeightsError(
            f"{file}: its tokenizer ({fields['tokenizer.ggml.model']}) cannot be read: {in_short(error).rstrip('.')}; "
            "give the model's own folder, with its tokenizer.json"
        ) from None
    pre = fields.get("tokenizer.ggml.pre", "default")
    if fields["tokenizer.ggml.model"] != "gpt2" or pre in GGUF_PRE_TOKENIZER_SPLITS or pre in _AS_GPT2:
        return tokenizer
    if pre not in _BY_DIGIT:
        raise WeightsError(
            f"{file}: its tokenizer splits text by the rule {pre}, which transformers does not have for GGUF; give the "
            "model's own folder, with its tokenizer.json"
        )
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(False)])
    return tokenizer
