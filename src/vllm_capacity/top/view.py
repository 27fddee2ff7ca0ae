"""What the reader has chosen to see, and what each key changes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vllm_capacity.top.entries import ORDERS, Entry, Key

#: Keys as the reader knows them, and what they do.
KEYS = {
    "q": "quit",
    "j or down": "the next engine",
    "k or up": "the engine before",
    "s": "another order: hottest first, by name, least room first",
    "?": "this list, and back",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What is shown.

    Attributes:
        selected: the engine that was chosen; None: the first of the list, whichever it is.
        order: of the engines, one of ``ORDERS``.
        helps: whether the keys are shown in place of the engines.
    """

    selected: Key | None = None
    order: str = "hottest first"
    helps: bool = False


def index_of(view: View, entries: Sequence[Entry]) -> int:
    """Where the chosen engine stands; where it is gone or none was chosen, the first one."""
    for i, entry in enumerate(entries):
        if entry.key == view.selected:
            return i
    return next((i for i, entry in enumerate(entries) if entry.engine is not None), 0)


def pressed(view: View, key: str, entries: Sequence[Entry]) -> View:
    """The view after a key: "up", "down" or a character; one that means nothing changes nothing."""
    if key == "?":
        return replace(view, helps=not view.helps)
    if key == "s":
        orders = list(ORDERS)
        return replace(view, order=orders[(orders.index(view.order) + 1) % len(orders)])
    step = {"j": 1, "down": 1, "k": -1, "up": -1}.get(key)
    if step is None or not entries:
        return view
    at = min(max(index_of(view, entries) + step, 0), len(entries) - 1)
    return replace(view, selected=entries[at].key)
