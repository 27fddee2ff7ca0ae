"""A transformer block that several layers share, each with adapters of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.layer_cache import AttentionCache
from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Attention, Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.rope import RopeTable


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedBlock(Part):
    """Attention over the hidden states and the embeddings beside them, then an MLP.

    Every layer that uses it has its own cache, and low-rank adapters of the shared projections.

    Source: vLLM 0.32 ``model_executor/models/zamba2.py``, ``Zamba2AttentionDecoderLayer``.

    Attributes:
        uses: layers that share it.
        first_cache: number of the first one's cache.
        adapter_rank: width of an adapter.
        attention_adapters: whether queries, keys and values have adapters too.
        mlp_bias: whether the MLP has biases.
        path: vLLM's module path of the model.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    uses: int
    first_cache: int
    adapter_rank: int
    attention_adapters: bool
    mlp_bias: bool
    path: str
    rope: RopeTable | None = None

    @property
    def _attention_size(self) -> int:
        return 2 * self.hidden_size

    @property
    def _head_size(self) -> int:
        return self._attention_size // self.num_heads

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The shared projections, and what every use adds."""
        del path
        tp, size, name = rank.tp_size, self._attention_size, self.path
        heads = self.num_heads // tp * self._head_size
        share = self.intermediate_size // tp
        yield _column(f"{name}.qkv_proj", ("q_proj", "k_proj", "v_proj"), size, (heads,) * 3)
        yield _row(f"{name}.o_proj", heads, self.hidden_size)
        yield _column(
            f"{name}.feed_forward.gate_up_proj",
            ("gate_up_proj",),
            self.hidden_size,
            (share, share),
            bias=self.mlp_bias,
        )
        yield _row(f"{name}.feed_forward.down_proj", share, self.hidden_size, bias=self.mlp_bias)
        yield Plain(name=f"{name}.layernorms", elements=3 * self.hidden_size)
        for index in range(self.uses):
            yield Attention(name=self._cache_name(index), scaled=False)
            yield from self._adapters(rank, heads, share)

    def _adapters(self, rank: Rank, heads: int, share: int) -> Iterator[Linear]:
        if self.attention_adapters:
            for kind in ("q", "k", "v"):
                name = f"{self.path}.linear_{kind}_adapter"
                yield from self._adapter(rank, name, self._attention_size, (heads,))
        name = f"{self.path}.feed_forward.gate_up_proj_adapter_list"
        yield from self._adapter(rank, name, self.hidden_size, (share, share))

    def _adapter(
        self, rank: Rank, name: str, input_size: int, output_sizes: tuple[int, ...]
    ) -> Iterator[Linear]:
        yield _column(f"{name}.A", ("A",), input_size, (self.adapter_rank // rank.tp_size,))
        yield _column(f"{name}.B", ("B",), self.adapter_rank, output_sizes)

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """Keys and values of every use."""
        del path
        cache = AttentionCache(
            num_kv_heads=self.num_heads // rank.tp_size,
            head_size=self._head_size,
            head_size_v=self._head_size,
        )
        for index in range(self.uses):
            yield NamedCache(self._cache_name(index), cache)

    def _cache_name(self, index: int) -> str:
        return f"{self.path}.attn.{self.first_cache + index}"

    def ropes(self) -> tuple[RopeTable, ...]:
        """Its table."""
        return () if self.rope is None else (self.rope,)

    def transient(self, rank: Rank) -> Transient:
        """Queries, keys and values with their adapters' and the attention's output, or the MLP."""
        attention = 2 * self._attention_size + 7 * self._attention_size // rank.tp_size
        return Transient("shared block", max(attention, 6 * self.intermediate_size // rank.tp_size))

    def refusal(self, rank: Rank) -> str | None:
        """Heads, adapters or an MLP that the ranks cannot share."""
        tp = rank.tp_size
        for what, size in (
            ("attention heads", self.num_heads),
            ("columns of an adapter", self.adapter_rank),
            ("columns of the shared MLP", self.intermediate_size),
        ):
            if size % tp:
                return (
                    f"vLLM refuses to start: {size} {what} are not divisible by "
                    f"tensor_parallel_size {tp}"
                )
        return None


def _column(
    name: str,
    shards: tuple[str, ...],
    input_size: int,
    output_sizes: tuple[int, ...],
    *,
    bias: bool = False,
) -> Linear:
    parent = name.rpartition(".")[0]
    return Linear(
        name=name,
        shards=tuple(f"{parent}.{shard}" for shard in shards),
        input_size=input_size,
        output_sizes=output_sizes,
        split="column",
        bias=bias,
    )


def _row(name: str, input_size: int, output_size: int, *, bias: bool = False) -> Linear:
    return Linear(
        name=name,
        shards=(name,),
        input_size=input_size,
        output_sizes=(output_size,),
        split="row",
        bias=bias,
    )
