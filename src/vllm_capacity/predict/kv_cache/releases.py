"""Where the rules for the KV cache were other ones in older releases, or are not known.

The rules are those of 0.32. Real start-ups of 0.19 confirm them for full attention, latent
attention on Hopper, and groups of windows and chunks whose pages are alike.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from vllm_capacity.predict.kv_cache.args import CacheArgs
from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache, LatentCache, LayerCache
from vllm_capacity.predict.kv_cache.spec import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    KVCacheSpec,
    SlidingWindowSpec,
)
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.vllm_version import VllmVersion

_NEWEST = VllmVersion(0, 32)
#: Since then vLLM reserves for every batch under way; first seen then.
_BATCHES_UNKNOWN_FROM = VllmVersion(0, 26)
#: Before, a window kept every token.
_WINDOWS = VllmVersion(0, 9)
#: Before, groups were made otherwise.
_GROUPS = VllmVersion(0, 11)
#: The oldest release whose block size for latent attention was seen to be 0.32's.
_LATENT_BLOCKS = VllmVersion(0, 19)
_LOCAL = (SlidingWindowSpec, ChunkedLocalAttentionSpec)
_PLAIN_FORMATS = frozenset({"auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"})


def check_layers(layers: Iterable[LayerCache], args: CacheArgs) -> None:
    """Refuse layers and formats that an older release may have kept otherwise.

    Raises:
        Refusal: the release's rule is not known.
    """
    if args.version >= _NEWEST:
        return
    if args.kv_cache_dtype not in _PLAIN_FORMATS or args.kv_cache_dtype_skip_layers:
        raise Refusal(f"KV cache formats of vLLM {args.version} are not described but for fp8")
    for kept in dict.fromkeys(layers):
        if isinstance(kept, LatentCache) and not kept.sparse:
            _check_latent(args)
        elif not isinstance(kept, AttentionCache) or kept.head_size != kept.head_size_v:
            raise Refusal(f"what such layers keep in vLLM {args.version} is not described")


def _check_latent(args: CacheArgs) -> None:
    hopper = args.kernels.major == 9 and args.kv_cache_dtype in {"auto", "bfloat16", "float16"}
    if args.block_size is None and not (args.version >= _LATENT_BLOCKS and hopper):
        raise Refusal(
            f"the block size of latent attention in vLLM {args.version} is not known; give it"
        )


def check_groups(groups: Sequence[Sequence[KVCacheSpec]], args: CacheArgs) -> None:
    """Refuse groups that an older release may have made otherwise.

    Raises:
        Refusal: the release's rule is not known.
    """
    version = args.version
    local = _has(groups, _LOCAL)
    if version >= _NEWEST:
        return
    if local and version < _WINDOWS:
        raise Refusal("releases before 0.9 count sliding windows as full attention")
    if len(groups) > 1 and version < _GROUPS:
        raise Refusal(f"how vLLM {version} groups layers of several kinds is not described")
    if any(len(set(group)) > 1 for group in groups):
        raise Refusal(f"how vLLM {version} groups layers of unequal size is not described")
    _check_sizes(groups, version)


def planning_refusal(groups: Sequence[Sequence[KVCacheSpec]], args: CacheArgs) -> str | None:
    """Why it is not known how much these groups must hold at most; None where it is."""
    local = _has(groups, _LOCAL)
    if args.max_in_flight_tokens is None and (local or _has(groups, CrossAttentionSpec)):
        kind = "local" if local else "cross"
        return f"{kind} attention needs max_num_batched_tokens, or the GPU"
    if local and _BATCHES_UNKNOWN_FROM <= args.version < _NEWEST:
        return "how much releases 0.26 to 0.31 keep of a window is not known"
    return None


def _has(
    groups: Sequence[Sequence[KVCacheSpec]], kinds: type[KVCacheSpec] | tuple[type, ...]
) -> bool:
    return any(isinstance(spec, kinds) for group in groups for spec in set(group))


def _check_sizes(groups: Sequence[Sequence[KVCacheSpec]], version: VllmVersion) -> None:
    """The ratio from which the rarest kind sets the size of groups has changed over time."""
    layers: dict[KVCacheSpec, int] = {}
    for group in groups:
        layers[group[0]] = layers.get(group[0], 0) + len(group)
    counts = sorted(layers.values())
    if any(few < many < few * 1.5 for few, many in pairwise(counts)):
        raise Refusal(f"the size of groups in vLLM {version} is not described for these layers")
