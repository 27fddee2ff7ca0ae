"""Attention of a decoder to what its encoder made."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.layer_cache import CrossAttentionCache
from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Attention, Linear, Module
from vllm_capacity.predict.parallel import Rank


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossAttention(Part):
    """Queries of the decoder, keys and values of the encoder's output.

    Source: vLLM 0.32 ``models/whisper.py``, ``WhisperCrossAttention``.
    """

    hidden_size: int
    num_heads: int
    name: str = "encoder_attn"
    out_name: str = "out_proj"
    input_tokens: int | None = None

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The projections, and the attention layer's own buffers."""
        name, share = f"{path}.{self.name}", self.hidden_size // rank.tp_size
        yield Linear(
            name=f"{name}.q_proj",
            shards=(f"{name}.q_proj",),
            input_size=self.hidden_size,
            output_sizes=(share,),
            split="column",
            bias=True,
        )
        yield Linear(
            name=f"{name}.kv_proj",
            shards=(f"{name}.k_proj", f"{name}.v_proj"),
            input_size=self.hidden_size,
            output_sizes=(share, share),
            split="column",
            bias=True,
        )
        yield Linear(
            name=f"{name}.{self.out_name}",
            shards=(f"{name}.{self.out_name}",),
            input_size=share,
            output_sizes=(self.hidden_size,),
            split="row",
            bias=True,
        )
        yield Attention(name=f"{name}.attn")

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """Keys and values of the encoder's states, of the rank's heads."""
        cache = CrossAttentionCache(
            num_kv_heads=max(1, self.num_heads // rank.tp_size),
            head_size=self.hidden_size // self.num_heads,
            input_tokens=self.input_tokens,
        )
        yield NamedCache(f"{path}.{self.name}.attn", cache)

    def transient(self, rank: Rank) -> Transient:
        """Queries and the attention's output."""
        return Transient("attention", 2 * self.hidden_size // rank.tp_size)

    def refusal(self, rank: Rank) -> str | None:
        """Heads that the ranks cannot share."""
        if self.num_heads % rank.tp_size == 0:
            return None
        return (
            f"vLLM refuses to start: {self.num_heads} attention heads are not divisible by "
            f"tensor_parallel_size {rank.tp_size}"
        )
