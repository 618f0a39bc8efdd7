"""The one door to what is read from a Hugging Face folder or hub: configuration, tokenizer and network.

Nothing that comes with a checkpoint is run, asked about or taken over in silence: no code of its own, no kernels of the
hub, no pickles, none of its settings of generation. And no tensor that its files lack is made up.
"""

import json
import logging
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.engines.reasons import parts_that_do_not_fit, wrong_key, wrong_tensors
from fortifai_ray.errors import in_short
from fortifai_ray.files import LFS_POINTER, lfs_pointer

if TYPE_CHECKING:
    import torch

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_OF_TOKENIZERS = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "config.json",
)


_AS_SAVED = "the config.json that was saved with this model is needed"


class WeightsError(RuntimeError):
    """A checkpoint's tensors are missing, misshapen, or not those that the engine holds after loading; or its
    configuration is not that of a causal LM."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what transformers logs off the terminal: what matters of it is raised, or is a line of a dry run."""
    from transformers.utils import logging as transformers_logging

    handlers = list(logging.getLogger(transformers_logging.__name__.partition(".")[0]).handlers)

    def drop(_: logging.LogRecord) -> bool:
        return False

    for handler in handlers:
        handler.addFilter(drop)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(drop)


@quiet()
def causal_config(place: Path | str, revision: str | None = None) -> Any:
    """The configuration of the model in a folder or under a hub's name; no code that comes with it is run.

    Raises:
        WeightsError: it cannot be read, or it is not that of an architecture of transformers.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    written: dict[str, Any] = {}
    try:
        file = _file(place, "config.json", revision)
        written = read_json(file) if file is not None and file.is_file() else {}
        kind = written.get("model_type")
        if not written or kind in CONFIG_MAPPING:
            config: Any = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    except WeightsError:
        raise
    except Exception as error:  # transformers raises many kinds here; each means that there is no configuration
        reason = wrong_key(written, error) or in_short(error).rstrip(".")
        raise WeightsError(f"{place}: its config.json cannot be used: {reason}; {_AS_SAVED}") from error
    if written and kind is None:
        raise WeightsError(
            f"{place}: its config.json has no model_type; the one that transformers saves with a model is needed"
        )
    if kind is not None and kind not in CONFIG_MAPPING:
        own = "; the code that comes with it is never run" if "auto_map" in written else ""
        raise WeightsError(
            f"{place}: its config.json says model_type: {kind}, which transformers {__version__} does not have{own}; a "
            "model of an architecture that it has is needed"
        )
    # transformers chooses: a name here may stand for code to fetch and run. But its default kernels leave out the
    # soft cap of attention scores (Gemma 2), which vLLM applies.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    config._attn_implementation = "eager" if capped else None
    config._experts_implementation = None
    vars(config).pop("auto_map", None)
    return config


def network_class(config: Any, place: Path | str) -> Any:
    """transformers' class of causal LMs for a configuration.

    Raises:
        WeightsError: there is none.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise WeightsError(f"{place}: {config.model_type} is no architecture of causal language models")
    return found


def load_network(place: Path | str, dtype: "torch.dtype | str", revision: str | None = None) -> Any:
    """The causal LM of a folder or a hub's name, on the CPU and in evaluation mode: every tensor from its files.

    Its settings of generation are empty but for the tokens that begin, end and pad a text.

    Args:
        place: a folder of safetensors that holds a whole model, or a hub's name.
        dtype: of the weights; ``auto`` is the configuration's, or else the files' own.
        revision: of the hub's model.

    Raises:
        WeightsError: tensors are missing, misshapen or more than the architecture has, or nothing can be loaded.
    """
    from transformers.utils import ADAPTER_CONFIG_NAME

    config = causal_config(place, revision)
    kind = network_class(config, place)
    adapter = _file(place, ADAPTER_CONFIG_NAME, revision)
    if adapter is not None and adapter.is_file():  # transformers would load the model that it names, and adapt that
        raise WeightsError(f"{place} holds a LoRA adapter, no whole model: merge it into its model first")
    settings = _ends(config, place, revision)
    load = partial(kind.from_pretrained, place, dtype=dtype, revision=revision or "main", generation_config=settings)
    network = loaded(load, config, place)
    network.generation_config = settings  # where from_pretrained reads none, the configuration's own would stay
    return network.eval()


