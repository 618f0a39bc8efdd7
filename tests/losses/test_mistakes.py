"""A loss that a script makes or hands over wrongly is told in one line; a study's sections keep pydantic's errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fortifai_ray import CrossEntropy, Focal, LovaszSoftmax, TruncatedCrossEntropy, UserError, UserLoss, use_fused_loss
from fortifai_ray.losses.loops import TrainerLoss

MAKE: Any = TruncatedCrossEntropy
TCE = TruncatedCrossEntropy(gamma=0.9)
MODEL: Any = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: MAKE(gamma=1.5), "TruncatedCrossEntropy: gamma: γ is a probability in (0, 1]: 1.5 is not"),
        (lambda: MAKE(gamma=float("nan")), "TruncatedCrossEntropy: gamma: a finite number is needed, not nan"),
        (lambda: MAKE(gamma=True), "TruncatedCrossEntropy: gamma: a number is needed, not true"),
        (lambda: MAKE(gamma="high"), "TruncatedCrossEntropy: gamma: a number is needed, not 'high'"),
        (lambda: MAKE(), "TruncatedCrossEntropy: gamma: this key is needed and missing"),
        (lambda: MAKE(gama=0.9), "TruncatedCrossEntropy: gama: unknown key; did you mean gamma?"),
        (lambda: MAKE(0.9), "TruncatedCrossEntropy: settings are given by name: gamma=…"),
        (lambda: Focal(gamma=-1.0), "Focal: gamma: a number greater than or equal to 0 is needed, not -1"),
        (lambda: UserLoss(), "UserLoss: kind: this key is needed and missing"),
        (lambda: use_fused_loss(TCE, MODEL), "use_fused_loss(model, loss): the model comes first"),
        (lambda: use_fused_loss(TCE, None), "use_fused_loss(model, loss): the model comes first"),
        (lambda: use_fused_loss(MODEL, MODEL), "Linear is no loss: expected one such as Trunc"),
        (lambda: use_fused_loss(MODEL, "tce"), "'tce' is no loss: expected one such as Trunc"),
        (lambda: TrainerLoss(MAKE), "<class 'fortifai_ray.losses.kinds.TruncatedCrossEntropy'> is no loss"),
    ],
)
def test_mistakes(call: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value).startswith(complaint)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("loss", [TCE, CrossEntropy(), LovaszSoftmax(), UserLoss(kind="mine:loss")])
def test_a_loss_itself_is_no_compute_loss_func(loss: Any) -> None:
    """Trainer calls it with outputs, labels and ``num_items_in_batch``."""
    with pytest.raises(UserError, match=r"compute_loss_func: give the trainer loss.for_trainer\(\)"):
        loss({"logits": torch.zeros(1, 2, 3)}, torch.zeros(1, 2), num_items_in_batch=4)


def test_a_study_keeps_the_place_of_a_mistake() -> None:
    """Sections are validated by pydantic as before: no UserError comes between."""
    with pytest.raises(ValidationError, match="γ is a probability"):
        TruncatedCrossEntropy.model_validate({"gamma": 1.5})
    assert TruncatedCrossEntropy.model_validate({"gamma": 0.5}) == TruncatedCrossEntropy(gamma=0.5)
