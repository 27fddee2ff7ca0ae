"""Parameters that no quantisation and no rank divides: norms, scalars, gates."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.model import Part
from vllm_capacity.predict.modules import Module, Plain
from vllm_capacity.predict.parallel import Rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Vectors(Part):
    """Elements that every rank holds whole.

    Attributes:
        elements: how many.
        element_bytes: width where it is not the model's dtype.
    """

    name: str
    elements: int
    element_bytes: int | None = None

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """One entry for all of them."""
        del rank
        yield Plain(
            name=f"{path}.{self.name}", elements=self.elements, element_bytes=self.element_bytes
        )