@quiet()
def fresh_network(place: Path | str, revision: str | None = None) -> Any:
    """A causal LM of the architecture of a folder or a hub's name, whose weights are not read: random ones in float32,
    by torch's generator and transformers' own law for that architecture.

    Raises:
        WeightsError: the configuration is not that of a causal LM, or no network can be made of it.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # of saving it, too
    config = causal_config(place, revision)
    kind = network_class(config, place)
    try:
        network = kind._from_config(config, dtype=torch.float32)
    except Exception as error:  # transformers raises many kinds here; each means that it cannot be made
        key = wrong_key(config.to_dict(), error) or in_short(error)
        raise WeightsError(f"{place}: its config.json cannot be used: {key}; {_AS_SAVED}") from error
    network.generation_config = _ends(config, place, revision)
    return network.eval()


def _ends(config: Any, place: Path | str, revision: str | None) -> Any:
    """Settings of generation that are empty but for the tokens that begin, end and pad a text."""
    from transformers import GenerationConfig

    text, own = config.get_text_config(), _read(_file(place, "generation_config.json", revision))
    return GenerationConfig(**special_ids(own, {key: getattr(text, key, None) for key in _SPECIAL}))


@quiet()
def loaded(load: Any, config: Any, place: Path | str) -> Any:
    """``load``, a ``from_pretrained`` of transformers, with nothing filled in.

    Raises:
        WeightsError: see :func:`load_network`.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with _reports() as reports:
        try:
            network, info = load(
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are reported instead
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises many kinds here; each means that nothing can be loaded
            key = wrong_key(config.to_dict(), error)
            if key:
                raise WeightsError(f"{place}: its config.json cannot be used: {key}; {_AS_SAVED}") from error
            reason = parts_that_do_not_fit(reports) or in_short(error)
            raise WeightsError(f"{place}: cannot be loaded: {reason}") from error
    wrong = wrong_tensors(type(network).__name__, info, config.architectures or [])
    if wrong:
        raise WeightsError(f"{place}: {wrong}")
    return network


@contextmanager
def _reports() -> Iterator[list[str]]:
    """Take transformers' tables of missing tensors from its log: their content becomes one line."""
    logger, reports = logging.getLogger("transformers.modeling_utils"), list[str]()

    def take(record: logging.LogRecord) -> bool:
        report = "LOAD REPORT" in record.getMessage()
        if report:
            reports.append(record.getMessage())
        return not report

    logger.addFilter(take)
    try:
        yield reports
    finally:
        logger.removeFilter(take)


@quiet()
def load_tokenizer(place: Path | str, revision: str | None = None) -> Any:
    """The fast tokenizer of a folder or a hub's name, without BPE's dropout, which would merge at random; no code that
    comes with it is run.

    Raises:
        WeightsError: none can be loaded; it names the file that is at fault where one can be told.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, use_fast=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here; each means that there is no tokenizer
        _check_tokenizer(place, revision)
        raise WeightsError(f"no tokenizer could be loaded from {place}: {in_short(error)}") from error
    if tokenizer.is_fast and getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        tokenizer.backend_tokenizer.model.dropout = None
    return tokenizer


def unknown_tokenizer_class(folder: Path) -> str | None:
    """The class that a folder's ``tokenizer_config.json`` names where transformers has none of that name."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    name = _read(folder / "tokenizer_config.json").get("tokenizer_class")
    forms = (name, f"{name.removesuffix('Fast')}Fast", name.removesuffix("Fast")) if isinstance(name, str) else ()
    return name if forms and not any(tokenizer_class_from_name(form) for form in forms) else None


def _check_tokenizer(place: Path | str, revision: str | None) -> None:
    """Find which of its files is why a tokenizer cannot be loaded. Raises :class:`WeightsError` where it is found."""
    files: dict[str, Path] = {}
    for name in _OF_TOKENIZERS:
        with suppress(OSError):  # a hub out of reach
            file = _file(place, name, revision)
            if file is not None and file.is_file():
                files[name] = file
    if not files and not Path(place).is_dir():
        return
    contents = {name: read_json(file) for name, file in files.items() if file.suffix == ".json"}
    for file in files.values():
        check_content(file)
    settings = contents.get("tokenizer_config.json", {})
    kind, own = settings.get("tokenizer_class"), settings.get("auto_map")
    if kind is not None and not isinstance(kind, str):
        raise WeightsError(f"{files['tokenizer_config.json']} has tokenizer_class: {kind}; the name of one is needed")
    if own and (not isinstance(own, Mapping) or "AutoTokenizer" in own):
        raise WeightsError(
            f"{place}: its tokenizer_config.json has auto_map: the code that comes with a tokenizer is never run; a "
            "tokenizer of a class that transformers has is needed. Where its tokenizer.json is the whole tokenizer, "
            "write tokenizer_class: PreTrainedTokenizerFast there and remove auto_map"
        )
    if "tokenizer.json" not in files:
        named = ", ".join(name for name in files if name != "config.json") or "none of a tokenizer's files"
        raise WeightsError(
            f"no tokenizer could be loaded from {place}: it has {named}, and a tokenizer.json is needed "
            "(save_pretrained of a fast tokenizer writes one)"
        )
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(files["tokenizer.json"]))
    except Exception as error:  # tokenizers raises no other kind
        raise WeightsError(
            f"{files['tokenizer.json']} is no tokenizer that can be read ({in_short(error)}): the one that a fast "
            "tokenizer's save_pretrained writes is needed"
        ) from error


