"""How many requests of a workload a planned KV cache holds at once."""

import math
from dataclasses import dataclass, fields

from vllm_capacity.errors import EngineArgsError, Fault
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.kv_cache.plan import KVCachePlan
from vllm_capacity.units import Blocks, Bytes, Tokens

#: Groups whose cached blocks later requests share token by token. Windows and states are counted
#: unshared: what they keep of a prefix is soon let go.
_SHARING_KINDS = frozenset({"full_attention", "mla_attention"})
_MAX_TOKENS = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Requests as an operator knows them, in tokens.

    Attributes:
        mean_prompt_tokens, mean_output_tokens: of a request.
        p95_prompt_tokens, p95_output_tokens: of the longer ones; None where not known.
        shared_prefix_tokens: leading tokens that all prompts have in common.

    Raises:
        EngineArgsError: with every number that cannot be.
    """

    mean_prompt_tokens: int
    mean_output_tokens: int
    p95_prompt_tokens: int | None = None
    p95_output_tokens: int | None = None
    shared_prefix_tokens: int = 0

    def __post_init__(self) -> None:
        faults = [
            Fault(key, getattr(self, key), "must be at least 1 token")
            for key in ("mean_prompt_tokens", "mean_output_tokens")
            if getattr(self, key) < 1
        ]
        for what in ("prompt", "output"):
            mean, high = getattr(self, f"mean_{what}_tokens"), getattr(self, f"p95_{what}_tokens")
            if high is not None and high < mean:
                faults.append(Fault(f"p95_{what}_tokens", high, f"is below the mean of {mean}"))
        if not 0 <= self.shared_prefix_tokens <= self.mean_prompt_tokens:
            problem = "must be between 0 and the mean prompt"
            faults.append(Fault("shared_prefix_tokens", self.shared_prefix_tokens, problem))
        if faults:
            raise EngineArgsError("workload", faults)

    def sizes(self) -> dict[str, Tokens]:
        """Tokens of a request, by basis.

        ``mean while running`` is the average over a request's life, half of its output;
        ``mean`` and ``p95`` are whole requests, so that none of them is ever preempted.
        """
        mean = self.mean_prompt_tokens + self.mean_output_tokens
        sizes = {
            "mean while running": self.mean_prompt_tokens + math.ceil(self.mean_output_tokens / 2),
            "mean": mean,
        }
        if self.p95_prompt_tokens is not None or self.p95_output_tokens is not None:
            sizes["p95"] = (self.p95_prompt_tokens or self.mean_prompt_tokens) + (
                self.p95_output_tokens or self.mean_output_tokens
            )
        return {basis: Tokens(tokens) for basis, tokens in sizes.items()}


#: A workload's numbers, by name.
WORKLOAD_SIZES = tuple(field.name for field in fields(Workload))


def read_workload(values: Fields, *, is_needed: bool = False) -> Workload | None:
    """The workload in an object with the keys of ``WORKLOAD_SIZES``; None where there is none.

    Args:
        values: the object; what is missing or no number goes to its ``faults``.
        is_needed: whether its mean sizes are asked for even if none is given.

    Raises:
        EngineArgsError: the workload cannot be.
    """
    sizes = {name: values.integer(name, minimum=0, maximum=_MAX_TOKENS) for name in WORKLOAD_SIZES}
    given = {name: value for name, value in sizes.items() if value is not None}
    for name in ("mean_prompt_tokens", "mean_output_tokens"):
        if (given or is_needed) and not values.has(name):
            values.fault(name, "is missing; a workload needs both mean sizes")
    return None if values.faults or not given else Workload(**given)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadCapacity:
    """Requests of one size that run at once.

    Attributes:
        basis: which size.
        tokens: prompt and output together.
        blocks: blocks of each request that it shares with nobody.
        requests: how many run at once.
        binding_limit: ``kv_cache``, ``max_num_seqs`` or ``max_model_len``.
    """

    basis: str
    tokens: Tokens
    blocks: Blocks
    requests: int
    binding_limit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrefix:
    """What a common prefix saves when it is held once.

    Attributes:
        tokens: of the prefix that fill whole blocks.
        blocks: that hold it.
        bytes_per_gpu: of these blocks on the fullest rank.
        saved_blocks: that the requests which run at once would hold otherwise.
        saved_bytes_per_gpu: the same in bytes.
        more_requests: of the mean size that fit beside those that would fit without sharing.
    """

    tokens: Tokens
    blocks: Blocks
    bytes_per_gpu: Bytes
    saved_blocks: Blocks
    saved_bytes_per_gpu: Bytes
    more_requests: int


def workload_capacity(
    plan: KVCachePlan, workload: Workload, *, max_num_seqs: int | None, shares: bool = True
) -> tuple[WorkloadCapacity, ...]:
    """Requests that run at once, for each size of the workload.

    Args:
        plan: the cache; one that does not start holds nothing.
        workload: the requests.
        max_num_seqs: vLLM's limit, None where unknown.
        shares: whether prefix caching is on.
    """
    shared = _prefix_blocks(plan, workload) if shares else Blocks(0)
    return tuple(
        _capacity(plan, basis, tokens, shared, max_num_seqs)
        for basis, tokens in workload.sizes().items()
    )


def full_length_capacity(plan: KVCachePlan, *, max_num_seqs: int | None) -> WorkloadCapacity:
    """Requests of ``max_model_len`` tokens that run at once, whole ones.

    Args:
        plan: the cache; one that does not start holds nothing.
        max_num_seqs: vLLM's limit, None where unknown.
    """
    return _capacity(plan, "full_length", plan.max_model_len, Blocks(0), max_num_seqs)


def _capacity(
    plan: KVCachePlan, basis: str, tokens: Tokens, shared: Blocks, max_num_seqs: int | None
) -> WorkloadCapacity:
    own = Blocks(max(1, plan.blocks_for_request(tokens) - shared))
    # One block is the null block, which no request gets.
    free = (plan.num_blocks or 1) - 1 - shared
    requests, limit = max(0, free // own), "kv_cache"
    if tokens > plan.max_model_len:
        requests, limit = 0, "max_model_len"
    elif max_num_seqs is not None and requests > max_num_seqs:
        requests, limit = max_num_seqs, "max_num_seqs"
    return WorkloadCapacity(
        basis=basis, tokens=tokens, blocks=own, requests=requests, binding_limit=limit
    )


def _prefix_tokens(plan: KVCachePlan, workload: Workload) -> int:
    """Leading tokens that fill whole blocks of every group.

    Source: vLLM 0.32 ``v1/core/kv_cache_coordinator.py``: hits are multiples of the least common
    multiple of the groups' block sizes, and never cover a prompt's last token.
    """
    unit = math.lcm(*(group.spec.block_size for group in plan.groups)) if plan.groups else 1
    prefix = min(workload.shared_prefix_tokens, workload.mean_prompt_tokens - 1)
    return prefix // unit * unit


def _prefix_blocks(plan: KVCachePlan, workload: Workload) -> Blocks:
    tokens = _prefix_tokens(plan, workload)
    sharing = (group for group in plan.groups if group.kind in _SHARING_KINDS)
    return Blocks(sum(tokens // group.spec.block_size for group in sharing))


def shared_prefix(
    plan: KVCachePlan, workload: Workload, *, max_num_seqs: int | None
) -> SharedPrefix | None:
    """What the workload's common prefix saves; None where it fills no block or nothing starts."""
    blocks = _prefix_blocks(plan, workload)
    if not blocks or plan.num_blocks is None:
        return None
    size = max(plan.bytes_per_block)
    with_sharing = _mean(workload_capacity(plan, workload, max_num_seqs=max_num_seqs))
    without = _mean(workload_capacity(plan, workload, max_num_seqs=max_num_seqs, shares=False))
    saved = Blocks(blocks * max(0, with_sharing - 1))
    return SharedPrefix(
        tokens=Tokens(_prefix_tokens(plan, workload)),
        blocks=blocks,
        bytes_per_gpu=Bytes(blocks * size),
        saved_blocks=saved,
        saved_bytes_per_gpu=Bytes(saved * size),
        more_requests=with_sharing - without,
    )


def _mean(capacities: tuple[WorkloadCapacity, ...]) -> int:
    return next(each.requests for each in capacities if each.basis == "mean")
