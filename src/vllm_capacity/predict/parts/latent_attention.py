"""Multi-head latent attention (MLA), with or without an indexer that makes it sparse."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache, IndexerCache, LatentCache
from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Attention, Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.rope import RopeTable

_FLOAT32 = 4
#: Elements of a key that share one float32 scale.
#: Source: vLLM 0.32 ``model_executor/models/deepseek_v2.py``, ``Indexer.quant_block_size``.
_INDEXER_BLOCK = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Indexer:
    """The lightning indexer of DeepSeek sparse attention: it picks the tokens attended to.

    Source: vLLM 0.32 ``models/deepseek_v32/attention.py``, ``DeepseekV32Indexer``.

    Attributes:
        num_heads: of the whole model; every rank has all of them.
        head_size: elements of one of its keys.
    """

    hidden_size: int
    q_lora_rank: int
    num_heads: int
    head_size: int

    def modules(self, name: str) -> Iterator[Module]:
        """Projections and the float32 norm of its keys, whole on every rank."""
        yield Linear(
            name=f"{name}.wq_b",
            shards=(f"{name}.wq_b",),
            input_size=self.q_lora_rank,
            output_sizes=(self.head_size * self.num_heads,),
        )
        yield Linear(
            name=f"{name}.wk_weights_proj",
            shards=(f"{name}.wk", f"{name}.weights_proj"),
            input_size=self.hidden_size,
            output_sizes=(self.head_size, self.num_heads),
            quantizable=False,
        )
        yield Plain(name=f"{name}.k_norm", elements=2 * self.head_size, element_bytes=_FLOAT32)

    def cache(self) -> IndexerCache:
        """Its keys in eight bits, and their scales."""
        scales = self.head_size // _INDEXER_BLOCK * _FLOAT32
        return IndexerCache(head_size=self.head_size + scales)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentAttention(Part):
    """Attention whose keys and values are made from one latent vector per token.

    Source: vLLM 0.32 ``model_executor/models/deepseek_v2.py``, ``DeepseekV2MLAAttention`` and
    ``DeepseekV2Attention``.

    Attributes:
        q_lora_rank: width of the latent query; None where queries are projected at once.
        kv_lora_rank: width of the latent key and value.
        qk_nope_head_dim, qk_rope_head_dim: elements of a head without and with rotary positions.
        v_head_dim: elements of a value.
        ropes_used: rotary tables of the attention and of its indexer.
        absorbed: whether the cache keeps the latent vector; if not, each head's key and a value
            padded to its size.
        fused_a: whether both latent projections are one matrix.
        sparse: whether an indexer, here or in an earlier layer, picks the tokens.
        indexer: its own indexer.
        quantizable: whether it receives the quantisation config.
        output_gate: whether a further projection gates the attention's output.
        gate_with_latents: whether that projection is one matrix with the latent ones, where
            there is a latent query.
        extra_buffer_elements: float32 buffers beside every attention layer's four scales.
        attn_name: vLLM's name of the layer inside; empty where it is the attention itself.
    """

    hidden_size: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    ropes_used: tuple[RopeTable, ...] = ()
    absorbed: bool = True
    fused_a: bool = True
    sparse: bool = False
    indexer: Indexer | None = None
    quantizable: bool = True
    output_gate: bool = False
    gate_with_latents: bool = False
    extra_buffer_elements: int = 0
    name: str = "self_attn"
    attn_name: str = "attn"

    @property
    def qk_head_dim(self) -> int:
        """Elements of a query or key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_size(self) -> int:
        """Elements of what the cache keeps for a token."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Projections, norms of the latent vectors, the indexer and the layer's buffers."""
        name = f"{path}.{self.name}"
        heads = self.num_heads // rank.tp_size
        yield from self._latent_projections(name, heads)
        values = heads * (self.qk_nope_head_dim + self.v_head_dim)
        yield self._linear(name, "kv_b_proj", self.kv_lora_rank, values, split="column")
        if self.output_gate and not self._gate_is_merged:
            gated = heads * self.v_head_dim
            yield self._linear(name, "g_proj", self.hidden_size, gated, split="column")
        yield self._linear(name, "o_proj", heads * self.v_head_dim, self.hidden_size, split="row")
        norms = self.kv_lora_rank + (self.q_lora_rank or 0)
        yield Plain(name=f"{name}.layernorms", elements=norms)
        if self.indexer is not None:
            yield from self.indexer.modules(f"{name}.indexer")
        if self.extra_buffer_elements:
            extra = self.extra_buffer_elements
            yield Plain(name=f"{name}.buffers", elements=extra, element_bytes=_FLOAT32)
        yield Attention(name=self._attention_path(path), latent=self.absorbed)

    @property
    def _gate_is_merged(self) -> bool:
        return self.output_gate and self.gate_with_latents and self.q_lora_rank is not None

    def _attention_path(self, path: str) -> str:
        return f"{path}.{self.name}.{self.attn_name}".rstrip(".")

    def _latent_projections(self, name: str, heads: int) -> Iterator[Linear]:
        queries = heads * self.qk_head_dim
        if self.q_lora_rank is None:
            yield self._linear(name, "q_proj", self.hidden_size, queries, split="column")
        elif self.absorbed and self.fused_a:
            yield self._fused_projection(name, self.q_lora_rank, heads)
        else:
            yield self._linear(name, "q_a_proj", self.hidden_size, self.q_lora_rank)
        if self.q_lora_rank is not None:
            yield self._linear(name, "q_b_proj", self.q_lora_rank, queries, split="column")
        if self.q_lora_rank is None or not (self.absorbed and self.fused_a):
            yield self._linear(name, "kv_a_proj_with_mqa", self.hidden_size, self.latent_size)

    def _fused_projection(self, name: str, q_lora_rank: int, heads: int) -> Linear:
        """Both latent projections, and the output gate where it is merged with them."""
        merged = self._gate_is_merged
        shards = ("q_a_proj", "kv_a_proj_with_mqa", *(("g_proj",) if merged else ()))
        sizes = (q_lora_rank, self.latent_size, *((heads * self.v_head_dim,) if merged else ()))
        return Linear(
            name=f"{name}.{'fused_qkv_a_g_proj' if merged else 'fused_qkv_a_proj'}",
            shards=tuple(f"{name}.{shard}" for shard in shards),
            input_size=self.hidden_size,
            output_sizes=sizes,
            split="column" if merged else "none",
            quantizable=self.quantizable,
        )

    def _linear(
        self, name: str, module: str, input_size: int, output_size: int, split: str = "none"
    ) -> Linear:
        return Linear(
            name=f"{name}.{module}",
            shards=(f"{name}.{module}",),
            input_size=input_size,
            output_sizes=(output_size,),
            split=split,
            quantizable=self.quantizable,
        )

    def after_load_elements(self, rank: Rank) -> int:
        """Elements of the two copies of ``kv_b_proj`` that vLLM makes after loading.

        Source: vLLM 0.32 ``layers/attention/mla_attention.py``,
        ``process_weights_after_loading`` (``W_UK_T`` and ``W_UV``, in the model's dtype).
        """
        if not self.absorbed:
            return 0
        heads = self.num_heads // rank.tp_size
        return heads * (self.qk_nope_head_dim + self.v_head_dim) * self.kv_lora_rank

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """The indexer's keys, then the latent vectors: whole on every rank."""
        name, heads = f"{path}.{self.name}", self.num_heads // rank.tp_size
        if not self.absorbed:
            cache = AttentionCache(
                num_kv_heads=heads, head_size=self.qk_head_dim, head_size_v=self.qk_head_dim
            )
            yield NamedCache(self._attention_path(path), cache)
            return
        if self.indexer is not None:
            yield NamedCache(f"{name}.indexer.k_cache", self.indexer.cache())
        latent = LatentCache(
            head_size=self.latent_size,
            sparse=self.sparse,
            has_indexer=self.indexer is not None,
            num_heads=heads,
            qk_nope_head_dim=self.qk_nope_head_dim,
            qk_rope_head_dim=self.qk_rope_head_dim,
        )
        yield NamedCache(self._attention_path(path), latent)

    def ropes(self) -> tuple[RopeTable, ...]:
        """Its tables."""
        return self.ropes_used

    def transient(self, rank: Rank) -> Transient:
        """Latent vectors, queries and the attention's output; keys and values of a context.

        Source: vLLM 0.32 ``layers/attention/mla_attention.py``, ``forward_impl`` in the
        profiling run.
        """
        heads = self.num_heads // rank.tp_size
        elements = (self.q_lora_rank or 0) + self.latent_size
        elements += heads * (self.qk_head_dim + self.v_head_dim)
        if not self.absorbed:
            elements += 3 * heads * self.qk_head_dim
        expands = self.absorbed and not self.sparse
        context = heads * (self.qk_nope_head_dim + self.v_head_dim) if expands else 0
        return Transient("attention", elements, context_elements=context)

    def refusal(self, rank: Rank) -> str | None:
        """Heads that the ranks cannot share."""
        if self.num_heads % rank.tp_size == 0:
            return None
        return (
            f"vLLM refuses to start: {self.num_heads} attention heads are not divisible by "
            f"tensor_parallel_size {rank.tp_size}"
        )
