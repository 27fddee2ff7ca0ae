"""Sparse feed-forward layers: a router, routed experts, and experts that every token visits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from vllm_capacity.predict.model import Part, Transient
from vllm_capacity.predict.modules import Linear, Module, Plain, RoutedExperts
from vllm_capacity.predict.parallel import Rank, local_experts, mapped_experts
from vllm_capacity.predict.parts.feed_forward import Mlp

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseMoe(Part):
    """A mixture of experts.

    Attributes:
        num_experts: routed experts of the whole model.
        experts_per_token: experts that each token visits.
        intermediate_size: width of one routed expert.
        shared: the shared expert, None without one.
        shared_gate: whether a scalar gate weighs the shared expert.
        correction_bias: whether a float32 bias per expert corrects the scores.
        float32_router: whether router weights are float32.
        fast_router: whether router weights are float32 on GPUs without vLLM's router kernels.
        router_bias: whether the router has a bias.
        quantized_router: whether the router receives the quantisation config.
        gated: whether routed experts have a gate besides up and down.
        expert_bias: whether routed experts have biases.
        routed_hidden_size: width of what the experts see where it is not the model's.
        identity_experts: experts of the router that pass a token on and hold nothing.
        name: path inside the layer.
        router_name, experts_name: vLLM's names of its modules.
        projections: the checkpoint's names of an expert's projections.
        fits_tensorrt: whether TensorRT-LLM's kernels know how its router scores, see
            :class:`RoutedExperts`.
    """

    is_sparse: ClassVar[bool] = True

    hidden_size: int
    num_experts: int
    experts_per_token: int
    intermediate_size: int
    shared: Mlp | None = None
    shared_gate: bool = False
    correction_bias: bool = False
    float32_router: bool = False
    fast_router: bool = False
    router_bias: bool = False
    quantized_router: bool = False
    gated: bool = True
    expert_bias: bool = False
    routed_hidden_size: int | None = None
    identity_experts: int = 0
    name: str = "mlp"
    router_name: str = "gate"
    experts_name: str = "experts"
    projections: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    fits_tensorrt: bool = True

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Router, shared expert and the rank's routed experts."""
        name = f"{path}.{self.name}"
        yield Linear(
            name=f"{name}.{self.router_name}",
            shards=(f"{name}.{self.router_name}",),
            input_size=self.hidden_size,
            output_sizes=(self.num_experts + self.identity_experts,),
            bias=self.router_bias,
            quantizable=self.quantized_router,
            element_bytes=_FLOAT32 if self.float32_router else None,
            fast_router=self.fast_router,
        )
        if self.correction_bias:
            yield Plain(
                name=f"{name}.e_score_correction_bias",
                elements=self.num_experts + self.identity_experts,
                element_bytes=_FLOAT32,
            )
        if self.shared is not None:
            if self.shared_gate:
                yield Plain(name=f"{name}.shared_expert_gate", elements=self.hidden_size)
            yield from self.shared.modules(rank, name)
        yield RoutedExperts(
            name=f"{name}.{self.experts_name}",
            num_experts=local_experts(self.num_experts, rank),
            hidden_size=self.routed_hidden_size or self.hidden_size,
            intermediate_size=self.intermediate_size // rank.moe_tensor_parallel,
            is_split=rank.moe_tensor_parallel > 1,
            expert_map_entries=mapped_experts(self.num_experts, rank),
            gated=self.gated,
            bias=self.expert_bias,
            projections=self.projections,
            fits_tensorrt=self.fits_tensorrt,
        )

    def transient(self, rank: Rank) -> Transient:
        """The two workspaces of the fused experts, and the shared expert's own.

        Source: vLLM 0.32 ``layers/fused_moe/experts/triton_moe.py``, ``workspace_shapes``.
        """
        share = self.intermediate_size // rank.moe_tensor_parallel
        gate_up = (2 if self.gated else 1) * share
        hidden = self.routed_hidden_size or self.hidden_size
        workspace = self.experts_per_token * (max(gate_up, hidden) + share)
        shared = 0 if self.shared is None else self.shared.transient(rank).elements
        return Transient("experts", workspace + shared, workspace)

    def refusal(self, rank: Rank) -> str | None:
        """Experts that the ranks cannot share."""
        over = rank.moe_tensor_parallel
        if rank.expert_parallel > 1:
            unknown = self.shared is not None and self.shared.token_parallel is None
            if unknown and rank.shares_tokens:
                return "shared experts under EP with both TP and DP are not covered yet"
            if self.num_experts < rank.expert_parallel:
                return "vLLM refuses to start: fewer experts than expert-parallel ranks"
            if rank.redundant_experts and (
                (self.num_experts + rank.redundant_experts) % rank.expert_parallel
            ):
                return "vLLM refuses to start: balanced experts must divide evenly over the ranks"
        elif self.intermediate_size % over:
            return (
                f"vLLM refuses to start: experts {self.intermediate_size} wide are not divisible "
                f"over {over} GPUs"
            )
        return None if self.shared is None else self.shared.refusal(rank)
