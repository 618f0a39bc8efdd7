"""Whether a folder holds a causal LM, all of it and nothing else: known before anything is trained or started.

A study's starting model and what is evaluated must pass. A generation's own weights need not: training may diverge, and
then they are not finite.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_ray.engines.pretrained import (
    WeightsError,
    causal_config,
    end_of_text_ids,
    load_tokenizer,
    loaded,
    network_class,
)
from fortifai_ray.engines.reasons import is_buffer
from fortifai_ray.engines.weight_files import Tensor, check_folder

if TYPE_CHECKING:
    import torch

_AT_ONCE = 1 << 24  # numbers of a tensor that are tested together: 64 MB in float32
# Configurations with is_decoder that say nothing by it: these networks are causal in any case.
_CAUSAL_ANYWAY = ("gpt_neox", "gpt_neox_japanese")
_EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\..*")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8"}


def check_checkpoint(folder: Path, *, values: bool = True) -> None:
    """Check a whole checkpoint in a folder.

    Heads of files alone are read for its tensors' names and shapes; ``values`` reads each tensor, one by one, for
    numbers that are not finite. What was checked once in this process, and has not changed since, is not read again.

    Raises:
        WeightsError: see :func:`check_folder` and :func:`check_network`; or a tensor holds NaN or an infinity.
    """
    tensors = check_folder(folder)
    stats = {tensor.file: tensor.file.stat() for tensor in tensors.values()}
    _check_once(folder, tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()), values)


@lru_cache(maxsize=64)
def _check_once(folder: Path, files: tuple[tuple[Path, int, int], ...], values: bool) -> None:
    tensors = check_folder(folder)
    network = check_network(folder, tensors)
    if values:
        weights = {
            name: tensor.file for name, tensor in tensors.items() if not is_buffer(name)
        }  # a mask may be infinite
        check_finite(((name, _tensor(file, name)) for name, file in weights.items()), folder)
        _check_ties(folder, tensors, network)


def check_network(folder: Path, tensors: Mapping[str, Tensor]) -> Any:
    """The network of a folder without weights, on PyTorch's meta device, once it is known to be a causal LM whose
    tensors are those of the files.

    transformers itself renames and joins the files' tensors, and reports what it misses.

    Raises:
        WeightsError: it is no causal LM; tensors are missing, misshapen, given twice or more than it has.
    """
    config = causal_config(folder)
    check_causal(config, folder)
    kind = network_class(config, folder)
    _check_names(folder, tensors, kind.base_model_prefix)
    shapes = {name: _without_data(tensor) for name, tensor in tensors.items()}
    load = partial(kind.from_pretrained, None, state_dict=shapes, device_map={"": "meta"}, dtype="auto")
    return loaded(load, config, folder)


def _without_data(tensor: Tensor) -> "torch.Tensor":
    import torch

    return torch.empty(tensor.shape, dtype=getattr(torch, _DTYPES.get(tensor.dtype, "int64")), device="meta")


def _check_names(folder: Path, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """transformers takes a tensor by its name with and without the body's prefix, and would keep one of the two; and it
    joins a layer's experts in the order of their numbers, whatever those are."""
    experts: dict[str, set[int]] = defaultdict(set)
    for name in tensors:
        if f"{prefix}.{name}" in tensors:
            raise WeightsError(f"{folder}: its files hold a tensor twice, as {name} and as {prefix}.{name}; remove one")
        if found := _EXPERT.fullmatch(name):
            experts[found[1]].add(int(found[2]))
    for layer, numbers in experts.items():
        if max(numbers) >= len(numbers):
            absent = min(set(range(len(numbers))) - numbers)
            raise WeightsError(
                f"{folder}: its files hold {layer}.{max(numbers)} and no experts.{absent}: fetch or save the whole "
                "checkpoint again"
            )


def check_causal(config: Any, place: Path | str) -> None:
    """Check that a configuration is that of a model which predicts each token from those before it alone.

    Its ``architectures`` decide, as training saved them: transformers would load any model of the same ``model_type``
    as a causal LM, a classifier without its head, and BERT with attention to both sides.

    Raises:
        WeightsError: it is not; or its weights are quantised.
    """
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise WeightsError(
            f"{place}: its config.json has quantization_config: {method or 'quantised'} weights cannot be trained; "
            "give the model that they were made from"
        )
    _check_class(config, place)
    both_sides = getattr(config, "is_decoder", True) is False and config.model_type not in _CAUSAL_ANYWAY
    two_parts = getattr(config, "is_encoder_decoder", False)
    if two_parts or both_sides or not getattr(config, "causal", True) or config.model_type == "xlnet":
        what = "has an encoder and a decoder" if two_parts else "sees the text on both sides of a token"
        raise WeightsError(
            f"{place}: {config.model_type} {what}, by its config.json: a causal language model is needed"
        )


def _check_class(config: Any, place: Path | str) -> None:
    """Check that the classes which a configuration names are those of its ``model_type``."""
    import transformers

    kind, saved = network_class(config, place), config.architectures or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise WeightsError(
            f"{place}: its config.json has architectures: {json.dumps(saved)}; a list is needed, as [{kind.__name__}]"
        )
    body = transformers.MODEL_MAPPING.get(type(config), None)
    known = {each.__name__.lower() for each in (kind, *(body if isinstance(body, tuple) else (body,))) if each}
    if not saved or any(name.lower() in known for name in saved):
        return
    causal = [getattr(transformers, name, None) for name in saved if name.lower().endswith("forcausallm")]
    if not causal:
        raise WeightsError(
            f"{place}: its config.json says that it is {', '.join(saved)}, which is no causal language model; "
            f"{kind.__name__} is needed"
        )
    room = kind.__module__.rpartition(".")[0]  # transformers keeps the classes of a model_type in one
    if not any(getattr(each, "__module__", "").rpartition(".")[0] == room for each in causal):
        raise WeightsError(
            f"{place}: its config.json says architectures: {', '.join(saved)} and model_type: {config.model_type}, "
            f"whose class is {kind.__name__}: the two must name one model"
        )


