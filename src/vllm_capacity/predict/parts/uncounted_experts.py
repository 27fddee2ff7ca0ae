"""Experts that vLLM does not find in the configuration."""

from dataclasses import dataclass

from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.parts.experts import SparseMoe


@dataclass(frozen=True, kw_only=True, slots=True)
class UncountedMoe(SparseMoe):
    """A mixture of experts whose number stands where vLLM does not look for it.

    Source: vLLM 0.32 ``transformers_utils/model_arch_config_convertor.py``, ``get_num_experts``.
    """

    def refusal(self, rank: Rank) -> str | None:
        """Expert parallelism, which needs the number."""
        if rank.expert_parallel > 1:
            return (
                "vLLM refuses to start: enable_expert_parallel, but it finds no number of experts "
                "in this config.json"
            )
        return SparseMoe.refusal(self, rank)
