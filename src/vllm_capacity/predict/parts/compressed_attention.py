"""DeepSeek-V4's attention: a window, and behind it a compressed cache."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.layer_cache import (
    CompressedIndexerCache,
    CompressedLatentCache,
    CompressorStateCache,
    WindowLatentCache,
)
from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.rope import RopeTable

_FLOAT32 = 4
#: Elements of an indexer's key that share one float32 scale.
_INDEXER_BLOCK = 128
#: Query heads that FlashMLA's decode kernel runs with; fewer are padded.
#: Source: vLLM 0.32 ``models/deepseek_v4/nvidia/flashmla.py``, ``get_padded_num_q_heads``.
_PADDED_HEADS = (64, 128)
#: Tokens that become one where a token also looks into the previous block, and has an indexer.
OVERLAPPING_RATIO = 4
COMPRESS_RATIOS = frozenset({1, OVERLAPPING_RATIO, 128})


@dataclass(frozen=True, kw_only=True, slots=True)
class Compressor:
    """Makes one latent vector, or one indexer's key, of a few tokens.

    Source: vLLM 0.32 ``models/deepseek_v4/compressor.py``, ``DeepseekCompressor``.

    Attributes:
        head_size: elements of what it makes.
        compress_ratio: tokens that it makes one of.
    """

    hidden_size: int
    head_size: int
    compress_ratio: int

    @property
    def width(self) -> int:
        """Elements of a token's values, and of their scores."""
        return self.head_size * (2 if self.compress_ratio == OVERLAPPING_RATIO else 1)

    def modules(self, name: str) -> Iterator[Module]:
        """Float32 positions, the projection to values and scores, and a norm."""
        positions = self.compress_ratio * self.width
        yield Plain(name=f"{name}.ape", elements=positions, element_bytes=_FLOAT32)
        yield Linear(
            name=f"{name}.fused_wkv_wgate",
            shards=(f"{name}.wkv", f"{name}.wgate"),
            input_size=self.hidden_size,
            output_sizes=(self.width, self.width),
            quantizable=False,
        )
        yield Plain(name=f"{name}.norm", elements=self.head_size)

    def cache(self) -> CompressorStateCache:
        """Values and scores of tokens that are not compressed yet."""
        return CompressorStateCache(state_size=2 * self.width, compress_ratio=self.compress_ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedIndexer:
    """Picks compressed vectors to attend to.

    Source: vLLM 0.32 ``models/deepseek_v4/attention.py``, ``DeepseekV4Indexer``.

    Attributes:
        num_heads: of the whole model; every rank has all of them.
    """

    q_lora_rank: int
    num_heads: int
    compressor: Compressor

    def modules(self, name: str) -> Iterator[Module]:
        """Projections, whole on every rank, and its own compressor."""
        yield Linear(
            name=f"{name}.wq_b",
            shards=(f"{name}.wq_b",),
            input_size=self.q_lora_rank,
            output_sizes=(self.num_heads * self.compressor.head_size,),
        )
        yield Linear(
            name=f"{name}.weights_proj",
            shards=(f"{name}.weights_proj",),
            input_size=self.compressor.hidden_size,
            output_sizes=(self.num_heads,),
            quantizable=False,
        )
        yield from self.compressor.modules(f"{name}.compressor")

    def caches(self, name: str) -> Iterator[NamedCache]:
        """Its keys in eight bits with their scales, and its compressor's state."""
        head_size = self.compressor.head_size
        keys = CompressedIndexerCache(
            head_size=head_size + head_size // _INDEXER_BLOCK * _FLOAT32,
            compress_ratio=self.compressor.compress_ratio,
        )
        yield NamedCache(f"{name}.k_cache", keys)
        yield NamedCache(f"{name}.compressor.state_cache", self.compressor.cache())


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedAttention(Part):
    """Attention over a window of latent vectors and over compressed ones.

    Source: vLLM 0.32 ``models/deepseek_v4/attention.py``, ``DeepseekV4Attention``.

    Attributes:
        q_lora_rank: width of the latent query.
        head_size: elements of a head, and of the one latent key and value.
        o_groups, o_lora_rank: groups of heads that the output projection first narrows, and
            the width of each.
        sliding_window: tokens that a token attends to uncompressed, itself included.
        rope: its rotary table.
        compressor: None where it attends to the window only.
        indexer: None where it attends to every compressed vector.
    """

    hidden_size: int
    num_heads: int
    q_lora_rank: int
    head_size: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    rope: RopeTable
    compressor: Compressor | None = None
    indexer: CompressedIndexer | None = None
    name: str = "attn"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Sinks, projections, norms, indexer and compressor."""
        name, heads = f"{path}.{self.name}", self.num_heads // rank.tp_size
        padded = next((size for size in _PADDED_HEADS if heads <= size), heads)
        yield Plain(name=f"{name}.attn_sink", elements=padded, element_bytes=_FLOAT32)
        yield Linear(
            name=f"{name}.fused_wqa_wkv",
            shards=(f"{name}.wq_a", f"{name}.wkv"),
            input_size=self.hidden_size,
            output_sizes=(self.q_lora_rank, self.head_size),
        )
        queries = heads * self.head_size
        yield _linear(f"{name}.wq_b", self.q_lora_rank, queries, "column")
        narrowed = self.o_groups * self.o_lora_rank // rank.tp_size
        group = self.num_heads * self.head_size // self.o_groups
        yield _linear(f"{name}.wo_a", group, narrowed, "column")
        yield _linear(f"{name}.wo_b", narrowed, self.hidden_size, "row")
        yield Plain(name=f"{name}.norms", elements=self.q_lora_rank + self.head_size)
        if self.indexer is not None:
            yield from self.indexer.modules(f"{name}.indexer")
        if self.compressor is not None:
            yield from self.compressor.modules(f"{name}.compressor")

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """Indexer, window, compressed vectors, compressor: whole on every rank."""
        del rank
        name = f"{path}.{self.name}"
        if self.indexer is not None:
            yield from self.indexer.caches(f"{name}.indexer")
        window = WindowLatentCache(head_size=self.head_size, sliding_window=self.sliding_window)
        yield NamedCache(f"{name}.swa_cache", window)
        if self.compressor is not None:
            ratio = self.compressor.compress_ratio
            latent = CompressedLatentCache(head_size=self.head_size, compress_ratio=ratio)
            yield NamedCache(name, latent)
            yield NamedCache(f"{name}.compressor.state_cache", self.compressor.cache())

    def ropes(self) -> tuple[RopeTable, ...]:
        """Its table."""
        return (self.rope,)

    def transient(self, rank: Rank) -> Transient:
        """Latent vectors, padded queries and as wide an output, of every token."""
        heads = self.num_heads // rank.tp_size
        padded = next((size for size in _PADDED_HEADS if heads <= size), heads)
        narrow = self.q_lora_rank + self.head_size
        compressed = 0 if self.compressor is None else 2 * self.compressor.width
        return Transient("attention", narrow + compressed + 2 * padded * self.head_size)

    def refusal(self, rank: Rank) -> str | None:
        """Heads or groups of heads that the ranks cannot share."""
        for count, what in ((self.num_heads, "attention heads"), (self.o_groups, "o_groups")):
            if count % rank.tp_size:
                return (
                    f"vLLM refuses to start: {count} {what} are not divisible by "
                    f"tensor_parallel_size {rank.tp_size}"
                )
        if self.num_heads // rank.tp_size > _PADDED_HEADS[-1]:
            return (
                "vLLM refuses to start: FlashMLA runs at most "
                f"{_PADDED_HEADS[-1]} heads of this attention on a GPU"
            )
        return None


def _linear(name: str, input_size: int, output_size: int, split: str) -> Linear:
    return Linear(
        name=name, shards=(name,), input_size=input_size, output_sizes=(output_size,), split=split
    )
