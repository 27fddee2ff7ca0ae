"""Self-attention whose class does not replicate KV heads."""

from dataclasses import dataclass

from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.parts.attention import SelfAttention


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreplicatedAttention(SelfAttention):
    """Self-attention that more ranks than KV heads cannot share.

    Source: vLLM 0.32 ``model_executor/models/gpt_oss.py``, ``OAIAttention``: it divides the KV
    heads by the ranks without replicating them.
    """

    def refusal(self, rank: Rank) -> str | None:
        """Heads that the ranks cannot share."""
        if self.num_kv_heads < rank.tp_size:
            return (
                f"vLLM refuses to start: {self.num_kv_heads} KV heads are fewer than "
                f"tensor_parallel_size {rank.tp_size}, and this class does not replicate them"
            )
        return SelfAttention.refusal(self, rank)
