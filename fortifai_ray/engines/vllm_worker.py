"""Runs inside the vLLM worker: the swap of weights or of an adapter, and the proof that it took."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import meta
from vllm.platforms import current_platform

from fortifai_ray.engines.checkpoints import Checkpoint
from fortifai_ray.engines.pretrained import WeightsError
from fortifai_ray.engines.vllm_layers import bare, verify_adapter
from fortifai_ray.engines.vllm_proof import Proof, saved_tensors


class WeightSwap:
    """Added to vLLM's worker by ``worker_extension_cls``."""

    if TYPE_CHECKING:
        model_runner: Any
        reload_weights: Any
        device: torch.device

    def swap_weights(self, folder: str) -> tuple[str, list[str]]:
        """Replace the weights in place by those in ``folder``, and verify them.

        The caller resets the prefix cache. Where an error is raised, the model is in pieces.

        Returns:
            What is wrong, empty where nothing is: a parameter has no tensor in the folder, or does not hold its values
            afterwards. An error would not reach the caller as what it is from a process of several. And the parameters
            that hold the file's values, all of them, in an order or a shape that is not the file's: that each is in its
            place must be seen from the model's answers.
        """
        model = self.model_runner.get_model()
        try:
            checkpoint = Checkpoint(Path(folder))
        except WeightsError as error:
            return str(error), []
        with bare(model):
            with self.device:
                prepare_head_bias(model, checkpoint)
            prepare_experts(model)
            proof = Proof(model, checkpoint)
            with poisoned(model), proof.watching():
                self.reload_weights(weights_iterator=checkpoint.tensors())
            refresh_packed_embeddings(model)
            return proof.conclude()

    def verify_adapter(self, number: int, folder: str) -> None:
        """Verify that vLLM's adapter of this ``number`` is the one in ``folder``, completely.

        Raises:
            WeightsError: it is not.
        """
        verify_adapter(self.model_runner.lora_manager._adapter_manager, number, Path(folder))


def prepare_head_bias(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Give the output head the bias that the file has: vLLM's generic models create it while they load, and a reload
    removes from a layer whatever was not there before."""
    for name, module in model.named_modules():
        if isinstance(module, ParallelLMHead) and module.bias is None and f"{name}.bias" in checkpoint.names:
            module._register_bias()


def prepare_experts(model: nn.Module) -> None:
    """Have the experts' weights packed anew on a CPU: vLLM packs them once, and a reload would leave them unpacked."""
    if current_platform.is_cpu():
        for module in model.modules():
            method = getattr(module, "quant_method", None)
            if isinstance(method, FusedMoEMethodBase):
                method.moe_kernel = None


@contextmanager
def poisoned(model: nn.Module) -> Iterator[None]:
    """Fill each parameter, and each one that a reload makes within the context, with NaN.

    What is NaN after the load was not written: vLLM only warns where a file lacks a tensor, and keeps what was there.
    """
    genuine = meta.materialize_meta_tensor

    def materialize(meta_tensor: torch.Tensor) -> torch.Tensor:
        made = genuine(meta_tensor)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    for layer in model.modules():
        for tensor in saved_tensors(layer).values():
            tensor.data.fill_(torch.nan)
    meta.materialize_meta_tensor = materialize
    try:
        yield
    finally:
        meta.materialize_meta_tensor = genuine


def refresh_packed_embeddings(model: nn.Module) -> None:
    """Repack the output head from the weights that its (possibly tied) embedding now holds.

    vLLM's CPU backend keeps a packed copy of it that a reload does not touch.
    """
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)
