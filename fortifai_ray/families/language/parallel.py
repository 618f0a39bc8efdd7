"""How one model is spread over training workers: a whole copy on each (DDP), or a shard of it on each (FSDP2).

Sharded, a decoder layer's weights are gathered just before they are used and let go afterwards. What stands outside the
decoder layers (embeddings, last norm, output head) is one group, gathered for the whole of the forward pass: so the
head's weight is whole when the fused loss multiplies by it, and a head that is tied to the embeddings stays so.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fortifai_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fortifai_ray.losses.causal_lm import CausalLMObjective

Parallel = Literal["ddp", "fsdp"]


def spread(objective: "CausalLMObjective", parallel: Parallel, world: int) -> "nn.Module":
    """``objective`` on this worker's device, spread over the ``world`` workers of a Ray Train group.

    Alone, a worker holds the whole model, whatever ``parallel`` says. Raises :class:`UserError` for a model that cannot
    be sharded by layers.
    """
    import ray.train.torch

    if parallel == "fsdp" and world > 1:
        return _sharded(objective, world)
    return ray.train.torch.prepare_model(objective)


def _sharded(objective: "CausalLMObjective", world: int) -> "nn.Module":
    """Weights, gradients and the optimiser's moments in float32, each worker holding its share of them."""
    import ray.train.torch
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (world,))
    for layer in _decoder_layers(objective.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


def _decoder_layers(model: Any) -> "list[nn.Module]":
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(
            f"training.parallel: {type(model).__name__} does not say what its layers are, so that it cannot be "
            "sharded by them; ddp is right here"
        )
    return layers


def unreduced(network: "nn.Module", more_to_come: bool) -> AbstractContextManager[None]:
    """Around a micro-batch's forward and backward pass: gradients stay on this worker while there is ``more_to_come``.

    Shards are reduced each time all the same: gradients of the whole model on each worker are what does not fit.
    """
    from torch.nn.parallel import DistributedDataParallel

    return network.no_sync() if more_to_come and isinstance(network, DistributedDataParallel) else nullcontext()


def unwrapped(network: "nn.Module") -> "nn.Module":
    """The objective under DistributedDataParallel, whose forward passes would wait for the other workers."""
    from torch.nn.parallel import DistributedDataParallel

    return network.module if isinstance(network, DistributedDataParallel) else network


def held_share(network: "nn.Module") -> float:
    """The share of the model's weights that this worker holds between steps: 1 unless they are sharded."""
    from torch.distributed.tensor import DTensor

    parameters = list(network.parameters())
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
    return held / sum(p.numel() for p in parameters)


def clip_gradients(network: "nn.Module", largest: float) -> "Tensor":
    """Scale all gradients to a common norm of at most ``largest``; returns the norm before, a scalar, the same on every
    worker."""
    import torch
    from torch.distributed.tensor import DTensor

    norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    torch.nn.utils.clip_grads_with_norm_(network.parameters(), largest, norm)
    return norm


def save_whole(model: Any, folder: Path, rank: int) -> None:
    """Write ``model`` as a Hugging Face folder of safetensors, from rank 0. Every worker takes part.

    Shards are put together one tensor at a time, in rank 0's memory and not on its device.
    """
    from torch.distributed.tensor import DTensor

    weights = {}
    for name, parameter in model.named_parameters():  # a tied weight once, which is how it is written
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if rank == 0:
            weights[name] = whole.detach().cpu()
    if rank == 0:
        buffers = dict(model.named_buffers()).keys() & model.state_dict().keys()
        weights |= {name: model.get_buffer(name).cpu() for name in buffers}
        model.save_pretrained(folder, state_dict=weights)
