"""Self-attention whose queries pass through a narrow projection that every rank holds whole."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.modules import Attention, Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.parts.attention import SelfAttention


@dataclass(frozen=True, kw_only=True, slots=True)
class FactoredAttention(SelfAttention):
    """Multi-query attention with factored queries.

    Attributes:
        query_rank: width between the two projections of a query.

    Source: vLLM 0.32 ``model_executor/models/step3_text.py``, ``Step3TextAttention``.
    """

    query_rank: int

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The whole first projection, and the rank's heads of the second."""
        name = f"{path}.{self.name}"
        share = self.num_heads // rank.tp_size * self.head_size
        yield Linear(
            name=f"{name}.qkv_proj",
            shards=tuple(f"{name}.{shard}" for shard in self.qkv_shards),
            input_size=self.hidden_size,
            output_sizes=(self.query_rank + 2 * self.head_size,),
        )
        yield Linear(
            name=f"{name}.wq",
            shards=(f"{name}.wq",),
            input_size=self.query_rank,
            output_sizes=(share,),
            split="column",
        )
        yield Linear(
            name=f"{name}.o_proj",
            shards=(f"{name}.o_proj",),
            input_size=share,
            output_sizes=(self.hidden_size,),
            split="row",
        )
        yield Plain(name=f"{name}.inter_norm", elements=self.query_rank)
        yield Attention(name=f"{name}.attn", scaled=False)
