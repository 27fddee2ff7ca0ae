"""Speculative decoding, as far as it moves memory.

Source: vLLM 0.32 ``config/speculative.py``, ``SpeculativeConfig``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.refusal import Refusal

_MAX_DRAFT_TOKENS = 1 << 10
#: Methods under which steps may overlap.
#: Source: vLLM 0.32 ``config/vllm.py``, ``VllmConfig.__post_init__``.
_OVERLAPPING = frozenset({"eagle", "eagle3", "ngram_gpu", "draft_model", "dspark", "dflash"})


_READING_AHEAD = frozenset({"eagle", "eagle3", "mtp"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculative:
    """What drafts, and how far ahead.

    Attributes:
        method: vLLM's name; the names of the many MTP classes are all ``mtp``.
        num_speculative_tokens: tokens drafted in a step.
        draft_config: the draft model's own ``config.json``, None where it has none.
    """

    method: str
    num_speculative_tokens: int
    draft_config: Mapping[str, Any] | None

    @property
    def is_whole_model(self) -> bool:
        """Whether what drafts is a model of its own that knows nothing of the target."""
        return self.method == "draft_model"

    @property
    def reads_ahead(self) -> bool:
        """Whether the draft model reads the target's hidden states one token ahead.

        Source: vLLM 0.32 ``config/speculative.py``, ``SpeculativeConfig.use_eagle``.
        """
        return self.method in _READING_AHEAD

    @property
    def num_lookahead_tokens(self) -> int:
        """Slots that what drafts takes beyond the tokens of a step.

        Source: vLLM 0.32 ``config/vllm.py``, ``VllmConfig.num_lookahead_tokens``.
        """
        if self.method == "dflash":
            return self.num_speculative_tokens + 1
        takes_slots = self.reads_ahead or self.is_whole_model or self.method == "dspark"
        return self.num_speculative_tokens if takes_slots else 0

    @property
    def overlaps(self) -> bool:
        """Whether asynchronous scheduling stays on by default."""
        return self.method == "mtp" or self.method in _OVERLAPPING


def read_speculative(config: Mapping[str, Any] | None) -> Speculative | None:
    """``--speculative-config``; None where nothing is drafted.

    Raises:
        Refusal: it cannot be told what would draft.
    """
    if not config:
        return None
    fields = Fields(config, path="speculative_config.", faults=[])
    method, tokens = (
        fields.text("method"),
        fields.integer("num_speculative_tokens", maximum=_MAX_DRAFT_TOKENS),
    )
    draft = fields.mapping("config")
    if fields.faults:
        raise Refusal(f"speculative_config: {fields.faults[0].key} {fields.faults[0].problem}")
    if method is None or tokens is None:
        raise Refusal("speculative_config needs a method and num_speculative_tokens to be told")
    if draft is None and fields.has("model"):
        raise Refusal(
            'a draft model is described by its own config.json: give it as "config" in '
            "speculative_config"
        )
    return Speculative(
        method="mtp" if method.endswith("mtp") else method,
        num_speculative_tokens=tokens,
        draft_config=None if draft is None else draft.values,
    )


def slots_ahead(speculative: Speculative | None, *, overlaps: bool) -> float:
    """Slots of a running request beyond its prompt and the tokens delivered, on average.

    A step gets slots for one token, its drafts and what drafts next. Where steps overlap, the next
    step has its slots too when a token is delivered, in the hope that every draft is accepted;
    half of them are taken to be.

    Source: vLLM 0.32 ``v1/core/kv_cache_manager.py``, ``allocate_slots``;
    ``v1/core/sched/async_scheduler.py``.
    """
    ahead = 0.0 if overlaps else -1.0
    if speculative is None:
        return ahead
    steps = 2 if overlaps else 1
    drafted = (steps - 0.5) * speculative.num_speculative_tokens
    return ahead + drafted + speculative.num_lookahead_tokens
