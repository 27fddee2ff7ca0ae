"""Our exceptions.

* CapacityError              anything this package raises on purpose
  * InputError               what the operator gave us is wrong; carries every fault found
    - ModelConfigError       config.json
    - EngineArgsError        vLLM's arguments
    - SettingsError          our own flags, environment and file
    - RecordingError         a recording for ``replay``
      . TornRecordingError   one whose last line or archive was cut off
  * SourceError              an outside thing did not answer as it should; carries a ``reason``
  * ExpositionError          a metrics page that cannot be read
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vllm_capacity.secrecy import HIDDEN, is_secret_name, without_secrets


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an input.

    Attributes:
        key: path to the value, as in ``text_config.num_attention_heads``.
        value: what stands there; None where nothing does, ``HIDDEN`` where it may be a secret.
        problem: what is wrong and what to do, in one sentence.
    """

    key: str
    value: Any
    problem: str

    def __str__(self) -> str:
        is_secret = is_secret_name(self.key.rpartition(".")[2])
        shown = HIDDEN if is_secret and self.value is not None else _shortened(self.value)
        return f"{without_secrets(self.key)}: {without_secrets(self.problem)} (got {shown})"


class CapacityError(Exception):
    """Base of every error raised on purpose."""


class InputError(CapacityError):
    """An input that the operator can mend, with all of its faults at once.

    Attributes:
        source: where the input came from, as in ``…/config.json``.
        faults: every fault found, in the order of the input.
    """

    def __init__(self, source: str, faults: Iterable[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__(f"{source}: " + "; ".join(str(fault) for fault in self.faults))


class ModelConfigError(InputError):
    """A ``config.json`` that cannot be used."""


class EngineArgsError(InputError):
    """vLLM arguments that contradict themselves or vLLM would refuse."""


class SettingsError(InputError):
    """A flag, environment variable or settings file that cannot be used."""


class RecordingError(InputError):
    """A recording that ``replay`` cannot read, or ``record`` cannot write."""


class TornRecordingError(RecordingError):
    """A recording that was cut off, as by a crash; every whole line stands before the cut."""


class ExpositionError(CapacityError):
    """A metrics page that cannot be read as Prometheus text."""


class SourceError(CapacityError):
    """An outside source failed.

    Attributes:
        reason: one of ``timeout``, ``connect``, ``http``, ``parse``, ``too_large``, ``nvml``,
            ``absent``, ``invalid``; a label value of ``vllm_capacity_collection_errors_total``.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(without_secrets(message))


def _shortened(value: object, limit: int = 80) -> str:
    if value is None:
        return "nothing"
    text = HIDDEN if value == HIDDEN else without_secrets(repr(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"