def end_of_text_ids(folder: Path) -> list[int]:
    """The token ids that end a text, from ``generation_config.json`` or else ``config.json``."""
    config = _read(folder / "config.json")
    ids = special_ids(_read(folder / "generation_config.json"), config, config.get("text_config")).get("eos_token_id")
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def special_ids(*sources: Any) -> dict[str, Any]:
    """The tokens that begin, end and pad a text, each from the first of ``sources`` that has it.

    What is no token, as -1 or a word, counts as absent.
    """
    found: dict[str, Any] = {}
    for source in sources:
        for key in _SPECIAL:
            given = source.get(key) if isinstance(source, Mapping) else None
            ids = [i for i in (given if isinstance(given, list) else [given]) if type(i) is int and i >= 0]
            if ids and key not in found:
                found[key] = ids if isinstance(given, list) and key == "eos_token_id" else ids[0]
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file that is a mapping. Raises :class:`WeightsError`."""
    check_content(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path} cannot be read ({in_short(error)}): a complete checkpoint is needed") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is no JSON mapping: a complete checkpoint is needed")
    return content


def check_content(path: Path) -> None:
    """Raise :class:`WeightsError` for an empty file, a byte-order mark, or a pointer of Git LFS in the file's place."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): a complete checkpoint is needed") from None
    if not start:
        raise WeightsError(f"{path} is empty: a complete checkpoint is needed")
    if start.startswith(BOM_UTF8):
        raise WeightsError(f"{path} begins with a byte-order mark: save it as UTF-8 without one")
    if start == LFS_POINTER:
        raise WeightsError(f"{path} {lfs_pointer(path)}")


def _read(path: Path | None) -> dict[str, Any]:
    """The mapping in a JSON file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _file(place: Path | str, name: str, revision: str | None = None) -> Path | None:
    """The path of a checkpoint's file: in its folder, or fetched from the hub; None where it has no such file."""
    if Path(place).is_dir():
        return Path(place) / name
    from transformers.utils import cached_file

    found = cached_file(place, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


@lru_cache(maxsize=16)
def local_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder on this machine into which the hub's files of a model are fetched, its configuration at least; None
    where that cannot be fetched."""
    try:
        found = _file(name, "config.json", revision)
    except OSError:
        return None
    return None if found is None else found.parent
