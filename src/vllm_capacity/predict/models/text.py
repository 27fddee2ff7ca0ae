"""Every text model, by the class that vLLM registers."""

from functools import partial

from vllm_capacity.predict.models import (
    bailing,
    bailing_moe,
    chatglm,
    dbrx,
    deepseek_v4,
    falcon,
    kimi_linear,
    latent,
    latent_others,
    llama_variants,
    minimax_m3,
    nemotron_nas,
    opt,
    pangu,
    sliding,
    state_space,
    step3,
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
    **falcon.BUILDERS,
    **chatglm.BUILDERS,
    **dbrx.BUILDERS,
    **opt.BUILDERS,
    **llama_variants.BUILDERS,
    **pangu.BUILDERS,
    **bailing_moe.BUILDERS,
    **minimax_m3.BUILDERS,
    **nemotron_nas.BUILDERS,
    **step3.BUILDERS,
}
