"""Towers that turn images, video or sound into embeddings, and what they are made of."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vllm_capacity.predict.model import Part
from vllm_capacity.predict.modules import Linear, Module
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.predict.rope import RopeTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection(Part):
    """One linear layer.

    Attributes:
        input_size: columns before any rank divides them.
        output_sizes: rows of every fused matrix, likewise.
        split: which side tensor parallelism divides: ``column``, ``row`` or ``none``.
        shards: the checkpoint's names where they differ from ``name``.
        sharded_bias: False where a divided layer adds its whole bias after gathering.
    """

    name: str
    input_size: int
    output_sizes: tuple[int, ...]
    split: str = "none"
    bias: bool = True
    quantizable: bool = True
    shards: tuple[str, ...] = ()

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The rank's rows or columns."""
        columns = rank.tp_size if self.split == "row" else 1
        rows = rank.tp_size if self.split == "column" else 1
        yield Linear(
            name=f"{path}.{self.name}",
            shards=tuple(f"{path}.{shard}" for shard in self.shards or (self.name,)),
            input_size=self.input_size // columns,
            output_sizes=tuple(size // rows for size in self.output_sizes),
            split=self.split,
            bias=self.bias,
            quantizable=self.quantizable,
        )

    def refusal(self, rank: Rank) -> str | None:
        """A side that the ranks cannot share."""
        divided = {"row": (self.input_size,), "column": self.output_sizes}.get(self.split, ())
        for size in divided:
            if size % rank.tp_size:
                return (
                    f"vLLM refuses to start: {size} of {self.name} is not divisible by "
                    f"TP {rank.tp_size}"
                )
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group(Part):
    """Parts under one name, once or for every layer of an encoder.

    Attributes:
        name: vLLM's name of what holds them.
        count: how many layers, numbered after ``name``; None for parts that stand there once.
    """

    name: str
    parts: tuple[Part, ...]
    count: int | None = None

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Those of every layer."""
        inner = f"{path}.{self.name}"
        paths = [inner] if self.count is None else [f"{inner}.{i}" for i in range(self.count)]
        for place in paths:
            for part in self.parts:
                yield from part.modules(rank, place)

    def ropes(self) -> tuple[RopeTable, ...]:
        """Those of its parts."""
        return tuple(table for part in self.parts for table in part.ropes())

    def refusal(self, rank: Rank) -> str | None:
        """The first of its parts'."""
        return next(filter(None, (part.refusal(rank) for part in self.parts)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Unless(Part):
    """A part that ranks divide unless they do not divide its heads; then each holds it whole."""

    part: Part
    heads: int

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """Those of the part."""
        yield from self.part.modules(_alone(rank) if self.heads % rank.tp_size else rank, path)

    def ropes(self) -> tuple[RopeTable, ...]:
        """Those of the part."""
        return self.part.ropes()


def _alone(rank: Rank) -> Rank:
    """The rank as if no other shared with it."""
    return replace(rank, tp_rank=0, tp_size=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower(Part):
    """An encoder of images, video or sound, or what projects its output, whole on every stage.

    Attributes:
        name: vLLM's name of it.
        parts: what it is made of.
        data_parallel: whether ``--mm-encoder-tp-mode data`` leaves it whole on every rank.
        undivided: whether it is whole in any case.
        own_names: whether quantisation configs know its fused layers by their own names only, as
            the class says nothing of what is fused (``packed_modules_mapping``).
        heads: where set, ranks that do not divide them hold the tower whole.
    """

    name: str
    parts: tuple[Part, ...]
    data_parallel: bool = False
    undivided: bool = False
    heads: int | None = None
    own_names: bool = False

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """All of its parts."""
        place = f"{path}.{self.name}".lstrip(".")
        for part in self.parts:
            for module in part.modules(self._rank(rank), place):
                if self.own_names and isinstance(module, Linear):
                    yield replace(module, shards=(module.name,))
                else:
                    yield module

    def ropes(self) -> tuple[RopeTable, ...]:
        """Those of its parts."""
        return tuple(table for part in self.parts for table in part.ropes())

    def refusal(self, rank: Rank) -> str | None:
        """The first of its parts'."""
        alone = self._rank(rank)
        return next(filter(None, (part.refusal(alone) for part in self.parts)), None)

    def _rank(self, rank: Rank) -> Rank:
        """The rank as the tower sees it.

        Source: vLLM 0.32 ``models/vision.py``, ``is_vit_use_data_parallel``.
        """
        whole = self.undivided or (self.data_parallel and rank.encoder_data_parallel)
        odd = self.heads is not None and self.heads % rank.tp_size
        return _alone(rank) if whole or odd else rank


@dataclass(frozen=True, kw_only=True, slots=True)
class RotaryTower(Tower):
    """A tower with one rotary table of its own."""

    table: RopeTable

    def ropes(self) -> tuple[RopeTable, ...]:
        """Its table."""
        return (self.table,)
