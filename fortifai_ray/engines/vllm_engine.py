"""The vLLM engine, inside the process that calls it."""

import gc
import logging
import os
from pathlib import Path
from typing import Any, get_args

from fortifai_ray.engines.checkpoints import architecture, whole_model
from fortifai_ray.engines.engine import DecodingConfig, EngineConfig, check_lengths
from fortifai_ray.engines.pretrained import WeightsError, end_of_text_ids
from fortifai_ray.engines.served import why_not_vllm
from fortifai_ray.engines.vllm_answers import check_answers
from fortifai_ray.engines.watermark import WatermarkConfig
from fortifai_ray.process.imports import quick_imports

# Read by vLLM on import. In process, because a second process costs ten seconds of start-up and a third of a small
# model's throughput; unbound threads, because two engines would otherwise be bound to the same core.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "GLOO_SOCKET_IFNAME": "lo",  # an engine is one process: nothing outside this machine needs to reach it
}
# On a CPU vLLM has replacements for its Triton kernels, and PyTorch would look through their source for 1 s.
_OF_GPUS = ("triton",)
LONGEST_BY_DEFAULT = 2048
KV_CACHE_CAP = 1 << 30
_RUNNING = set[int]()  # the engines of this process, which share vLLM's groups of workers
KV_BLOCK = 128  # the CPU backend's block of tokens; a row takes whole blocks


