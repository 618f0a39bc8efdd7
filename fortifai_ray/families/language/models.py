"""A chain's causal LM: the starting model, documents kept apart in its blocks, and saving it."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fortifai_ray.engines.causal_cache import row_limit
from fortifai_ray.engines.pretrained import (
    WeightsError,
    causal_config,
    end_of_text_ids,
    fresh_network,
    load_network,
    local_folder,
    network_class,
    read_json,
    unknown_tokenizer_class,
)
from fortifai_ray.engines.soundness import (
    check_attention,
    check_causal,
    check_checkpoint,
    check_finite,
    check_network,
    check_vocabulary,
)
from fortifai_ray.engines.weight_files import hub_heads, is_complete
from fortifai_ray.errors import UserError
from fortifai_ray.families.language.config import ModelConfig
from fortifai_ray.families.language.corpus import Corpus
from fortifai_ray.storage.store import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1  # bump when the same seed gives another model

_HEAD_SIZE = 32  # the smallest that vLLM's CPU attention serves
_CONTEXT = 512


def preset_shape(model: ModelConfig) -> dict[str, Any]:
    """A preset's Llama: by default about one million parameters, most of them in four decoder layers.

    Small enough to collapse within minutes on one core, deep enough to learn local grammar.
    """
    heads = model.hidden_size // _HEAD_SIZE
    return {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.hidden_size * 11 // 4,
        "num_hidden_layers": model.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": _CONTEXT,
        "tie_word_embeddings": True,
    }


def model_identity(model: ModelConfig, *, scratch: bool = False) -> dict[str, Any]:
    """What determines the starting model apart from its seed: the preset's shape, or the checkpoint's content.

    Where random weights take the place of the checkpoint's (``scratch``), that is its configuration alone.
    """
    if model.random:
        return {"preset": preset_shape(model), "vocab_size": model.vocab_size}
    if folder := model.folder:
        files = [*([] if scratch else sorted(folder.glob("*.safetensors"))), folder / "config.json"]
        return {file.name: file_sha256(file) for file in files}
    return {"hub": model.hub, "revision": model.revision}


def known_config(model: ModelConfig) -> dict[str, Any] | None:
    """The model's ``config.json``, as far as it is known before anything starts; None for a hub's model."""
    if model.random:
        return preset_shape(model)
    if folder := model.folder:
        return json.loads((folder / "config.json").read_text())
    return None


def context_length(model: ModelConfig) -> int | None:
    """The longest row of tokens that the model takes; None where that is not known before anything starts."""
    if model.preset is not None:
        return _CONTEXT
    if model.hub:
        return None
    return row_limit(causal_config(model.checkpoint))


@lru_cache(maxsize=4)  # a study's recipes are checked one by one, and nearly all share one model
def skeleton(model: ModelConfig) -> Any | None:
    """The network without weights, on PyTorch's meta device; None for a hub's model."""
    if model.hub:
        return None
    import torch
    import transformers

    config: Any = transformers.LlamaConfig(**preset_shape(model)) if model.random else causal_config(model.checkpoint)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def check_model(model: ModelConfig, corpus: Corpus) -> None:
    """Check a pretrained starting model and that the corpus' tokens are its own, as far as that is known here.

    A preset is of this package, whose tests check it: reading it would import PyTorch for a finished study. Of a
    hub's model that means its configuration and the heads of its files; nothing is downloaded for it.

    Raises:
        UserError: it is no sound causal LM (:mod:`fortifai_ray.engines.soundness`), or has not all the tokens.
    """
    if model.preset is not None:
        return
    try:
        folder = model.folder or local_folder(model.checkpoint, model.revision)
        if folder is None:  # no hub can be reached: the store may hold all that is needed
            return
        if model.folder or is_complete(folder):
            check_checkpoint(folder)
        elif heads := hub_heads(model.checkpoint, model.revision):
            check_network(folder, heads)
        else:
            check_causal(causal_config(folder), model.checkpoint)
        check_vocabulary(folder, corpus.tokenizer_path, _largest_token(corpus.stage.path), folder)
    except WeightsError as error:
        raise _said(model, error) from None


def _said(model: ModelConfig, error: WeightsError) -> UserError:
    """What is wrong with a model, under the name that its user gave: a GGUF file's folder is in the cache."""
    return UserError(f"family.model: {str(error).replace(model.checkpoint, model.name)}")


@lru_cache(maxsize=16)  # most of a study's recipes share one corpus
def _largest_token(corpus: Path) -> int:
    return max(int(np.load(corpus / f"{part}.npy", mmap_mode="r").max()) for part in ("train", "held_out"))


def describe_ends(model: ModelConfig, corpus: Corpus) -> tuple[str, ...]:
    """What a dry run says where a pretrained model's texts do not end as the corpus' documents do."""
    folder = model.folder or (model.hub and local_folder(model.checkpoint, model.revision))
    ends = end_of_text_ids(folder) if folder else [corpus.end_of_text]
    if corpus.end_of_text in ends:
        return ()
    named = f"eos_token_id {', '.join(map(str, ends))}" if ends else "no eos_token_id"
    return (
        f"warning: model: {model.name} names {named}, and the tokenizer's end of text is {corpus.end_of_text}: "
        f"what it generates will not end there; write eos_token_id: {corpus.end_of_text} in its config.json",
    )


