"""Documents that are packed into one block, kept apart: attention within a document, positions from its start.

An end-of-text token ends one document and begins the next: it is predicted from what stands before it, and what comes
after it is predicted from it and nothing before. So every target of a block has a context of its own document alone,
and none need be left out.
"""

from typing import TYPE_CHECKING, Any

from fortifai_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def keep_documents_apart(model: Any, end_of_text: int) -> None:
    """From now on the body of ``model``, a Hugging Face causal LM, sees each document of a row by itself.

    transformers finds packed documents by positions that start again, where nothing is cached. Not every architecture
    looks: it is tried on a row, and one that attends across documents all the same is refused with :class:`UserError`.
    """

    def add_positions(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        place = positions(keywords["input_ids"], end_of_text)
        return arguments, {**keywords, "position_ids": place, "use_cache": False}

    model.base_model.register_forward_pre_hook(add_positions, with_kwargs=True)
    if not _apart(model, end_of_text):
        raise UserError(
            f"training.document_mask: {type(model).__name__} attends across the documents of a block whatever their "
            "positions; leave it out"
        )


def positions(tokens: "Tensor", end_of_text: int) -> "Tensor":
    """Each token's place in its document: int64 of the shape of ``tokens`` (rows, length)."""
    import torch

    place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return place - torch.where(tokens == end_of_text, place, 0).cummax(1).values


def _apart(model: Any, end_of_text: int) -> bool:
    """Whether what follows an end-of-text token gets the hidden states that it gets at the beginning of a row."""
    import torch

    others = [token for token in range(9) if token != end_of_text][:8]
    second = torch.tensor([[end_of_text, *others[:4]]], device=model.device)
    first = torch.tensor([others[4:]], device=model.device)
    training = model.training
    model.eval()
    with torch.no_grad():
        alone = model.base_model(input_ids=second, use_cache=False).last_hidden_state
        packed = model.base_model(input_ids=torch.cat([first, second], 1), use_cache=False).last_hidden_state
    model.train(training)
    difference = (packed[:, first.shape[1] :] - alone).abs().max()
    return bool(difference <= 1000 * torch.finfo(alone.dtype).eps * alone.abs().max())
