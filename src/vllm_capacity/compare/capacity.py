"""How much KV cache there is: by vLLM's account, and by the prediction."""

from dataclasses import dataclass

from vllm_capacity.observe.engine_snapshot import EngineSnapshot
from vllm_capacity.predict import KVCachePlan, Prediction
from vllm_capacity.units import Blocks, Bytes, Tokens, ceil_div

# One group of layers holds every token of a request, so N blocks are N × block_size tokens but for
# the last block of a full-length request. Further off than this, layers differ (hybrid cache).
_ONE_GROUP_RATIO = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """One engine's KV cache, by one account.

    Attributes:
        blocks: blocks that requests can hold, the null block not counted.
        tokens: vLLM's group-aware size in tokens.
        bytes_per_gpu: what the pool takes on the fullest rank.
        full_length_concurrency: requests of ``max_model_len`` tokens that fit.
    """

    blocks: Blocks | None = None
    tokens: Tokens | None = None
    bytes_per_gpu: Bytes | None = None
    full_length_concurrency: float | None = None


def is_hybrid(snapshot: EngineSnapshot) -> bool:
    """Whether the engine's layers hold differently many tokens, so that blocks × size misleads."""
    blocks, size = snapshot.num_gpu_blocks, snapshot.block_size_tokens
    reported = snapshot.kv_cache_size_tokens
    if blocks is None or size is None or reported is None:
        return False
    return reported < _ONE_GROUP_RATIO * blocks * size or reported > blocks * size


def reported_capacity(snapshot: EngineSnapshot) -> Capacity:
    """What vLLM itself exports; ``kv_cache_size_tokens`` came with 0.25."""
    return Capacity(
        blocks=snapshot.total_blocks,
        tokens=snapshot.kv_cache_size_tokens,
        full_length_concurrency=snapshot.max_concurrency,
    )


def derived_capacity(
    snapshot: EngineSnapshot, prediction: Prediction | None, max_model_len: int | None
) -> Capacity:
    """What follows from the reported blocks where vLLM does not say it itself.

    Tokens and concurrency only for engines that do not report them; bytes need the model's
    bytes per block, which the prediction knows.
    """
    blocks, size = snapshot.num_gpu_blocks, snapshot.block_size_tokens
    if blocks is None:
        return Capacity()
    plan = planned(prediction)
    tokens = concurrency = None
    if snapshot.kv_cache_size_tokens is None and size is not None:
        tokens = Tokens(blocks * size)
        if max_model_len:
            concurrency = blocks / ceil_div(max_model_len, size)
    return Capacity(
        tokens=tokens,
        bytes_per_gpu=None if plan is None else Bytes(blocks * max(plan.bytes_per_block)),
        full_length_concurrency=concurrency,
    )


def predicted_capacity(prediction: Prediction | None) -> Capacity:
    """What the deployment's description says there should be."""
    plan = planned(prediction)
    if plan is None or plan.num_blocks is None:
        return Capacity()
    return Capacity(
        blocks=Blocks(plan.num_blocks - 1),
        tokens=plan.kv_cache_size_tokens,
        bytes_per_gpu=Bytes(plan.num_blocks * max(plan.bytes_per_block)),
        full_length_concurrency=plan.max_concurrency,
    )


def planned(prediction: Prediction | None) -> KVCachePlan | None:
    """The prediction's plan of the cache, if it has one."""
    if prediction is None or not prediction.plans:
        return None
    return prediction.plans[0]


def tokens_per_block(snapshot: EngineSnapshot) -> float | None:
    """Tokens that one block of the pool stands for, averaged over layer groups.

    The block size where one group holds all layers; for a hybrid cache vLLM's size in tokens
    over its blocks.
    """
    if is_hybrid(snapshot) and snapshot.kv_cache_size_tokens and snapshot.num_gpu_blocks:
        return snapshot.kv_cache_size_tokens / snapshot.num_gpu_blocks
    return snapshot.block_size_tokens
