"""Groups of layers that share one block table, and the blocks that a request holds in each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_capacity.units import Blocks, Tokens, ceil_div


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheGroup:
    """Layers that keep the same tokens. A block of one group is as large as one of another.

    Source: vLLM 0.32 ``v1/core/single_type_kv_cache_manager.py``, one manager for each group.

    Attributes:
        block_size: tokens that a block holds.
        sliding_window: tokens that a token attends to, itself included; None for all.
        extra_blocks: blocks beyond those for tokens: states of drafted tokens.
    """

    block_size: Tokens
    sliding_window: Tokens | None = None
    extra_blocks: int = 0

    def required_blocks(self, num_tokens: int) -> int:
        """Entries of the block table for that many tokens, those outside the window included."""
        return ceil_div(num_tokens, self.block_size) + self.extra_blocks

    def skipped_blocks(self, num_computed_tokens: int) -> int:
        """Leading blocks that no token to come attends to."""
        if self.sliding_window is None:
            return 0
        return max(0, num_computed_tokens - self.sliding_window + 1) // self.block_size

    def most_blocks(self, max_model_len: int, max_in_flight_tokens: int) -> Blocks:
        """Blocks that a request of ``max_model_len`` tokens holds at most at once."""
        if self.sliding_window is None:
            return Blocks(self.required_blocks(max_model_len))
        held = min(self.sliding_window - 1 + max_in_flight_tokens, max_model_len)
        return Blocks(ceil_div(held, self.block_size) + 1)

    @property
    def window_blocks(self) -> int:
        """Blocks before a token that must be cached for it to be the first one computed."""
        window = self.sliding_window
        return 0 if window is None else ceil_div(window - 1, self.block_size)


def layers_per_group(model_config: Mapping[str, Any]) -> int:
    """Layers whose keys and values make up one block.

    Source: vLLM 0.32 ``v1/core/kv_cache_utils.py``, ``_get_kv_cache_groups_uniform_page_size``.
    """
    sizes = list(_layers_by_type(model_config).values())
    smallest, largest = min(sizes), max(sizes)
    return largest if largest < 1.5 * smallest else smallest


def cache_groups(
    model_config: Mapping[str, Any], block_size: Tokens, max_model_len: Tokens, num_drafts: int
) -> tuple[CacheGroup, ...]:
    """The groups of a model, in the order in which its kinds of layers appear.

    ``layer_types`` of the config names the kind of each layer; without it all attend to
    everything. Linear attention keeps one state a request, whatever its length, which holds as
    long as prefixes are not cached.
    """
    kinds = {
        "full_attention": CacheGroup(block_size=block_size),
        "linear_attention": CacheGroup(block_size=max_model_len, extra_blocks=num_drafts),
    }
    if window := model_config.get("sliding_window"):
        kinds["sliding_attention"] = CacheGroup(
            block_size=block_size, sliding_window=Tokens(window)
        )
    size = layers_per_group(model_config)
    layers = _layers_by_type(model_config)
    return tuple(kinds[kind] for kind in layers for _ in range(ceil_div(layers[kind], size)))


def _layers_by_type(model_config: Mapping[str, Any]) -> dict[str, int]:
    kinds = model_config.get("layer_types")
    if not kinds:
        return {"full_attention": model_config["num_hidden_layers"]}
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
