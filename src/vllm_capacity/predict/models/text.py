"""Every text model, by the class that vLLM registers."""

from functools import partial

from vllm_capacity.predict.models import (
    bailing,
    deepseek_v4,
    kimi_linear,
    latent,
    latent_others,
    sliding,
    state_space,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.decoder import build_decoder
from vllm_capacity.predict.models.decoders import TRAITS

TEXT_BUILDERS: dict[str, Builder] = {
    **{name: partial(build_decoder, traits=traits) for name, traits in TRAITS.items()},
    **sliding.BUILDERS,
    **latent.BUILDERS,
    **latent_others.BUILDERS,
    **deepseek_v4.BUILDERS,
    **kimi_linear.BUILDERS,
    **bailing.BUILDERS,
    **state_space.BUILDERS,
}