class VllmEngine:
    """An ``Engine`` that holds one ``vllm.LLM``, started with random weights and given real ones by :meth:`load`.

    The first checkpoint takes the same path as every later one, so that all are verified alike. A model stays loaded
    while its adapters are swapped.

    Args:
        config: how it is sized.
        gpu: whether it runs on a GPU.
        gpu_fraction: its share of the GPU's memory, or of each GPU's where it spreads over several.
        spread: workers that the model is spread over by tensor parallelism, each a process of its own on a GPU of its
            own. They are this process's children, not Ray actors: Ray places one actor with all of the engine's GPUs,
            which are therefore on one node, no part of the engine waits for room that another holds, and the workers
            end with their parent, however it ends.
        untried: whether to start for any architecture, to find out which vLLM serves.
    """

    def __init__(
        self,
        config: EngineConfig,
        gpu: bool = False,
        gpu_fraction: float = 1.0,
        *,
        spread: int = 1,
        untried: bool = False,
    ) -> None:
        self.config = config
        self.untried = untried
        self.gpu = gpu
        self.gpu_fraction = gpu_fraction
        self.spread = spread
        self._llm: Any = None
        self._base: Path | None = None  # the folder whose weights it holds
        self._checkpoint: Path | None = None  # that or an adapter's, as it was loaded last
        self._adapter: Any = None  # vLLM's request for the adapter in use, if any
        self._adapters = 0
        self._marks = False  # whether it can write under a watermark
        self.architecture = ""
        self._longest = 0
        self._end_ids: list[int] = []

    def start(self, config_folder: Path) -> None:
        import_vllm(gpu=self.gpu)  # first: what is imported by now is left out as vLLM collects garbage at its start
        self.stop()
        with quick_imports(*([] if self.gpu else _OF_GPUS)):
            self._start(config_folder)

    def _start(self, config_folder: Path) -> None:
        from vllm import LLM

        why_not = None if self.untried else why_not_vllm(config_folder, gpu=self.gpu)
        if why_not:
            raise ValueError(f"{why_not}: change the model, or generate with engine.kind: huggingface")
        if not self.gpu:
            share_the_process()
        dtype = self.config.dtype if self.config.dtype != "auto" else ("bfloat16" if self.gpu else "float32")
        model = describe(config_folder, dtype)
        self._longest = longest_row(model, self.config)
        if self.gpu:
            device: dict[str, Any] = {
                "gpu_memory_utilization": 0.9 * self.gpu_fraction,
                "kv_cache_memory_bytes": self.config.kv_cache_bytes,
            }
        else:  # compiling takes 10 to 20 s for at most 5% more speed on the models a CPU can train
            device = {
                "enforce_eager": True,
                "kv_cache_memory_bytes": kv_cache_bytes(model, self.config, self._longest),
            }
        settings = dict[str, Any](
            load_format="dummy",
            skip_tokenizer_init=True,
            generation_config="vllm",
            trust_remote_code=False,
            dtype=dtype,
            max_model_len=self._longest,
            max_num_seqs=self.config.max_num_seqs,
            enable_prefix_caching=self.config.prefix_caching,
            worker_extension_cls="fortifai_ray.engines.vllm_worker.WeightSwap",
            disable_log_stats=True,
            logits_processors=self._processors(),
            **device,
            **self._adapter_settings(),
            **self._spread_settings(),
        )
        try:
            self._llm = LLM(str(config_folder), **settings)
        except BaseException:
            clean_up()  # the next start would find groups of workers that are not its own
            raise
        _RUNNING.add(id(self))
        self.architecture = architecture(config_folder)

    def _adapter_settings(self) -> dict[str, Any]:
        """One adapter at a time, in buffers of vLLM's smallest rank that fits."""
        rank = self.config.lora_rank
        if rank is None:
            return {}
        from vllm.config.lora import MaxLoRARanks

        return {
            "enable_lora": True,
            "max_loras": 1,
            "max_cpu_loras": 1,
            "max_lora_rank": min(size for size in get_args(MaxLoRARanks) if size >= rank),
        }

    def _processors(self) -> list[Any] | None:
        """The watermark's, from the first request of one on; other engines are vLLM's as they are."""
        if not self._marks:
            return None
        from fortifai_ray.engines.vllm_watermark import processor

        return [processor()]

    def _marking(self, watermark: WatermarkConfig) -> dict[str, Any]:
        """What a request for marked rows carries; starts the engine anew where it cannot write under a watermark."""
        if not self._marks:
            assert self._checkpoint is not None, "an engine generates from loaded weights"
            self._marks, checkpoint = True, self._checkpoint
            self.start(whole_model(checkpoint))
            self.load(checkpoint)
        from fortifai_ray.engines.vllm_watermark import ARGUMENT

        return {ARGUMENT: watermark.model_dump(mode="json")}

    def _spread_settings(self) -> dict[str, Any]:
        if self.spread == 1:
            return {}
        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")  # a Ray actor has threads: no forking
        return {"tensor_parallel_size": self.spread, "distributed_executor_backend": "mp"}

    def stop(self) -> None:
        self._base = self._adapter = None
        if self._llm is None:
            return
        _RUNNING.discard(id(self))
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        self.architecture = ""
        clean_up()

    def load(self, checkpoint: Path) -> None:
        base = whole_model(checkpoint)
        self._drop_adapter()
        if base == checkpoint or base != self._base:  # a stage's folder never changes: load its model once
            self._swap(base)
        if base != checkpoint:
            self._take_adapter(checkpoint)
        self._end_ids, self._checkpoint = end_of_text_ids(base), checkpoint
        self._forget()

    def _swap(self, folder: Path) -> None:
        self._base = None
        try:
            told = self._llm.collective_rpc("swap_weights", args=(str(folder),))
        except Exception as error:
            self.stop()  # vLLM's model is in pieces
            raise WeightsError(f"vLLM cannot load {folder}: {error}") from error
        if complaint := next((wrong for wrong, _ in told if wrong), ""):
            raise WeightsError(complaint)
        if any(rearranged for _, rearranged in told):
            self._check_answers(folder)
        self._base = folder

    def _check_answers(self, folder: Path) -> None:
        self._forget()
        check_answers(self._llm, folder, self._llm.model_config.dtype, self._longest)

    def _drop_adapter(self) -> None:
        if self._adapter is not None:
            self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            self._adapter = None

    def _take_adapter(self, folder: Path) -> None:
        """Activate the adapter in ``folder``, and verify it.

        Raises:
            WeightsError: the engine was not started for adapters, or does not hold the file's tensors.
        """
        from vllm.lora.request import LoRARequest

        if self.config.lora_rank is None:
            raise WeightsError(f"{folder} holds an adapter, and the engine was started without lora_rank")
        self._adapters += 1  # vLLM identifies an adapter by its number, and would answer from an older one of the same
        request = LoRARequest(folder.name, self._adapters, str(folder))
        self._llm.llm_engine.add_lora(request)
        self._adapter = request
        try:
            self._llm.collective_rpc("verify_adapter", args=(self._adapters, str(folder)))
        except BaseException:
            self._drop_adapter()
            raise

    def generate(self, prompts: list[list[int]], seeds: list[int], decoding: DecodingConfig) -> list[list[int]]:
        from vllm import SamplingParams

        check_lengths(prompts, decoding, self._longest)
        watermark = decoding.watermark
        marking = None if watermark is None else self._marking(watermark)
        self._forget()
        known = decoding.min_new_tokens or not decoding.ignore_eos  # what ends a text
        parameters = [
            SamplingParams(
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                top_k=decoding.top_k,
                repetition_penalty=decoding.repetition_penalty,
                max_tokens=decoding.max_new_tokens,
                min_tokens=decoding.min_new_tokens,
                ignore_eos=decoding.ignore_eos,
                stop_token_ids=self._end_ids if known else None,
                detokenize=False,
                seed=fold(seed),
                extra_args=marking if watermark is not None and watermark.marks(seed) else None,
            )
            for seed in seeds
        ]
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        try:
            outputs = self._llm.generate(requests, parameters, use_tqdm=False, lora_request=self._adapter)
        except BaseException:
            self.stop()  # its half-finished requests would answer in the next call
            raise
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _forget(self) -> None:
        """Empty the prefix cache: what an earlier call computed, perhaps with other weights, must not affect this one.

        Raises:
            RuntimeError: the cache cannot be emptied, because a request is still running.
        """
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the engine is not idle: its prefix cache cannot be emptied")


