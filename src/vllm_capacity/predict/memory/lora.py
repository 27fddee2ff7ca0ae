"""Slots that LoRA adapters get beside the weights.

Source: vLLM 0.32 ``lora/layers/base_linear.py``, ``fused_moe.py``, ``vocab_parallel_embedding.py``
and ``logits_processor.py``, ``create_lora_weights``: every linear layer gets ``max_loras`` slots.
"""

from dataclasses import dataclass

from vllm_capacity.predict.engine_args import EngineArgs
from vllm_capacity.predict.memory.budget import NOTHING, Estimate
from vllm_capacity.predict.memory.weights import StageModel
from vllm_capacity.predict.modules import Linear, Module, RoutedExperts
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.units import Bytes

#: Source: vLLM 0.32 ``config/lora.py``, ``LoRAConfig``.
_DEFAULT_LORAS = 1
_DEFAULT_RANK = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSlots:
    """How many adapters of what rank are held at once.

    Attributes:
        fully_sharded: whether ranks divide the half that is otherwise on all of them.
    """

    slots: int
    rank: int
    fully_sharded: bool

    def elements(self, module: Module, tensor_parallel: int) -> int:
        """Elements of a module's slots on one rank."""
        if isinstance(module, Linear) and not module.is_head:
            return self.slots * self._linear(module, tensor_parallel)
        if isinstance(module, RoutedExperts):
            return self.slots * self._experts(module, tensor_parallel)
        return 0

    def _linear(self, linear: Linear, tensor_parallel: int) -> int:
        divided = tensor_parallel if self.fully_sharded else 1
        down = len(linear.output_sizes) * self.rank * linear.input_size
        up = sum(linear.output_sizes) * self.rank
        if linear.split == "row":
            return down + up // divided
        return down // (divided if linear.split == "column" else 1) + up

    def _experts(self, experts: RoutedExperts, tensor_parallel: int) -> int:
        divided = tensor_parallel if self.fully_sharded else 1
        slices = 2 if experts.gated else 1
        whole = (slices + 1) * self.rank * experts.hidden_size // divided
        shared = (slices + 1) * self.rank * experts.intermediate_size
        return experts.num_experts * (whole + shared)


def lora_slots(args: EngineArgs) -> LoraSlots | None:
    """The slots that the arguments ask for, None without LoRA."""
    if not args.enable_lora:
        return None
    return LoraSlots(
        slots=args.max_loras or _DEFAULT_LORAS,
        rank=args.max_lora_rank or _DEFAULT_RANK,
        fully_sharded=bool(args.fully_sharded_loras),
    )


def lora_bytes(
    slots: LoraSlots | None, stage: StageModel, rank: Rank, element_bytes: int
) -> Estimate:
    """Bytes of all slots on one rank.

    The lower bound leaves out embedding and head, which some model classes do not adapt.
    """
    if slots is None:
        return NOTHING
    linear = stage.total(rank, lambda module: slots.elements(module, rank.tp_size))
    vocabulary = 2 * (stage.model.vocab_size + stage.model.hidden_size) * slots.rank * slots.slots
    size = Bytes(element_bytes * (linear + vocabulary))
    return Estimate(
        bytes=size,
        low=Bytes(element_bytes * linear),
        high=size,
        origin=f"{slots.slots} LoRA slots of rank {slots.rank}",
    )
