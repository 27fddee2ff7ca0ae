"""The decoders that a row of traits describes, by the class that vLLM registers."""

from functools import partial

from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.decoder import build_decoder
from vllm_capacity.predict.models.decoders import TRAITS

BUILDERS: dict[str, Builder] = {
    name: partial(build_decoder, traits=traits) for name, traits in TRAITS.items()
}