def import_vllm(*, gpu: bool) -> None:
    """Import vLLM as an engine wants it; a process that does so early has all of it."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # silences the note that a CPU has no Triton
    with quick_imports(*([] if gpu else _OF_GPUS)):
        from vllm import LLM  # noqa: F401


def fold(seed: int) -> int:
    """Fold a 63-bit seed into 32 bits: torch's CPU generator ignores the upper half."""
    return (seed ^ seed >> 32) & 0xFFFFFFFF


def describe(config_folder: Path, dtype: Any) -> Any:
    """What vLLM makes of a ``config.json``: its ``ModelConfig``.

    Raises:
        ValueError: vLLM does not serve it.
    """
    from vllm.engine.arg_utils import EngineArgs

    settings = EngineArgs(str(config_folder), skip_tokenizer_init=True, dtype=dtype, trust_remote_code=False)
    return settings.create_model_config()


def clean_up() -> None:
    """Forget the workers of an engine that has ended, or has failed to start, unless others need them."""
    from vllm.distributed import cleanup_dist_env_and_memory

    if not _RUNNING:
        cleanup_dist_env_and_memory()
    gc.collect()


def share_the_process() -> None:
    """Let vLLM on a CPU live in a process with others, which may use Transformers' own models there.

    Its generic models change Transformers' classes for compilation, which an engine on a CPU goes without. And it
    looks at a class in a process of its own, which takes 6 s, lest CUDA be started. And an engine that ends takes the
    groups of workers with it, which others of the process still use.
    """
    from vllm.model_executor.models import registry
    from vllm.model_executor.models.transformers.base import Base
    from vllm.v1.engine import core

    generic: Any = Base
    generic._decorate_for_torch_compile = lambda self: None
    registry._run_in_subprocess = lambda fn: fn()
    core.cleanup_dist_env_and_memory = lambda shutdown_ray=False: clean_up()


def check_spread(model_config: dict[str, Any], spread: int) -> None:
    """Refuse a number of workers among which a model's heads cannot be divided.

    Args:
        model_config: the contents of a ``config.json``.
        spread: the number of workers.

    Raises:
        ValueError: with the numbers of heads.
    """
    text = model_config.get("text_config", model_config)
    heads = next((text[key] for key in ("num_attention_heads", "n_head", "n_heads") if key in text), 0)
    kv_heads = text.get("num_key_value_heads") or heads or spread  # where there are none of these names, vLLM checks
    if heads % spread or (kv_heads % spread and spread % kv_heads):
        raise ValueError(
            f"{heads} attention heads ({kv_heads} of keys and values) cannot be divided among {spread} GPUs; a number "
            "that divides both is needed"
        )


def longest_row(model: Any, config: EngineConfig) -> int:
    """Tokens of the longest row that an engine is sized for: the configured number, at most the model's maximum.

    LongRoPE has frequencies for short rows and others for rows longer than those of its first training. Transformers
    chooses by the row, vLLM by the longest row: an engine takes short ones only.

    Args:
        model: vLLM's ``ModelConfig``. A model without a maximum (ALiBi, state spaces) takes any row.
        config: the engine's.
    """
    allowed, _ = model.model_arch_config.derived_max_model_len_and_key
    rope = getattr(model.hf_text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        allowed = min(allowed, rope["original_max_position_embeddings"])
    return int(min(allowed, config.max_model_len or LONGEST_BY_DEFAULT))


def kv_cache_bytes(model: Any, config: EngineConfig, longest: int) -> int:
    """Memory for the keys and values of ``max_num_seqs`` rows, capped; with fewer, vLLM queues rows.

    A fixed function of the configuration, never of the free memory: an answer must not depend on other processes.
    Recurrent states are of a size of their own: models that keep some get the cap.

    Args:
        model: vLLM's ``ModelConfig``.
        config: the engine's.
        longest: tokens of a row.
    """
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    if model.is_attention_free or model.is_hybrid:
        return KV_CACHE_CAP
    width = model.get_total_num_kv_heads() * model.get_head_size()
    per_token = 2 * model.get_total_num_hidden_layers() * width * model.dtype.itemsize
    per_row = -(-longest // KV_BLOCK) * KV_BLOCK * per_token
    spare = KV_BLOCK * per_token  # vLLM keeps a block for itself
    return max(2 * per_row, min(config.max_num_seqs * per_row, KV_CACHE_CAP)) + spare
