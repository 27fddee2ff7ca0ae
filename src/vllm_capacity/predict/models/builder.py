"""What a builder of models looks like."""

from typing import Protocol

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model


class Builder(Protocol):
    """Reads a configuration and puts the parts together.

    Raises:
        Refusal: the model is not described exactly. Faults of the file go to ``config.faults``.
    """

    def __call__(self, config: Fields, *, path: str = "model", head_path: str = "") -> Model:
        """The model; ``path`` is vLLM's module path of its decoder, ``head_path`` of its head."""
        ...
