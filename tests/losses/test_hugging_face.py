"""This package's losses in Hugging Face's Trainer: the gradients of its own training, by whole logits and fused."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from fortifai_ray.errors import UserError
from fortifai_ray.losses import CrossEntropy, Focal, LovaszSoftmax, TruncatedCrossEntropy
from fortifai_ray.losses.causal_lm import CausalLMObjective
from fortifai_ray.losses.hugging_face import use_fused_loss
from tests.losses.test_causal_lm import _SHAPE, REFUSED, SERVED, VOCABULARY, batch, make

LLAMA = SERVED["llama, tied"]


def labelled() -> tuple[Tensor, Tensor]:
    """Tokens (4, 12) and labels, −100 where :func:`batch` has no text: 11, 6, 0 and 0 targets."""
    tokens, lengths = batch()
    return tokens, tokens.masked_fill(torch.arange(12) >= lengths[:, None], -100)


def half_kept(model: Any, **settings: Any) -> TruncatedCrossEntropy:
    """TCE that keeps about half of the batch's targets."""
    with torch.no_grad():
        sums = CausalLMObjective(model)(*batch(), CrossEntropy())
    return TruncatedCrossEntropy(gamma=sums.log_p[sums.valid].exp().median().item() * (1 + 1e-4), **settings)


def own_gradients(model: Any, loss: Any) -> tuple[float, dict[str, Tensor]]:
    """The mean loss and its gradients as this package trains."""
    model = copy.deepcopy(model)
    sums = CausalLMObjective(model)(*batch(), loss)
    mean = sums.mean(loss.normaliser)
    mean.backward()
    return mean.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def trainer(
    model: Any, folder: Path, rows: int = 4, accumulate: int = 1, bf16: bool = False, **kwargs: Any
) -> transformers.Trainer:
    """A Trainer of one step whose update is the gradient itself."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        max_grad_norm=0.0,
        report_to=[],
        use_cpu=True,
        bf16=bf16,
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
    )
    data = [{"input_ids": tokens, "labels": labels} for tokens, labels in zip(*labelled(), strict=True)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    steady = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return transformers.Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, optimizers=(optimizer, steady), **kwargs
    )


def check_step(model: Any, expected: dict[str, Tensor], train: Any) -> None:
    """Assert that a step of plain gradient descent goes where ``expected`` points: to the rounding of two layers in
    float32, summed in another order, and of the parameters that it is read off."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train()
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert largest > 1e-4
    for name, parameter in model.named_parameters():
        error = (before[name] - parameter.detach() - expected[name]).abs().max()
        assert error <= torch.finfo(torch.float32).eps * (1000 * largest + 2 * before[name].abs().max()), name


