"""Which class of vLLM's models is built how.

One entry per architecture *class* as vLLM registers it, never per model.
"""

from vllm_capacity.predict.models import multimodal
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.text import TEXT_BUILDERS

BUILDERS: dict[str, Builder] = {**TEXT_BUILDERS, **multimodal.BUILDERS}
