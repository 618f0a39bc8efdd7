"""A user's own loss: ten lines beside the study file, checked before anything starts, and part of what a stage is."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fortifai_ray.errors import UserError
from fortifai_ray.losses import TruncatedCrossEntropy, UserLoss, register_loss, value_and_derivative
from fortifai_ray.losses.fused import fused_linear_sums
from fortifai_ray.study.study import Study, make_study

SOURCE = """
import math
import torch
from fortifai_ray.losses import register_loss

@register_loss("truncated_by_hand")
def truncated(log_p, gamma: float = 0.5):
    return torch.where(log_p > math.log(gamma), 0.0, -log_p)

def squared(log_p, *, scale: float):
    return scale * log_p**2

def total(log_p):
    return log_p.sum()

def anything(log_p, **settings):
    return -log_p

def shadowing(log_p, normaliser):
    return -log_p

LIMIT = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``own_losses.py`` in the current folder, as a user has it; forgotten again afterwards."""
    file = tmp_path / "own_losses.py"
    file.write_text(SOURCE)
    (tmp_path / "broken_losses.py").write_text("import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_losses", "broken_losses"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return file


def study(loss: dict[str, Any], **changes: Any) -> Study:
    content = {
        "name": "own",
        "family": {"kind": "language", "model": {"preset": "llama-tiny", "vocab_size": 512}},
        "corpus": {"source": "pydoc"},
        "loss": loss,
        "generations": 2,
        "collapse": {"metric": "perplexity", "threshold": 2.0, "direction": "above"},
    }
    return make_study({**content, **changes}, "s.yaml")


def user_loss(**loss: Any) -> UserLoss:
    checked = study(loss).chains[0].recipe.loss
    assert isinstance(checked, UserLoss)
    return checked


def test_a_dotted_path_is_a_loss() -> None:
    """Defaults are filled in, settings are the function's, and the resolved study can be run again."""
    loss = user_loss(kind="own_losses:truncated")
    assert loss.model_dump() == {"kind": "own_losses:truncated", "normaliser": "valid", "gamma": 0.5}
    resolved = study({"kind": "own_losses:squared", "scale": 2, "normaliser": "kept"}).resolved()
    assert resolved["loss"] == {"kind": "own_losses:squared", "normaliser": "kept", "scale": 2.0}
    assert make_study(resolved, "study.yaml").chains[0].recipe.loss(torch.tensor([-3.0])).item() == 18.0


def test_a_registered_name_resolves_to_its_path() -> None:
    """Workers import by the path: a name registered in this process means nothing in theirs."""
    user_loss(kind="own_losses:squared", scale=1.0)  # imports the module, which registers the other
    assert user_loss(kind="truncated_by_hand", gamma=0.1).kind == "own_losses:truncated"
    with pytest.raises(ValueError, match="plain name"):
        register_loss("with:colon")


def test_its_derivative_is_autograds_and_the_fused_kernel_serves_it() -> None:
    """A TCE written by hand gives what the platform's own gives, gradients included."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(20, 6, requires_grad=True), torch.randn(30, 6)
    targets = torch.randint(0, 30, (20,))
    own, ours = user_loss(kind="own_losses:truncated", gamma=0.02), TruncatedCrossEntropy(gamma=0.02)
    results = []
    for loss in (own, ours):
        value = fused_linear_sums(hidden, weight, targets, loss).mean()
        results.append((value.detach(), *torch.autograd.grad(value, hidden)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert 0 < own.kept(torch.tensor([-5.0, -1.0])).sum() < 2
    assert value_and_derivative(user_loss(kind="own_losses:squared", scale=3.0), torch.tensor([-2.0]))[1].item() == -12


def test_its_source_is_part_of_what_a_stage_is(module: Path) -> None:
    """Another formula under the same name is another loss; the module's file is hashed whole, helpers included."""
    before = user_loss(kind="own_losses:truncated").identity()
    assert user_loss(kind="own_losses:truncated", gamma=0.4).identity() != before
    module.write_text(SOURCE.replace("LIMIT = 3", "LIMIT = 4"))
    after = user_loss(kind="own_losses:truncated").identity()
    assert {**after, "source": 0} == {**before, "source": 0}
    assert after["source"] != before["source"]


@pytest.mark.parametrize(
    ("loss", "complaint"),
    [
        ({"kind": "no_such_module:f"}, r"loss\.kind: there is no module no_such_module"),
        ({"kind": "broken_losses:f"}, r"loss\.kind: broken_losses cannot be imported: .*no_such_thing"),
        ({"kind": "own_losses:truncatd"}, r"loss\.kind: own_losses has no truncatd; did you mean truncated\?"),
        ({"kind": "own_losses:LIMIT"}, r"loss\.kind: own_losses:LIMIT is not a function"),
        ({"kind": "own_losses:total"}, r"loss\.kind: own_losses:total is no function of the log-probability: .*shape"),
        ({"kind": "own_losses:anything"}, r"loss\.kind: own_losses:anything must name its parameters"),
        ({"kind": "own_losses:shadowing"}, r"loss\.kind: .*parameter normaliser means something else"),
        ({"kind": "own_losses:truncated", "gama": 0.1}, r"loss\.gama: unknown key: own_losses:truncated takes gamma"),
        ({"kind": "own_losses:truncated", "gamma": "high"}, r"loss\.gamma: a number is needed, not 'high'"),
        ({"kind": "own_losses:squared"}, r"loss\.scale: this key is needed and missing"),
        (
            {"kind": "own_losses:truncated", "normaliser": "all"},
            r"loss\.normaliser: there is no 'all' \(known: valid, kept\)",
        ),
        ({"kind": "__main__:f"}, r"loss\.kind: .*put it into a module"),
        ({"kind": ":f"}, r"loss\.kind: "),
        ({"kind": "own_losses:"}, r"loss\.kind: "),
    ],
)
def test_a_mistake_gets_one_line(loss: dict[str, Any], complaint: str) -> None:
    """The key as written, and what would be right."""
    with pytest.raises(UserError, match=r"^s\.yaml: " + complaint) as error:
        study(loss)
    assert "\n" not in str(error.value)
