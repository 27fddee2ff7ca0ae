"""Layers and arguments of the KV cache that the tests share, and their form in tests/data."""

from typing import Any

from vllm_capacity.predict.kv_cache import layer_cache
from vllm_capacity.predict.kv_cache.args import CacheArgs
from vllm_capacity.predict.kv_cache.flash_attention import Kernels
from vllm_capacity.predict.kv_cache.layer_cache import (
    AttentionCache,
    LayerCache,
    State,
    StateCache,
    StateKind,
)
from vllm_capacity.predict.vllm_version import VllmVersion
from vllm_capacity.units import Tokens

H100 = Kernels(capability=(9, 0))
FULL = AttentionCache(num_kv_heads=8, head_size=128, head_size_v=128)
WINDOW = AttentionCache(num_kv_heads=8, head_size=128, head_size_v=128, sliding_window=1024)
MAMBA2 = StateCache(
    kind=StateKind.MAMBA2,
    states=(State((3, 4352), "conv", grows_with_drafts=True), State((64, 64, 128), "recurrent")),
    saves_prefill_state=True,
)


def cache_args(**changed: Any) -> CacheArgs:
    known: dict[str, Any] = {
        "dtype": "bfloat16",
        "max_model_len": Tokens(8192),
        "kernels": H100,
        "max_num_batched_tokens": Tokens(8192),
        "max_in_flight_tokens": Tokens(16384),
    }
    return CacheArgs(**{**known, **changed})


def numbered(*runs: tuple[int, LayerCache], start: int = 0) -> list[tuple[str, LayerCache]]:
    """So many layers of each kind, under vLLM's names."""
    kept = [cache for count, cache in runs for _ in range(count)]
    return [(f"model.layers.{start + place}.attn", each) for place, each in enumerate(kept)]


def recorded_stages(row: dict[str, Any]) -> list[list[tuple[str, LayerCache]]]:
    stages: list[list[tuple[str, LayerCache]]] = []
    for runs in row["stages"]:
        start = sum(map(len, stages))
        stages.append(numbered(*((count, _cache(kept)) for count, kept in runs), start=start))
    return stages


def recorded_args(row: dict[str, Any]) -> CacheArgs:
    known = dict(row["args"])
    kernels = dict(known.pop("kernels"))
    if kernels["capability"] is not None:
        kernels["capability"] = tuple(kernels["capability"])
    skipped = frozenset(known.pop("kv_cache_dtype_skip_layers", ()))
    version = VllmVersion.parse(known.pop("version", "0.32.0"))
    return CacheArgs(
        **known,
        kernels=Kernels(**kernels),
        kv_cache_dtype_skip_layers=skipped,
        version=version,
    )


def _cache(kept: dict[str, Any]) -> LayerCache:
    fields = {name: value for name, value in kept.items() if name != "type"}
    if "states" in fields:
        fields["kind"] = StateKind(fields["kind"])
        fields["states"] = tuple(
            State(tuple(shape), role, grows) for shape, role, grows in fields["states"]
        )
    cache: LayerCache = getattr(layer_cache, kept["type"])(**fields)
    return cache
