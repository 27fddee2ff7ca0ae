"""Text models: see the family's builders."""

from vllm_capacity.predict.models.builder import Builder

BUILDERS: dict[str, Builder] = {}