@pytest.mark.parametrize(
    ("name", "form", "rows"),
    [
        *((name, "fused", 1) for name in SERVED),
        *((name, "whole logits", 1) for name in ("llama, tied", "gpt2", "gemma2, soft cap")),
        ("llama, tied", "fused", 4),
        ("llama, tied", "whole logits", 4),
    ],
)
def test_trainer_takes_the_step_of_our_own_training(name: str, form: str, rows: int, tmp_path: Path) -> None:
    """Accumulated over batches of unequal numbers of targets, two of them with none, the step is still the mean over
    all targets; half of them are truncated."""
    model = make(SERVED[name])
    loss = half_kept(model)
    _, expected = own_gradients(model, loss)
    kwargs: dict[str, Any] = {}
    if form == "fused":
        use_fused_loss(model, loss)
    else:
        model.loss_type = "ForCausalLM"  # as docs/losses.md says of GPT-2
        kwargs["compute_loss_func"] = loss.for_trainer()
    check_step(model, expected, trainer(model, tmp_path, rows, 4 // rows, **kwargs).train)


@pytest.mark.parametrize("form", ["whole logits", "fused"])
@pytest.mark.parametrize(
    "loss", [CrossEntropy(), Focal(gamma=2.0), TruncatedCrossEntropy(gamma=0.9, normaliser="kept"), LovaszSoftmax()]
)
def test_every_loss_and_its_evaluation(loss: Any, form: str, tmp_path: Path) -> None:
    """The loss that Trainer reports and evaluates is the mean over targets (the kept ones); logits are there for
    metrics, and ``predict`` gives them whole."""
    model = make(LLAMA)
    mean, expected = own_gradients(model, loss)
    seen: list[tuple[int, ...]] = []
    kwargs: dict[str, Any] = {"compute_metrics": lambda p: seen.append(p.predictions.shape) or {}}
    if form == "whole logits":
        kwargs["compute_loss_func"] = loss.for_trainer()
    elif isinstance(loss, LovaszSoftmax):
        with pytest.raises(UserError, match="lovasz needs whole logits"):
            use_fused_loss(model, loss)
        return
    else:
        use_fused_loss(model, loss)
    ours = trainer(model, tmp_path, **kwargs)
    assert ours.evaluate()["eval_loss"] == pytest.approx(mean, rel=1e-5)
    assert seen == [(4, 12, VOCABULARY)]
    check_step(model, expected, ours.train)


def test_nothing_kept_is_a_loss_of_zero(tmp_path: Path) -> None:
    """All targets truncated, or none at all in a batch: zero, not a number divided by nothing."""
    tokens, labels = labelled()
    for loss in (TruncatedCrossEntropy(gamma=1e-9), TruncatedCrossEntropy(gamma=1e-9, normaliser="kept")):
        model = use_fused_loss(make(LLAMA), loss)
        for of in (labels, torch.full_like(labels, -100)):
            value = model(input_ids=tokens, labels=of).loss
            value.backward()
            assert value.item() == 0.0
            assert not any(p.grad.any() for p in model.parameters())
            plain = loss.for_trainer()(make(LLAMA)(input_ids=tokens), of, num_items_in_batch=None)
            assert plain.item() == 0.0


def test_the_kept_targets_of_several_batches_are_not_guessed(tmp_path: Path) -> None:
    """``normaliser: kept`` under gradient accumulation has no right divisor: refused, by both forms."""
    loss = TruncatedCrossEntropy(gamma=0.9, normaliser="kept")
    with pytest.raises(UserError, match="without gradient accumulation"):
        trainer(make(LLAMA), tmp_path, 2, 2, compute_loss_func=loss.for_trainer()).train()
    with pytest.raises(UserError, match="without gradient accumulation"):
        trainer(use_fused_loss(make(LLAMA), loss), tmp_path, 2, 2).train()


def test_what_a_model_with_a_fused_loss_still_is(tmp_path: Path) -> None:
    """Without labels, in evaluation, copied, saved and undone: the model's own class, logits and files."""
    tokens, labels = labelled()
    plain, model = make(LLAMA).eval(), make(LLAMA).eval()
    assert use_fused_loss(model, CrossEntropy()) is model
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert torch.equal(model(tokens).logits, plain(tokens).logits)
    both, theirs = model(tokens, labels=labels), plain(tokens, labels=labels)
    assert torch.equal(both.logits, theirs.logits)
    assert both.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    loss, logits, *_ = model(tokens, labels=labels, return_dict=False)
    assert loss == both.loss
    assert torch.equal(logits, both.logits)
    assert model(tokens, labels=labels, skip_logits=True).logits is None
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    assert model(tokens, shift_labels=shifted).loss.item() == pytest.approx(both.loss.item(), rel=1e-6)
    assert model(tokens, labels=labels, num_items_in_batch=34).loss.item() == pytest.approx(both.loss.item() / 2)
    twin = copy.deepcopy(model).train()
    assert twin(tokens, labels=labels).logits is None
    written = model.generate(tokens[:1, :4], max_new_tokens=3, do_sample=False)
    assert torch.equal(written, plain.generate(tokens[:1, :4], max_new_tokens=3, do_sample=False))
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is transformers.LlamaForCausalLM
    use_fused_loss(model, TruncatedCrossEntropy(gamma=1e-9))
    assert model(tokens, labels=labels).loss == 0.0
    use_fused_loss(model, None)
    assert type(model) is transformers.LlamaForCausalLM
    assert vars(model).keys() == vars(plain).keys()
    assert model.loss_type == plain.loss_type
    assert torch.equal(model(tokens, labels=labels).loss, theirs.loss)


def test_an_adapter_on_top(tmp_path: Path) -> None:
    """PEFT before or after: the same loss; an adapter on the head itself is refused."""
    peft = pytest.importorskip("peft")
    tokens, labels = labelled()
    lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    expected = make(LLAMA)(tokens, labels=labels).loss.item()
    before = peft.get_peft_model(use_fused_loss(make(LLAMA), CrossEntropy()), lora)
    after = use_fused_loss(peft.get_peft_model(make(LLAMA), lora), CrossEntropy())
    for model in (before, after):
        output = model(input_ids=tokens, labels=labels)
        assert output.logits is None
        assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    on_head = peft.LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM")
    untied = make(SERVED["llama, untied"])
    with pytest.raises(UserError, match="not a plain linear layer"):
        use_fused_loss(peft.get_peft_model(untied, on_head), CrossEntropy())
    late = peft.get_peft_model(use_fused_loss(make(SERVED["llama, untied"]), CrossEntropy()), on_head)
    with pytest.raises(UserError, match="no longer serves"):
        late(input_ids=tokens, labels=labels)


MIXTRAL = transformers.MixtralConfig(**_SHAPE, num_local_experts=2, output_router_logits=True)
T5 = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
NOT_SERVED: dict[str, tuple[Any, str]] = {
    **{name: (lambda config=config: make(config), reason) for name, (config, reason) in REFUSED.items()},
    "a router's loss": (lambda: make(MIXTRAL), "router's loss"),
    "an encoder and a decoder": (lambda: transformers.T5ForConditionalGeneration(T5), "text alone"),
    "no head": (lambda: transformers.LlamaModel(LLAMA), "its output head is NoneType"),
    "no language model": (lambda: torch.nn.Linear(3, 4), "no model of Hugging Face"),
    "a forward that was replaced": (lambda: with_forward(make(LLAMA)), "was replaced already"),
}


def with_forward(model: Any) -> Any:
    model.forward = model.forward
    return model


@pytest.mark.parametrize("name", NOT_SERVED)
def test_what_cannot_be_served_is_refused_in_one_line(name: str) -> None:
    """With the reason, and the model is as it was."""
    build, reason = NOT_SERVED[name]
    model = build()
    kind = type(model)
    with pytest.raises(UserError, match=reason) as refused:
        use_fused_loss(model, CrossEntropy())
    assert "\n" not in str(refused.value)
    assert type(model) is kind


def test_a_trainer_that_computes_another_loss_is_refused(tmp_path: Path) -> None:
    """Label smoothing and ``compute_loss_func`` would silently replace the fused loss."""
    model = use_fused_loss(make(LLAMA), CrossEntropy())
    with pytest.raises(UserError, match="computes another loss"):
        trainer(model, tmp_path, compute_loss_func=CrossEntropy().for_trainer()).train()
    with pytest.raises(UserError, match="labels: -1 is no class, 0 to"):
        model(*labelled()[:1], labels=torch.full_like(labelled()[1], -1))
    with pytest.raises(UserError, match="output_router_logits"):
        model(*labelled()[:1], labels=labelled()[1], output_router_logits=True)


def test_in_bfloat16(tmp_path: Path) -> None:
    """accelerate wraps the forward at the instance; the loss is our own to bfloat16's rounding."""
    model = make(LLAMA)
    mean, _ = own_gradients(model, CrossEntropy())
    ours = trainer(use_fused_loss(model, CrossEntropy()), tmp_path, bf16=True)
    assert ours.train().training_loss == pytest.approx(mean, rel=2**-7)
    assert ours.evaluate()["eval_loss"] != pytest.approx(mean, rel=1e-7)
    assert use_fused_loss(model, None)(*labelled()[:1]).logits.isfinite().all()


def test_trl(tmp_path: Path) -> None:
    """SFTTrainer takes ``compute_loss_func``, and refuses a model whose loss it would replace."""
    import trl

    warnings.simplefilter("ignore", FutureWarning)
    model = make(LLAMA)
    loss = half_kept(model)
    _, expected = own_gradients(model, loss)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=1,
        max_grad_norm=0.0, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, gradient_checkpointing=False,
    )  # fmt: skip
    import datasets

    tokens, labels = labelled()
    columns = {"input_ids": tokens, "labels": labels, "attention_mask": torch.ones_like(tokens)}
    data = datasets.Dataset.from_dict({name: column.tolist() for name, column in columns.items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    steady = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    kwargs = {"args": arguments, "train_dataset": data, "data_collator": transformers.default_data_collator}
    kwargs |= {"processing_class": tokenizer()}
    with pytest.raises(UserError, match="SFTTrainer computes its own loss"):
        trl.SFTTrainer(use_fused_loss(make(LLAMA), loss), **kwargs)
    sft = trl.SFTTrainer(model, optimizers=(optimizer, steady), compute_loss_func=loss.for_trainer(), **kwargs)
    check_step(model, expected, sft.train)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    words = {str(i): i for i in range(VOCABULARY)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")), pad_token="0", eos_token="0"
    )
