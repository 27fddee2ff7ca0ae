"""Modules that only Gemma's classes have."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from vllm_capacity.predict.model import NamedCache, Part, Transient
from vllm_capacity.predict.modules import Attention, Linear, Module, Plain, RoutedExperts
from vllm_capacity.predict.parallel import Rank, local_experts, mapped_experts
from vllm_capacity.predict.parts.attention import SelfAttention
from vllm_capacity.predict.parts.experts import workspace_per_expert
from vllm_capacity.predict.rope import RopeTable


@dataclass(frozen=True, kw_only=True, slots=True)
class BorrowingAttention(Part):
    """Self-attention that reads the keys and values of an earlier layer.

    It has a query projection and no others, and keeps nothing in the KV cache.

    Source: vLLM 0.32 ``model_executor/models/gemma3n.py``, ``Gemma3nAttention``.

    Attributes:
        like: the attention that it would be if it had keys and values of its own.
    """

    like: SelfAttention

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Query and output projection, the norm of the query, the layer's own buffers."""
        own = self.like
        name = f"{path}.{own.name}"
        query = own.num_heads // rank.tp_size * own.head_size
        yield Linear(
            name=f"{name}.q_proj",
            shards=(f"{name}.q_proj",),
            input_size=own.hidden_size,
            output_sizes=(query,),
            split="column",
            bias=own.qkv_bias,
        )
        yield Linear(
            name=f"{name}.{own.o_name}",
            shards=(f"{name}.{own.o_name}",),
            input_size=query,
            output_sizes=(own.hidden_size,),
            split="row",
            bias=own.o_bias,
        )
        yield Plain(name=f"{name}.q_norm", elements=own.head_size)
        yield Attention(name=f"{name}.{own.attn_name}")

    def caches(self, rank: Rank, path: str) -> Iterator[NamedCache]:
        """None of its own."""
        del rank, path
        return iter(())

    def ropes(self) -> tuple[RopeTable, ...]:
        """Its table."""
        return self.like.ropes()

    def transient(self, rank: Rank) -> Transient:
        """Queries before and after rotation, and the attention's output."""
        return Transient("attention", 2 * self.like.num_heads // rank.tp_size * self.like.head_size)

    def refusal(self, rank: Rank) -> str | None:
        """Heads that the ranks cannot share."""
        return self.like.refusal(rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelMoe(Part):
    """Routed experts that stand beside a dense MLP in the same layer.

    Source: vLLM 0.32 ``model_executor/models/gemma4.py``, ``Gemma4Router`` and
    ``Gemma4DecoderLayer``.

    Attributes:
        num_experts: routed experts of the whole model.
        experts_per_token: experts that each token visits.
        intermediate_size: width of one expert.
    """

    is_sparse: ClassVar[bool] = True

    hidden_size: int
    num_experts: int
    experts_per_token: int
    intermediate_size: int

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The router with its scales, the rank's experts, and three more norms."""
        yield Plain(name=f"{path}.router.scale", elements=self.hidden_size + self.num_experts + 1)
        yield Linear(
            name=f"{path}.router.proj",
            shards=(f"{path}.router.proj",),
            input_size=self.hidden_size,
            output_sizes=(self.num_experts,),
            quantizable=False,
        )
        yield RoutedExperts(
            name=f"{path}.experts",
            num_experts=local_experts(self.num_experts, rank),
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size // rank.moe_tensor_parallel,
            is_split=rank.moe_tensor_parallel > 1,
            expert_map_entries=mapped_experts(self.num_experts, rank),
            # GELU, and a routing function of its own.
            fits_tensorrt=False,
        )
        yield Plain(name=f"{path}.expert_layernorms", elements=3 * self.hidden_size)

    def transient(self, rank: Rank) -> Transient:
        """The two workspaces of the fused experts."""
        share = self.intermediate_size // rank.moe_tensor_parallel
        workspace = self.experts_per_token * workspace_per_expert(
            self.hidden_size, share, gated=True
        )
        return Transient("experts", workspace, workspace)

    def refusal(self, rank: Rank) -> str | None:
        """Experts that the ranks cannot share."""
        if rank.expert_parallel > self.num_experts:
            return "vLLM refuses to start: fewer experts than expert-parallel ranks"
        if self.intermediate_size % rank.moe_tensor_parallel:
            return (
                f"vLLM refuses to start: experts {self.intermediate_size} wide are not divisible "
                f"over {rank.moe_tensor_parallel} GPUs"
            )
        return None
