"""A metrics page without the names that its owner may want to keep."""

import re

# vLLM: ``v1/metrics/loggers.py`` of 0.32. Ray puts where and for whom it runs on every series.
# ``engine`` and Ray's replica stay: they tell series apart.
_NAMING_LABELS = (
    *("model_name", "running_lora_adapters", "waiting_lora_adapters", "lora_name"),
    *("application", "deployment", "NodeAddress", "SessionName", "JobId", "WorkerId"),
)
_NAMED = re.compile(rf'([{{,]\s*(?:{"|".join(_NAMING_LABELS)})\s*=\s*")((?:[^"\\\n]|\\.)*)"')


class Redaction:
    """Puts ``name-1``, ``name-2``, … in the place of names, the same for the same name."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def page(self, text: str) -> str:
        """A page with every name replaced; lists of names keep their length."""
        return _NAMED.sub(lambda match: f'{match[1]}{self._names(match[2])}"', text)

    def name(self, name: str) -> str:
        """What stands for a name."""
        return self._known.setdefault(name, f"name-{len(self._known) + 1}")

    def _names(self, value: str) -> str:
        return ",".join(self.name(name) if name else "" for name in value.split(","))
