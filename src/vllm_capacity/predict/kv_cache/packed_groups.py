"""Layers with pages of unequal size → groups whose pages stand side by side in a block.

Source: vLLM 0.32 ``v1/core/kv_cache_utils.py``, ``_get_packed_kv_cache_groups``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.spec import KVCacheSpec, MambaSpec, SlidingWindowSpec
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.units import Bytes, ceil_div


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Layers that need the same blocks, by the size of their page."""

    first: KVCacheSpec
    by_page: Mapping[Bytes, Sequence[str]]

    @property
    def names(self) -> list[str]:
        return [name for names in self.by_page.values() for name in names]

    @property
    def repeats(self) -> int:
        """How often the pattern of layers repeats, if it is one."""
        return max(map(len, self.by_page.values()))

    @property
    def is_balanced(self) -> bool:
        return len(set(map(len, self.by_page.values()))) == 1

    def widest_bytes(self, count: int) -> int:
        """Bytes of the largest of ``count`` groups that it is split into."""
        return sum(ceil_div(len(names), count) * page for page, names in self.by_page.items())


def pack(specs: Mapping[str, KVCacheSpec]) -> list[Sequence[str]]:
    """Names of the layers of every group.

    Raises:
        Refusal: a bucket without a pattern would have to be split.
    """
    buckets = _buckets(specs)
    repeats = _repeats_per_group(buckets)
    counts = [_count(bucket, repeats) for bucket in buckets]
    states = [_holds_states(bucket, repeats) for bucket in buckets]
    anchor = max(
        bucket.widest_bytes(len(bucket.names) if state else count)
        for bucket, count, state in zip(buckets, counts, states, strict=True)
    )
    order = {name: place for place, name in enumerate(specs)}
    groups: list[Sequence[str]] = []
    for bucket, count, state in zip(buckets, counts, states, strict=True):
        split = count
        if state:
            # As many states as a block fits anyway, rather than wider blocks.
            per_block = max(anchor // bucket.first.page_size_bytes, 1)
            split = max(count, ceil_div(len(bucket.names), per_block))
        if split == 1:
            groups.append(sorted(bucket.names, key=order.__getitem__))
            continue
        if not bucket.is_balanced:
            raise Refusal("vLLM refuses to start: some layers are not assigned to any group")
        pattern = list(zip(*bucket.by_page.values(), strict=True))
        groups += [
            [name for repeat in pattern[start::split] for name in repeat] for start in range(split)
        ]
    return groups


def _buckets(specs: Mapping[str, KVCacheSpec]) -> list[_Bucket]:
    buckets: dict[object, dict[Bytes, list[str]]] = {}
    firsts: dict[object, KVCacheSpec] = {}
    for name, spec in specs.items():
        key = (spec.block_size, spec.family)
        firsts.setdefault(key, spec)
        buckets.setdefault(key, {}).setdefault(spec.page_size_bytes, []).append(name)
    return [_Bucket(firsts[key], by_page) for key, by_page in buckets.items()]


def _repeats_per_group(buckets: Sequence[_Bucket]) -> int | None:
    balanced = [bucket for bucket in buckets if bucket.is_balanced]
    mixed = [bucket.repeats for bucket in balanced if len(bucket.by_page) > 1]
    if not mixed:
        return None
    return _least_padding([bucket.repeats for bucket in balanced], max(mixed))


def _least_padding(values: Sequence[int], lowest: int) -> int:
    """The divisor to whose multiples ``values`` are rounded up at least cost, the largest of such.

    Source: ``_approximate_gcd``.
    """
    candidates = range(lowest, max(values) + 1)
    return min(candidates, key=lambda size: (sum(-value % size for value in values), -size))


def _count(bucket: _Bucket, repeats: int | None) -> int:
    return ceil_div(bucket.repeats, repeats) if repeats and bucket.is_balanced else 1


def _holds_states(bucket: _Bucket, repeats: int | None) -> bool:
    if isinstance(bucket.first, MambaSpec):
        return True
    return repeats is None and isinstance(bucket.first, SlidingWindowSpec)