def describe_files(model: ModelConfig, corpus: Corpus) -> tuple[str, ...]:
    """What a dry run says of a pretrained model's other files: settings that cannot be read, a tokenizer of a class
    that transformers lacks, tokens that the model has no place for."""
    folder = model.folder or (model.hub and local_folder(model.checkpoint, model.revision))
    if not folder:
        return ()
    lines, settings = list[str](), folder / "generation_config.json"
    try:
        if settings.is_file():
            read_json(settings)
    except WeightsError as error:
        lines.append(f"warning: model: {error}; its end of text is taken from config.json")
    named = unknown_tokenizer_class(folder)
    if named:
        lines.append(
            f"warning: tokenizer: {folder / 'tokenizer_config.json'} says tokenizer_class: {named}, which transformers "
            "does not have: its tokenizer.json alone is read"
        )
    size = causal_config(folder).get_text_config().vocab_size
    added = corpus.added_tokens(size)
    if added:
        more = f" and {len(added) - 3} more" if len(added) > 3 else ""
        lines.append(
            f"warning: tokenizer: the model has {size} tokens and no place for "
            f"{', '.join(map(repr, added[:3]))}{more}, added to its tokenizer: this "
            "text has none of them, and a text that has is refused"
        )
    return tuple(lines)


def create_model(model: ModelConfig, corpus: Corpus, seed: int, folder: Path, *, scratch: bool = False) -> None:
    """Write the starting model into ``folder``: random weights by ``seed`` for a preset that has none of its own, and
    for any other model from ``scratch``; else the checkpoint's own."""
    import torch
    import transformers

    if model.random or scratch:
        torch.manual_seed(seed)
    if model.random:
        network: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_preset_shape(model, corpus)))
    else:
        network = _of_checkpoint(model, scratch)
    network.save_pretrained(folder)


def _of_checkpoint(model: ModelConfig, scratch: bool) -> Any:
    try:
        check_causal(causal_config(model.checkpoint, model.revision), model.checkpoint)
        if scratch:
            network = fresh_network(model.checkpoint, model.revision)
        else:
            network = load_network(model.checkpoint, "auto", model.revision)
        check_finite(network.named_parameters(), model.checkpoint)
        check_attention(network, model.checkpoint)
    except WeightsError as error:
        if model.hub and isinstance(error.__cause__, OSError):  # of the network, perhaps: another try may do
            raise error.__cause__ from None
        raise _said(model, error) from None
    return network


def write_config(model: ModelConfig, corpus: Corpus, folder: Path) -> None:
    """Write only the starting model's ``config.json``, from which an engine starts before there are weights."""
    folder.mkdir(parents=True, exist_ok=True)
    # By hand, where it can be: transformers would import torch, which takes the driver three seconds.
    if model.random:
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_preset_shape(model, corpus)}
        (folder / "config.json").write_text(json.dumps(config))
    elif model.preset is not None:
        shutil.copyfile(Path(model.checkpoint) / "config.json", folder / "config.json")
    else:
        loaded = causal_config(model.checkpoint, model.revision)
        loaded.architectures = [network_class(loaded, model.checkpoint).__name__]  # as create_model saves it
        loaded.save_pretrained(folder)


def _preset_shape(model: ModelConfig, corpus: Corpus) -> dict[str, Any]:
    vocab_size = len(json.loads((corpus.tokenizer_path / "tokenizer.json").read_text())["model"]["vocab"])
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), corpus.end_of_text)
    return {**preset_shape(model), "vocab_size": vocab_size, **ends}


def save_whole(model: Any, folder: Path, rank: int) -> None:
    """Write ``model`` as a Hugging Face folder of safetensors, from rank 0. Every worker must call it.

    Shards are gathered one tensor at a time, in rank 0's main memory.
    """
    from torch.distributed.tensor import DTensor

    weights = {}
    for name, parameter in model.named_parameters():  # a tied weight once, as it is written
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if rank == 0:
            weights[name] = whole.detach().cpu()
    if rank == 0:
        buffers = dict(model.named_buffers()).keys() & model.state_dict().keys()
        weights |= {name: model.get_buffer(name).cpu() for name in buffers}
        model.save_pretrained(folder, state_dict=weights)


def keep_documents_apart(model: Any, end_of_text: int) -> None:
    """Make the body of ``model``, a Hugging Face causal LM, process each document of a block separately.

    Positions restart with each document. An end-of-text token ends one document and begins the next: it is predicted
    from what precedes it, and what follows is predicted from it and nothing earlier. So every target has a context of
    its own document alone, and none must be left out.

    transformers detects packed documents by positions that restart, if nothing is cached. Not every architecture does:
    the model is tested on a row, and refused with :class:`UserError` where it attends across documents.
    """

    def add_positions(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        place = positions(arguments[0] if arguments else keywords["input_ids"], end_of_text)
        return arguments, {**keywords, "position_ids": place, "use_cache": False}

    model.base_model.register_forward_pre_hook(add_positions, with_kwargs=True)
    if not _apart(model, end_of_text):
        raise UserError(
            f"training.document_mask: {type(model).__name__} attends across the documents of a block; leave it out"
        )


def positions(tokens: "Tensor", end_of_text: int) -> "Tensor":
    """Each token's place in its document: int64 of the shape of ``tokens`` (rows, length)."""
    import torch

    place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return place - torch.where(tokens == end_of_text, place, 0).cummax(1).values


def _apart(model: Any, end_of_text: int) -> bool:
    """Whether tokens after an end-of-text token get the logits that they get at the beginning of a row."""
    import torch

    others = [token for token in range(9) if token != end_of_text][:8]
    second = torch.tensor([[end_of_text, *others[:4]]], device=model.device)
    first = torch.tensor([others[4:]], device=model.device)
    training = model.training
    model.eval()
    with torch.no_grad():
        alone = model(input_ids=second, use_cache=False).logits
        packed = model(input_ids=torch.cat([first, second], 1), use_cache=False).logits
    model.train(training)
    difference = (packed[:, first.shape[1] :] - alone).abs().max()
    return bool(difference <= 1000 * torch.finfo(alone.dtype).eps * alone.abs().max())
