"""Attention to the blocks of tokens that an indexer of its own picks."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.layer_cache import BlockIndexerCache, BlockSparseCache
from vllm_capacity.predict.model import NamedCache
from vllm_capacity.predict.modules import Attention, Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank, kv_heads_per_rank
from vllm_capacity.predict.parts.attention import SelfAttention


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSparseAttention(SelfAttention):
    """Grouped attention whose fused projection also makes the indexer's queries and key.

    There are as many index heads as KV heads, and one index key that every rank holds.

    Attributes:
        index_head_size: elements of an index query or key.

    Source: vLLM 0.32 ``models/minimax_m3/nvidia/model.py``, ``MiniMaxM3SparseAttention``;
    ``layers/linear.py``, ``MinimaxM3QKVParallelLinearWithIndexer``.
    """

    index_head_size: int

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Both projections, the norms of heads and of index heads, and the scales."""
        name = f"{path}.{self.name}"
        kv_heads = kv_heads_per_rank(self.num_kv_heads, rank.tp_size)
        query = self.num_heads // rank.tp_size * self.head_size
        key, index = kv_heads * self.head_size, kv_heads * self.index_head_size
        shards = (*self.qkv_shards, "index_q_proj", "index_k_proj")
        yield Linear(
            name=f"{name}.qkv_proj",
            shards=tuple(f"{name}.{shard}" for shard in shards),
            input_size=self.hidden_size,
            output_sizes=(query, key, key, index, self.index_head_size),
            split="column",
        )
        yield Linear(
            name=f"{name}.o_proj",
            shards=(f"{name}.o_proj",),
            input_size=query,
            output_sizes=(self.hidden_size,),
            split="row",
        )
        norms = 2 * self.head_size + 2 * self.index_head_size
        yield Plain(name=f"{name}.norms", elements=norms)
        yield Attention(name=f"{name}.attn", scaled=False)

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """The indexer's keys, then keys and values of the rank's heads."""
        name = f"{path}.{self.name}.attn"
        heads = kv_heads_per_rank(self.num_kv_heads, rank.tp_size)
        yield NamedCache(f"{name}.index_cache", BlockIndexerCache(head_size=self.index_head_size))
        yield NamedCache(
            name,
            BlockSparseCache(
                num_kv_heads=heads, head_size=self.head_size, head_size_v=self.head_size
            ),
        )
