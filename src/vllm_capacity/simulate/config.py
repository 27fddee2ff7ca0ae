"""What is simulated: one model, one pool of blocks per engine, one scheduler's limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from vllm_capacity.errors import Fault, SettingsError
from vllm_capacity.simulate.cache_groups import CacheGroup, cache_groups, layers_per_group
from vllm_capacity.units import Blocks, Bytes, Tokens

SIMULATED_VLLM_VERSION = "0.32.0"

SIMULATED_MODEL_CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
    }
)
"""A ``config.json``: a Llama of 8 billion parameters, 128 KiB of KV cache a token."""

_BYTES_PER_ELEMENT = 2  # bfloat16, the dtype of every simulated KV cache
_NUM_GPU_BLOCKS = Blocks(2560)  # 5 GiB of that model
_BLOCK_SIZE = Tokens(16)  # vLLM 0.32 on CUDA, when the operator names none
_MAX_MODEL_LEN = Tokens(8192)
_MAX_NUM_BATCHED_TOKENS = Tokens(2048)
# The most that a simulation of modest memory and time can take on.
_MOST = {
    "num_gpu_blocks": 1_000_000,
    "block_size": 65_536,
    "max_model_len": 16_777_216,
    "max_num_seqs": 65_536,
    "max_num_batched_tokens": 16_777_216,
    "data_parallel_size": 64,
}
_MOST_DRAFTS = 16
_LAYER_TYPES = {"full_attention", "sliding_attention", "linear_attention"}
_KV_CACHE_KEYS = ("num_hidden_layers", "num_key_value_heads", "head_dim")


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationConfig:
    """One simulated server.

    The defaults are an 8-billion-parameter model with 5 GiB of KV cache, as a 24 GiB GPU leaves.

    Attributes:
        num_gpu_blocks: blocks in the pool of each engine, the null block included.
        block_size: tokens a block holds.
        max_model_len: longest request, prompt and output together, in tokens.
        max_num_seqs: most requests that run at once in one engine.
        max_num_batched_tokens: most tokens of one step.
        model_name: the ``model_name`` label and the id in ``/v1/models``.
        root: ``root`` in ``/v1/models``; None serves a folder holding ``model_config``.
        data_parallel_size: engines behind the one server, each with its own pool.
        api_server_count: front-end processes; None for as many as engines, as vLLM starts them.
        enable_prefix_caching: whether full blocks are found again by their content.
        external_cache: whether a cache outside of the engine is asked too; it answers at once.
        async_scheduling: whether a step is planned while the one before still runs.
        num_speculative_tokens: tokens drafted for every step of a request; 0 without a draft model.
        draft_acceptance_ratio: share of drafts that the model would have sampled, 0 to 1.
        leaked_blocks_per_second: blocks that the engine loses for ever; 0 for a sound one.
        step_base_seconds: time of a step however small.
        step_seconds_per_token: further time for each token of a step.
        model_config: the model's ``config.json``.

    Raises:
        SettingsError: with every value that cannot be simulated.
    """

    num_gpu_blocks: Blocks = _NUM_GPU_BLOCKS
    block_size: Tokens = _BLOCK_SIZE
    max_model_len: Tokens = _MAX_MODEL_LEN
    max_num_seqs: int = 256
    max_num_batched_tokens: Tokens = _MAX_NUM_BATCHED_TOKENS
    model_name: str = "simulated-llama-8b"
    root: str | None = None
    data_parallel_size: int = 1
    api_server_count: int | None = None
    enable_prefix_caching: bool = True
    external_cache: bool = False
    async_scheduling: bool = True
    num_speculative_tokens: int = 0
    draft_acceptance_ratio: float = 0.7
    leaked_blocks_per_second: float = 0.0
    step_base_seconds: float = 0.03
    step_seconds_per_token: float = 0.00012
    model_config: Mapping[str, Any] = field(default_factory=lambda: SIMULATED_MODEL_CONFIG)

    def __post_init__(self) -> None:
        if faults := tuple(self._faults()):
            raise SettingsError("simulation", faults)

    def _faults(self) -> list[Fault]:
        faults = [
            Fault(name, getattr(self, name), f"must be 1 to {most}")
            for name, most in _MOST.items()
            if not 1 <= getattr(self, name) <= most
        ]
        faults += [
            Fault(name, getattr(self, name), "must be seconds, more than 0")
            for name in ("step_base_seconds", "step_seconds_per_token")
            if not 0 < getattr(self, name) < float("inf")
        ]
        faults += [
            Fault(f"model_config.{key}", self.model_config.get(key), "must be an integer above 0")
            for key in _KV_CACHE_KEYS
            if not isinstance(self.model_config.get(key), int) or self.model_config[key] < 1
        ]
        faults += self._more_faults()
        if not faults and self.num_usable_blocks < self.blocks_per_max_len_request:
            problem = (
                f"must be at least {self.blocks_per_max_len_request + 1}: the null block and "
                f"one request of max_model_len {self.max_model_len} tokens"
            )
            faults.append(Fault("num_gpu_blocks", self.num_gpu_blocks, problem))
        return faults

    def _more_faults(self) -> list[Fault]:
        faults = []
        if not 0 <= self.num_speculative_tokens <= _MOST_DRAFTS:
            problem = f"must be 0 to {_MOST_DRAFTS}"
            faults.append(Fault("num_speculative_tokens", self.num_speculative_tokens, problem))
        if not 0 <= self.draft_acceptance_ratio <= 1:
            problem = "must be a share, 0 to 1"
            faults.append(Fault("draft_acceptance_ratio", self.draft_acceptance_ratio, problem))
        if not 0 <= self.leaked_blocks_per_second < float("inf"):
            problem = "must be 0 or more"
            faults.append(Fault("leaked_blocks_per_second", self.leaked_blocks_per_second, problem))
        kinds = set(self.model_config.get("layer_types") or ())
        if unknown := kinds - _LAYER_TYPES:
            faults.append(Fault("model_config.layer_types", sorted(unknown), "are not simulated"))
        if self.external_cache and (len(kinds) > 1 or not self.enable_prefix_caching):
            problem = "is simulated with prefix caching and layers of one kind only"
            faults.append(Fault("external_cache", value=True, problem=problem))
        if "linear_attention" in kinds and self.enable_prefix_caching:
            problem = "must be off where layers keep a recurrent state"
            faults.append(Fault("enable_prefix_caching", value=True, problem=problem))
        return faults

    @property
    def num_api_servers(self) -> int:
        """Front-end processes; a page of several says nothing of any one of them."""
        return self.api_server_count or self.data_parallel_size

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        """Groups of layers; each has a table of blocks for every request."""
        return cache_groups(
            self.model_config, self.block_size, self.max_model_len, self.num_speculative_tokens
        )

    @property
    def max_in_flight_tokens(self) -> Tokens:
        """Tokens of all steps that may be under way at once."""
        return Tokens(self.max_num_batched_tokens * (2 if self.async_scheduling else 1))

    @property
    def num_usable_blocks(self) -> Blocks:
        """Blocks that requests can hold: all but the null block."""
        return Blocks(self.num_gpu_blocks - 1)

    @property
    def blocks_per_max_len_request(self) -> Blocks:
        """Blocks that one request of ``max_model_len`` tokens holds, over all groups."""
        in_flight = self.max_in_flight_tokens
        return Blocks(
            sum(group.most_blocks(self.max_model_len, in_flight) for group in self.cache_groups)
        )

    @property
    def kv_cache_max_concurrency(self) -> float:
        """Requests of ``max_model_len`` that fit at once; the null block counts.

        Source: vLLM 0.32 ``v1/core/kv_cache_utils.py``,
        ``get_max_concurrency_for_kv_cache_config``.
        """
        return self.num_gpu_blocks / self.blocks_per_max_len_request

    @property
    def bytes_per_block(self) -> Bytes:
        """Bytes of keys and values that one block holds, over all layers of a group."""
        model = self.model_config
        per_token = layers_per_group(model) * model["num_key_value_heads"] * model["head_dim"]
        return Bytes(2 * per_token * _BYTES_PER_ELEMENT * self.block_size)

    @property
    def kv_cache_memory_bytes(self) -> Bytes:
        """Bytes of one engine's pool; a whole number of blocks."""
        return Bytes(self.num_gpu_blocks * self.bytes_per_block)

    @property
    def engine_args(self) -> Mapping[str, Any]:
        """The vLLM arguments that would give this server, by vLLM's names."""
        return {
            "block_size": self.block_size,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "data_parallel_size": self.data_parallel_size,
            "enable_prefix_caching": self.enable_prefix_caching,
            "kv_cache_memory_bytes": self.kv_cache_memory_bytes,
            "dtype": "bfloat16",
        }

    @property
    def cache_config_labels(self) -> Mapping[str, str]:
        """The labels of ``vllm:cache_config_info``, without ``engine``.

        Source: vLLM 0.32 ``config/cache.py``, ``CacheConfig.metrics_info``: every field as text.
        """
        ours = {
            "block_size": self.block_size,
            "effective_attention_block_size": self.block_size,
            "enable_prefix_caching": self.enable_prefix_caching,
            "kv_cache_max_concurrency": self.kv_cache_max_concurrency,
            "kv_cache_memory_bytes": self.kv_cache_memory_bytes,
            "kv_cache_size_tokens": int(self.kv_cache_max_concurrency * self.max_model_len),
            # The front end adds up what its engines report.
            "num_gpu_blocks": self.num_gpu_blocks * self.data_parallel_size,
            "user_specified_block_size": self.block_size != _BLOCK_SIZE,
        }
        return {**_CACHE_CONFIG_DEFAULTS, **{name: str(value) for name, value in ours.items()}}


_CACHE_CONFIG_DEFAULTS: Mapping[str, str] = {
    "_block_size_resolved": "True",
    "cache_dtype": "auto",
    "cache_hit_alignment_tokens": "None",
    "enable_mamba_shared_prefix_checkpoint": "False",
    "gpu_memory_utilization": "0.92",
    "hash_block_size": "None",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_layout": "None",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "mamba_ssm_cache_dtype": "float32",
    "num_cpu_blocks": "None",
    "num_gpu_blocks_override": "None",
    "prefix_cache_retention_interval": "0",
    "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "sliding_window": "None",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
    "use_replayssm": "False",
}

SIMULATED_ENGINE_ARGS: Mapping[str, Any] = MappingProxyType(dict(SimulationConfig().engine_args))
"""The vLLM arguments of the default ``SimulationConfig``."""
