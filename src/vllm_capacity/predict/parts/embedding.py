"""What stands before and after the layers: token embedding, learned positions, logits head."""

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_capacity.predict.model import Part
from vllm_capacity.predict.modules import Linear, Module, Plain
from vllm_capacity.predict.parallel import Rank
from vllm_capacity.units import round_up

#: Source: vLLM 0.32 ``layers/vocab_parallel_embedding.py``, ``DEFAULT_VOCAB_PADDING_SIZE``.
VOCAB_PADDING = 64


def vocab_refusal(vocab_size: int, rank: Rank) -> str | None:
    """Why vLLM would not split a vocabulary over the ranks, None if it would.

    Source: vLLM 0.32 ``layers/vocab_parallel_embedding.py``: padded to 64 rows, then divided.
    """
    padded = round_up(vocab_size, VOCAB_PADDING)
    if padded % rank.tp_size == 0:
        return None
    return (
        f"vLLM refuses to start: padded vocabulary {padded} is not divisible by TP {rank.tp_size}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEmbedding(Part):
    """Rows of the vocabulary, divided over the ranks."""

    vocab_size: int
    hidden_size: int
    name: str = "embed_tokens"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The rank's rows."""
        rows = round_up(self.vocab_size, VOCAB_PADDING) // rank.tp_size
        yield Plain(name=f"{path}.{self.name}", elements=rows * self.hidden_size)

    def refusal(self, rank: Rank) -> str | None:
        """Rows that do not divide."""
        return vocab_refusal(self.vocab_size, rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitsHead(Part):
    """The projection to logits; a tied one is the embedding's own table.

    Attributes:
        tied: whether it holds no weights of its own.
        bias: whether logits have a bias.
        quantizable: whether vLLM hands it the quantisation config.
    """

    vocab_size: int
    hidden_size: int
    tied: bool = False
    bias: bool = False
    quantizable: bool = True
    name: str = "lm_head"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The rank's rows of the vocabulary."""
        rows = round_up(self.vocab_size, VOCAB_PADDING) // rank.tp_size
        name = f"{path}.{self.name}".lstrip(".")
        if self.quantizable:
            yield Linear(
                name=name,
                shards=(name,),
                input_size=self.hidden_size,
                output_sizes=(rows,),
                split="column",
                is_head=True,
                is_tied=self.tied,
            )
        elif not self.tied:
            yield Plain(name=name, elements=rows * self.hidden_size)
        if self.bias:
            yield Plain(name=f"{name}.bias", elements=rows)

    def refusal(self, rank: Rank) -> str | None:
        """Rows that do not divide."""
        return vocab_refusal(self.vocab_size, rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedPositions(Part):
    """A table of positions.

    Attributes:
        rows: positions, and rows that the class adds.
    """

    rows: int
    hidden_size: int
    name: str = "wpe"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The whole table, on every rank."""
        del rank
        yield Plain(name=f"{path}.{self.name}", elements=self.rows * self.hidden_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalMask(Part):
    """Which position sees which: a buffer of bools that transformers keeps in some models."""

    rows: int
    name: str = "bias"

    def modules(self, rank: Rank, path: str) -> Iterator[Module]:
        """The whole mask, on every rank."""
        del rank
        yield Plain(name=f"{path}.{self.name}", elements=self.rows**2, element_bytes=1)
