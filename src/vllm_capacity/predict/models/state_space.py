"""Text models with state-space, delta-net or short-convolution layers."""

from vllm_capacity.predict.models import (
    falcon_h1,
    granite_hybrid,
    jamba,
    lfm2,
    mamba,
    nemotron_h,
    olmo_hybrid,
    qwen_delta_net,
    zamba2,
)
from vllm_capacity.predict.models.builder import Builder

BUILDERS: dict[str, Builder] = {
    **falcon_h1.BUILDERS,
    **granite_hybrid.BUILDERS,
    **jamba.BUILDERS,
    **lfm2.BUILDERS,
    **mamba.BUILDERS,
    **nemotron_h.BUILDERS,
    **olmo_hybrid.BUILDERS,
    **qwen_delta_net.BUILDERS,
    **zamba2.BUILDERS,
}
