"""Self-attention with a query, key and value projection."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache
from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Attention, Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank, kv_heads_per_rank
from vllm_capacity.predict.rope import RopeTable


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfAttention(Part):
    """Multi-head, grouped-query or multi-query attention over all tokens, a window or a chunk.

    Attributes:
        num_kv_heads: of the whole model; fewer than ranks are replicated.
        head_size: elements of a query or key.
        head_size_v: elements of a value, None for as many.
        qk_norm: ``none``; ``head``, one weight per element of a head; ``sharded``, one per
            element of all heads of the rank; ``whole``, one per element of all heads.
        sliding_window: tokens that a token attends to; None for all.
        attention_chunk_size: tokens of a chunk that attends only to itself; None for none.
        rope: its rotary table, None where it has none of its own.
        sinks: whether every query head has an attention sink.
        extra_elements: further elements of its own on every rank.
        shares_cache: whether it reads another layer's keys and values and keeps none.
        query_gate: whether the query projection also makes an output gate of the same size.
        cached: False for an encoder's attention, which keeps nothing.
        scaled: whether a quantisation adds scales of keys and values.
        name: path inside the layer, empty where its modules stand in the layer itself.
        o_quantizable: whether vLLM hands the output projection the quantisation config too.
        input_size: elements that queries, keys and values are made of, None for ``hidden_size``.
        fused: whether queries, keys and values are one matrix in the checkpoint too, with one
            scale.
        qkv_name, o_name, attn_name: vLLM's names of its modules.
        qkv_shards: the checkpoint's names of the query, key and value projection.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    head_size_v: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: str = "none"
    sliding_window: int | None = None
    attention_chunk_size: int | None = None
    rope: RopeTable | None = None
    sinks: bool = False
    extra_elements: int = 0
    shares_cache: bool = False
    query_gate: bool = False
    cached: bool = True
    scaled: bool = True
    input_size: int | None = None
    quantizable: bool = True
    fused: bool = False
    o_quantizable: bool = True
    name: str = "self_attn"
    qkv_name: str = "qkv_proj"
    o_name: str = "o_proj"
    attn_name: str = "attn"
    qkv_shards: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")

    @property
    def value_size(self) -> int:
        """Elements of a value."""
        return self.head_size if self.head_size_v is None else self.head_size_v

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Projections, norms, sinks, and the attention layer's own buffers."""
        name = self._path(path)
        heads = self.num_heads // rank.tp_size
        kv_heads = kv_heads_per_rank(self.num_kv_heads, rank.tp_size)
        query, key = heads * self.head_size, kv_heads * self.head_size
        rows = (query * (1 + self.query_gate), key, kv_heads * self.value_size)
        yield Linear(
            name=f"{name}.{self.qkv_name}",
            shards=tuple(f"{name}.{shard}" for shard in self.qkv_shards),
            input_size=self.input_size or self.hidden_size,
            output_sizes=(sum(rows),) if self.fused else rows,
            split="column",
            bias=self.qkv_bias,
            quantizable=self.quantizable,
        )
        yield Linear(
            name=f"{name}.{self.o_name}",
            shards=(f"{name}.{self.o_name}",),
            input_size=heads * self.value_size,
            output_sizes=(self.hidden_size,),
            split="row",
            bias=self.o_bias,
            quantizable=self.quantizable and self.o_quantizable,
        )
        whole = (self.num_heads + self.num_kv_heads) * self.head_size
        norms = {"none": 0, "head": 2 * self.head_size, "sharded": query + key, "whole": whole}
        elements = norms[self.qk_norm] + self.extra_elements + (heads if self.sinks else 0)
        if elements:
            yield Plain(name=f"{name}.vectors", elements=elements)
        if self.cached:
            yield Attention(
                name=f"{name}.{self.attn_name}", num_kv_heads=kv_heads, scaled=self.scaled
            )

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """Keys and values of the rank's heads."""
        if self.cached and not self.shares_cache:
            cache = AttentionCache(
                num_kv_heads=kv_heads_per_rank(self.num_kv_heads, rank.tp_size),
                head_size=self.head_size,
                head_size_v=self.value_size,
                sliding_window=self.sliding_window,
                attention_chunk_size=self.attention_chunk_size,
                has_sink=self.sinks,
            )
            yield NamedCache(f"{self._path(path)}.{self.attn_name}", cache)

    def ropes(self) -> tuple[RopeTable, ...]:
        """Its table."""
        return () if self.rope is None else (self.rope,)

    def transient(self, rank: Rank) -> Transient:
        """Queries, keys and values, before and after rotation, and the attention's output."""
        heads = self.num_heads // rank.tp_size
        kv_heads = kv_heads_per_rank(self.num_kv_heads, rank.tp_size)
        qkv = (heads + kv_heads) * self.head_size + kv_heads * self.value_size
        return Transient("attention", qkv + heads * self.head_size)

    def refusal(self, rank: Rank) -> str | None:
        """Heads that the ranks cannot share."""
        tp = rank.tp_size
        if self.num_heads % tp:
            return (
                f"vLLM refuses to start: {self.num_heads} attention heads are not divisible by "
                f"tensor_parallel_size {tp}"
            )
        if self.num_kv_heads % tp and tp % self.num_kv_heads:
            return (
                f"vLLM refuses to start: {self.num_kv_heads} KV heads and tensor_parallel_size "
                f"{tp} do not divide one another"
            )
        return None

    def _path(self, path: str) -> str:
        return f"{path}.{self.name}".rstrip(".")
