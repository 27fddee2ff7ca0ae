"""Text models whose layers differ in attention: the builders of all sub-families."""

from vllm_capacity.predict.models import (
    backend,
    gated_attention,
    gemma,
    gpt_oss,
    llama4,
    mimo_v2,
    sparse_windows,
    step,
    windows,
)
from vllm_capacity.predict.models.builder import Builder

BUILDERS: dict[str, Builder] = {
    **gemma.BUILDERS,
    **gpt_oss.BUILDERS,
    **llama4.BUILDERS,
    **mimo_v2.BUILDERS,
    **windows.BUILDERS,
    **sparse_windows.BUILDERS,
    **gated_attention.BUILDERS,
    **step.BUILDERS,
    **backend.BUILDERS,
}
