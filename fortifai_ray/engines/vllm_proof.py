"""Inside the vLLM worker: the proof that a model holds the weights of a file, whatever layout it holds them in.

vLLM's own reload succeeds with a wrong model in several ways: a tensor that the file lacks causes only a warning, and
the old one stays; copies that its CPU backend packs (a tied output head, experts) are not packed again. So each
parameter is compared with the file after each swap, before it is packed where it is packed:

- One that holds the tensors of its name, stacked or transposed, must equal them.
- One that holds them in another order (query, key and value interleaved by heads) must hold the same values, as many
  times each: their order-free checksums are equal.
- Those that have no tensors of their names (experts, of whose tensors vLLM makes one) must hold together the values of
  the file's other tensors.

Where each value of the last two belongs is for the model's answers to show (``vllm_answers``). Packed matrices cannot
be read back, but they can be probed: a one-hot input returns a column exactly, in any precision.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.linear import ColumnParallelLinear, LinearBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.meta import SKIP_LOAD_TENSORS
from vllm.platforms import current_platform

from fortifai_ray.engines.checkpoints import Checkpoint
from fortifai_ray.engines.vllm_layers import held_columns, held_rows, slices

# A column contains every row of a matrix, so every fused part; a stale matrix differs in nearly all columns.
PROBED_COLUMNS = 4


class Proof:
    """Of one swap: watches the reload, and concludes.

    It raises nothing while vLLM loads, which would leave the model in pieces.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self._sources = match_parameters(model, checkpoint)
        self._names = names_of(model)
        self._split = get_tensor_model_parallel_world_size() > 1
        self._columns: dict[str, tuple[int, torch.Tensor]] = {}  # of matrices before they are packed, by layer
        self._seen: set[tuple[int, str]] = set()  # layers, by their identity, and the names of their parameters
        self._lacking: set[str] = set()
        self._wrong: set[str] = set()
        self._rearranged: set[str] = set()
        self._unnamed: dict[str, int] = {}  # checksums of parameters that have no tensors of their names
        self._unnamed_type = torch.float32

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context, a layer's parameters are compared before they are packed: experts', and all on a CPU."""
        watched: list[Any] = []
        packing = QuantizeMethodBase if current_platform.is_cpu() else FusedMoEMethodBase
        layers: list[tuple[str, Any]] = list(self._model.named_modules())
        for name, layer in layers:
            if isinstance(getattr(layer, "quant_method", None), packing) and layer.quant_method not in watched:
                watched.append(layer.quant_method)
                layer.quant_method.process_weights_after_loading = self._watcher(name, layer.quant_method)
        try:
            yield
        finally:
            for method in watched:
                del method.process_weights_after_loading

    def _watcher(self, name: str, method: Any) -> Any:
        genuine = method.process_weights_after_loading

        def process(layer: Any) -> None:
            for leaf, tensor in saved_tensors(layer).items():
                if leaf not in SKIP_LOAD_TENSORS:  # loaded on their own, perhaps later
                    self._compare(layer, leaf, tensor)
            matrix: torch.Tensor | None = getattr(layer, "weight", None) if isinstance(layer, LinearBase) else None
            if matrix is not None and matrix.dim() == 2:
                self._columns[name] = _some_columns(matrix)
            genuine(layer)

        return process

    def conclude(self) -> tuple[str, list[str]]:
        """What is wrong, empty where nothing is; and the parameters whose values are right, in an order that only the
        model's answers can show to be right."""
        for name, layer in self._model.named_modules():
            for leaf, tensor in saved_tensors(layer).items():
                unseen = (id(layer), leaf) not in self._seen
                if tensor.numel() and (unseen or isinstance(layer, VocabParallelEmbedding)):
                    self._compare(layer, leaf, tensor)
                elif unseen:  # packing frees the original, and there was none to pack
                    self._lacking.add(f"{name}.{leaf}")
        for name, layer in self._model.named_modules():
            if hasattr(layer, "cpu_linear"):
                self._probe(name, layer)
        if not (self._split or self._lacking) and self._unnamed:
            held, filed = sum(self._unnamed.values()), sum(map(_checksum, self._unnamed_tensors()))
            self._wrong |= self._unnamed.keys() if (held - filed) % 2**64 else set()
        if self._lacking or self._wrong:
            return self._complaint(), []
        derived = {
            f"{name}.{leaf}"
            for name, layer in self._model.named_modules()
            if is_deferred_attention_layer(layer)
            for leaf, _ in layer.named_parameters(recurse=False)
        }
        return "", sorted(self._rearranged | self._unnamed.keys() | derived)

    def _unnamed_tensors(self) -> Iterator[torch.Tensor]:
        """The file's tensors that are no parameter's by their names."""
        named = {part for parts in self._sources.values() for part in parts}
        for name in self._checkpoint.names:
            if name not in named and "rotary" not in name:  # old files hold constants of rotary embeddings
                yield self._checkpoint.tensor(name).to(self._unnamed_type)

    def _complaint(self) -> str:
        folder, kind = self._checkpoint.folder, type(self._model).__name__
        if spoilt := next((n for n, tensor in self._checkpoint.tensors() if not tensor.isfinite().all()), None):
            return f"{folder}: the model does not hold the file's values, which are not finite (in {spoilt})"
        if self._lacking:
            names = sorted(self._lacking)[:3]
            parts = [part for name in names for part in self._sources.get(name, [])]
            return f"{folder} lacks tensors for {', '.join(names)} of {kind}: it has {', '.join(parts) or 'none'}"
        return f"after loading {folder}, {', '.join(sorted(self._wrong)[:3])} of {kind} does not hold the file's values"

    def _compare(self, layer: nn.Module, leaf: str, held: torch.Tensor) -> None:
        """Compare one parameter, not packed, with its tensors in the file."""
        self._seen.add((id(layer), leaf))
        names = self._names[id(layer), leaf]
        name = next((name for name in names if name in self._sources), names[0])
        if held.isnan().any():
            self._lacking.add(name)
            return
        parts = self._sources.get(name)
        if parts is None:
            self._unnamed[name] = _checksum(held)
            self._unnamed_type = held.dtype
            return
        tensors = [self._checkpoint.tensor(part).to(device=held.device, dtype=held.dtype) for part in parts]
        if any(_equal(held, layer, way) for way in (tensors, [tensor.T for tensor in tensors if tensor.dim() == 2])):
            return
        split = getattr(layer, "tp_size", 1) > 1
        if split or (_checksum(held) - sum(map(_checksum, tensors))) % 2**64 == 0 or _is_decay(held, tensors):
            self._rearranged.add(name)
        else:
            self._wrong.add(name)

    def _probe(self, name: str, layer: Any) -> None:
        """Compare some columns of a packed matrix with those of what was packed."""
        if name not in self._columns and layer.weight.dim() == 2 and layer.weight.numel():  # it keeps the original
            self._columns[name] = _some_columns(layer.weight)
        if name in self._columns:
            width, columns = self._columns[name]
            inputs = torch.zeros(columns.shape[1], width, dtype=columns.dtype)
            inputs[torch.arange(columns.shape[1]), torch.arange(width)[_probed(width)]] = 1
            if not _same(layer.quant_method.apply(layer, inputs, None).T, columns):
                self._wrong.add(f"{name}.weight")