@lru_cache(maxsize=64)  # as above: a tokenizer takes a third of a second to load
def check_vocabulary(folder: Path, tokenizer: Path, largest: int = 0, origin: Path | None = None) -> None:
    """Check that the tokens of a text are tokens of the model. It may have more: vocabularies are padded.

    Args:
        folder: the model's.
        tokenizer: the tokenizer's folder. Tokens that were added to it may be beyond the model's: they are written
            nowhere but where a text contains them.
        largest: the largest token of a text that is known already.
        origin: the folder from which the tokenizer's was made, if it was: what its user knows.

    Raises:
        WeightsError: the tokenizer's vocabulary is larger, or an end-of-text token is none of the model's.
    """
    size = causal_config(folder).get_text_config().vocab_size
    words, source = load_tokenizer(tokenizer), origin or tokenizer
    vocabulary = words.get_vocab()
    own = max((i for i in vocabulary.values() if i not in words.added_tokens_decoder), default=0)
    beyond = max(own, largest, words.eos_token_id or 0)
    if beyond >= size:
        name = _described(words, beyond, source)
        raise WeightsError(
            f"{folder}: the model has {size} tokens (0 to {size - 1}), and the tokenizer in {source} has "
            f"{len(vocabulary)}: {name} is token {beyond}; give the model's own tokenizer, or make the model's "
            "embedding as large (resize_token_embeddings)"
        )
    for end in end_of_text_ids(folder):
        if end >= size:
            raise WeightsError(
                f"{folder}: eos_token_id: {end} is none of the model's {size} tokens (0 to {size - 1}); the "
                f"tokenizer's end of text is {words.eos_token_id}"
            )


def _described(words: Any, token: int, folder: Path) -> str:
    """A token of a tokenizer, in words; its end of text may be one that its files add to it."""
    if token != words.eos_token_id:
        return repr(words.convert_ids_to_tokens(token))
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if file.is_file() and Tokenizer.from_file(str(file)).token_to_id(words.eos_token) is None:
        return f"its end of text, eos_token: {words.eos_token}, is not in its tokenizer.json and"
    return "its end of text"


def check_finite(named: "Iterable[tuple[str, torch.Tensor]]", place: Path | str) -> None:
    """Check that all numbers are finite. Raises :class:`WeightsError`."""
    for name, tensor in named:
        if tensor.is_floating_point():
            wrong = sum(map(_not_finite, tensor.detach().reshape(-1).split(_AT_ONCE)))
            if wrong:
                raise WeightsError(
                    f"{place}: {name} holds {wrong} numbers that are not finite (NaN, infinity): a checkpoint whose "
                    "training did not diverge is needed"
                )


def _not_finite(numbers: "torch.Tensor") -> int:
    """How many are not finite. A sum takes a fraction of the time, and is finite only where all of them are."""
    import torch

    total = numbers.sum(dtype=torch.float64 if numbers.dtype == torch.float64 else torch.float32)
    return 0 if total.isfinite() else int((~numbers.isfinite()).sum())


def check_attention(network: Any, place: Path | str) -> None:
    """Check, on a row of eight tokens, that what follows a token does not change what is predicted there.

    Raises:
        WeightsError: it does, which the configuration did not show.
    """
    import torch

    rows = torch.arange(8)[None] % network.get_input_embeddings().weight.shape[0]
    other = rows.clone()
    other[:, -1] = 0
    with torch.inference_mode():
        first, second = (network(input_ids=each).logits[:, :-1].float() for each in (rows, other))
    tolerance = 1e-4 if network.dtype == torch.float32 else 0.05  # relative; rounding alone is a hundredth of that
    if (first - second).abs().max() > tolerance * first.abs().max():
        raise WeightsError(
            f"{place}: {type(network).__name__} sees the text on both sides of a token: it is not causal"
        )


def _check_ties(folder: Path, tensors: Mapping[str, Tensor], network: Any) -> None:
    """Check that tensors which the configuration ties are equal where the files hold both: transformers would use
    both, and vLLM only one."""
    prefix = f"{network.base_model_prefix}."
    names = {name.removeprefix(prefix): name for name in tensors}
    for tied in network.all_tied_weights_keys.items():
        held = [names[name.removeprefix(prefix)] for name in tied if name.removeprefix(prefix) in names]
        if len(held) == 2 and not _equal(*(_tensor(tensors[name].file, name) for name in held)):
            raise WeightsError(
                f"{folder}: {held[0]} and {held[1]} differ, and its config.json ties them: write "
                "tie_word_embeddings: false there, or remove one of the two"
            )


def _tensor(file: Path, name: str) -> "torch.Tensor":
    from safetensors import safe_open

    with safe_open(file, framework="pt") as content:
        return content.get_tensor(name)


def _equal(one: "torch.Tensor", other: "torch.Tensor") -> bool:
    return one.shape == other.shape and bool((one == other).all())
