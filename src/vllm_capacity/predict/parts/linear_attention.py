"""Linear attention with a gated output: one recurrent matrix for every head."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.kv_cache.layer_cache import State, StateCache, StateKind
from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.rope import RopeTable


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedLinearAttention(Part):
    """Bailing's recurrent layer.

    Source: vLLM 0.32 ``layers/mamba/linear/bailing_linear_attn.py``,
    ``BailingMoELinearAttention``.

    Attributes:
        num_heads: of the whole model, for queries, keys and values alike.
        norm_groups: groups of the output norm, which ranks divide whole.
        qk_norm: whether queries and keys have a norm over the elements of a head.
    """

    hidden_size: int
    num_heads: int
    head_size: int
    norm_groups: int
    rope: RopeTable
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    name: str = "self_attn"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Projections, gate and norms of the rank's heads."""
        name = f"{path}.{self.name}"
        share = self.num_heads // rank.tp_size * self.head_size
        yield Linear(
            name=f"{name}.query_key_value",
            shards=(f"{name}.query_key_value",),
            input_size=self.hidden_size,
            output_sizes=(share, share, share),
            split="column",
            bias=self.qkv_bias,
        )
        yield Linear(
            name=f"{name}.g_proj",
            shards=(f"{name}.g_proj",),
            input_size=self.hidden_size,
            output_sizes=(share,),
            split="column",
        )
        yield Linear(
            name=f"{name}.dense",
            shards=(f"{name}.dense",),
            input_size=share,
            output_sizes=(self.hidden_size,),
            split="row",
            bias=self.output_bias,
        )
        norms = share + (2 * self.head_size if self.qk_norm else 0)
        yield Plain(name=f"{name}.norms", elements=norms)

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """A matrix for each of the rank's heads."""
        heads = self.num_heads // rank.tp_size
        state = State(shape=(heads, self.head_size, self.head_size), role="recurrent")
        cache = StateCache(kind=StateKind.LINEAR, states=(state,))
        yield NamedCache(f"{path}.{self.name}", cache)

    def ropes(self) -> tuple[RopeTable, ...]:
        """Its table."""
        return (self.rope,)

    def transient(self, rank: Rank) -> Transient:
        """Queries, keys and values, before and after, the gate and the output."""
        share = self.num_heads // rank.tp_size * self.head_size
        return Transient("attention", 3 * share + 3 * share + 2 * share)

    def refusal(self, rank: Rank) -> str | None:
        """Heads or groups that the ranks cannot share."""
        for count, what in ((self.num_heads, "attention heads"), (self.norm_groups, "norm groups")):
            if count % rank.tp_size:
                return (
                    f"vLLM refuses to start: {count} {what} are not divisible by "
                    f"tensor_parallel_size {rank.tp_size}"
                )
        return None