def saved_tensors(layer: nn.Module) -> dict[str, torch.Tensor]:
    """A layer's own floating-point parameters, and buffers that belong into a file, by their names."""
    if is_deferred_attention_layer(layer):  # theirs are made from other layers', or belong to quantised keys and values
        return {}
    constant = layer._non_persistent_buffers_set
    own: dict[str, torch.Tensor] = dict(layer.named_parameters(recurse=False))
    own |= {leaf: buffer for leaf, buffer in layer.named_buffers(recurse=False) if leaf not in constant}
    return {leaf: tensor for leaf, tensor in own.items() if tensor.is_floating_point()}


def names_of(model: nn.Module) -> dict[tuple[int, str], list[str]]:
    """All names of each of a model's tensors, by its layer's identity and its name there.

    A tied output head shares its embedding's, and experts hold layers and tensors of others under names of their own.
    """
    names: dict[int, list[str]] = {}
    places: dict[tuple[int, str], int] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        for leaf, tensor in saved_tensors(layer).items():
            names.setdefault(id(tensor), []).append(f"{name}.{leaf}")
            places[id(layer), leaf] = id(tensor)
    return {place: names[tensor] for place, tensor in places.items()}


def match_parameters(model: nn.Module, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """For each parameter of a vLLM model, the file's tensors that make it up, in order.

    Fused parameters (query, key and value; gate and up) have several, or a single one where the file fuses them too.
    Parameters whose tensors have other names in the file are left out.
    """
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    fused: dict[str, list[str]] = {}
    for part, (whole, _) in (mapper.orig_to_new_stacked if mapper else {}).items():
        fused.setdefault(whole, []).append(part)
    mapped: dict[str, list[str]] = {}
    for name in checkpoint.names:
        target = mapper.map_name(name) if mapper else name
        if target is not None:
            mapped.setdefault(target, []).append(name)
    matched = {}
    for parameter in (
        f"{layer}.{leaf}"  # under each of its names
        for layer, module in model.named_modules(remove_duplicate=False)
        for leaf in saved_tensors(module)
    ):
        parts = mapped.get(parameter) or mapped.get(f"{parameter}_log", [])  # the latter: of a state space's decay
        order = next((fused[whole] for whole in fused if whole in parameter), [])
        if len(parts) == 1:
            matched[parameter] = parts
        elif parts and len(parts) == len(order):
            matched[parameter] = [next(name for name in parts if part in name) for part in order]
    return matched


def _equal(held: torch.Tensor, layer: nn.Module, tensors: list[torch.Tensor]) -> bool:
    """Whether a parameter consists of the parts of ``tensors`` that this worker holds, stacked.

    Dimensions of size 1 are not compared, nor what pads a vocabulary.
    """
    if not tensors or (isinstance(layer, ColumnParallelLinear) and sum(map(len, tensors)) != sum(slices(layer))):
        return False
    filed = held_rows(layer, [_own_columns(layer, tensor) for tensor in tensors])
    return _same(held.squeeze()[: filed.squeeze().shape[0]] if held.squeeze().dim() else held, filed.squeeze())


def _own_columns(layer: nn.Module, whole: torch.Tensor) -> torch.Tensor:
    """The columns of a weight that this worker holds; a bias is returned whole."""
    if whole.dim() < 2:
        return whole
    first, last = held_columns(layer, whole.shape[1])
    return whole[:, first:last]


def _same(held: torch.Tensor, filed: torch.Tensor) -> bool:
    # Subnormal numbers may be flushed to zero; all others must be equal.
    return held.shape == filed.shape and torch.allclose(held, filed, rtol=0, atol=torch.finfo(held.dtype).tiny)


def _checksum(tensor: torch.Tensor) -> int:
    """Of the values, bit for bit, whatever their order."""
    bits = tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    mixed = (bits.long() + 1) * -7046029254386353131  # splitmix64's odd multipliers; products wrap
    mixed = (mixed ^ (mixed >> 29)) * -4658895280553007687
    return int((mixed ^ (mixed >> 32)).sum())


def _is_decay(held: torch.Tensor, tensors: list[torch.Tensor]) -> bool:
    """Whether it is a state-space model's decay, of which a file holds the logarithm (Gu & Dao, 2023): -exp(A_log)."""
    return (
        len(tensors) == 1
        and held.numel() == tensors[0].numel()
        and torch.allclose(held.flatten(), -tensors[0].flatten().float().exp().to(held.dtype), rtol=1e-5)
    )


def _probed(width: int) -> slice:
    start = max(0, width // 2 - PROBED_COLUMNS // 2)
    return slice(start, min(width, start + PROBED_COLUMNS))


def _some_columns(weight: torch.Tensor) -> tuple[int, torch.Tensor]:
    """The number of a matrix's columns, and some of them."""
    width = weight.shape[1]
    return width, weight[:, _probed(width)].clone()
