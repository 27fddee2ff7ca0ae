"""What builders of hybrid models share: layer kinds, heads, what stands around the layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Outside, Part, Stages
from vllm_capacity.predict.models.assembly import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH
from vllm_capacity.predict.parts import LogitsHead, SelfAttention, TokenEmbedding, Vectors
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope, read_rope

FULL, LINEAR, CONV, MOE, MLP, HYBRID = (
    "full_attention",
    "linear_attention",
    "conv",
    "moe",
    "mlp",
    "hybrid",
)
#: Source: transformers 5 ``configuration_utils.py``, ``_LEGACY_LAYER_TYPE_REMAP``.
_OLD_NAMES = {"mamba": LINEAR, "attention": FULL}


class HybridFields:
    """Reads a configuration whose config class has defaults.

    Attributes:
        config: the text model's configuration.
        source: vLLM's file, for messages.
    """

    def __init__(self, config: Fields, source: str) -> None:
        self.config = config
        self.source = source

    def size(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A width or a number of heads; a fault where it is absent and has no default."""
        if default is not None and not self.config.has(key):
            return default
        return self.config.required_integer(key, minimum=minimum, maximum=MAX_WIDTH)

    def flag(self, key: str, *, default: bool) -> bool:
        """A switch."""
        value = self.config.boolean(key)
        return default if value is None else value

    def num_layers(self) -> int:
        """How many layers there are, bounded so that a slip cannot fill the memory."""
        return min(
            self.config.required_integer("num_hidden_layers", maximum=MAX_LAYERS), MAX_LAYERS
        )

    def positions(self, default: int | None = None) -> int:
        """Positions of the rotary table."""
        if default is not None and not self.config.has("max_position_embeddings"):
            return default
        return self.config.required_integer("max_position_embeddings", maximum=MAX_TOKENS)

    def kinds(self, *keys: str, num_layers: int | None, known: Sequence[str]) -> list[str] | None:
        """The kind of every layer by the first of ``keys`` that is present, in today's names.

        Raises:
            Refusal: vLLM does not know a kind, or there are more or fewer than layers.
        """
        for key in keys:
            names = self.config.texts(key)
            if names is None:
                continue
            kinds = [_OLD_NAMES.get(name, name) for name in names]
            unknown = sorted(set(kinds) - set(known))
            if unknown:
                raise Refusal(f"vLLM refuses to start: {key} names layers of kind {unknown[0]!r}")
            if num_layers is not None and len(kinds) != num_layers:
                raise Refusal(
                    f"vLLM refuses to start: {key} names {len(kinds)} layers, "
                    f"num_hidden_layers {num_layers}"
                )
            return kinds
        return None

    def state_dtype(self, key: str) -> str | None:
        """The type of recurrent states that the file asks for, None where it does not.

        Source: vLLM 0.32 ``config/cache.py``, ``MambaDType``.
        """
        dtype = self.config.text(key, among=("auto", "float32", "float16", "bfloat16"))
        return None if dtype == "auto" else dtype

    def expect(self, **expected: object) -> None:
        """Refuse any other value of these keys than the expected one.

        Raises:
            Refusal: a key has another value.
        """
        for key, value in expected.items():
            if self.config.has(key) and self.config.values[key] != value:
                raise Refusal(f"{self.source} with this {key} is not described exactly yet")

    def silu_only(self, key: str = "hidden_act") -> None:
        """Refuse what vLLM's class refuses.

        Raises:
            Refusal: the activation is another.
        """
        activation = self.config.text(key)
        if activation not in {None, "silu"}:
            raise Refusal(
                f"vLLM refuses to start: {self.source} supports only silu, not {activation}"
            )

    def heads(self, *, kv_heads_default: bool) -> tuple[int, int]:
        """Query heads and KV heads; ``kv_heads_default`` where an absent key means as many."""
        config = self.config
        heads = config.required_integer("num_attention_heads", maximum=MAX_WIDTH)
        if not config.has("num_key_value_heads"):
            if not (kv_heads_default or "num_key_value_heads" in config.values):
                config.fault("num_key_value_heads", "is missing; add the model's value")
            return heads, heads
        kv_heads = config.required_integer("num_key_value_heads", maximum=MAX_WIDTH)
        if heads % kv_heads:
            config.fault("num_key_value_heads", f"must divide num_attention_heads ({heads})")
        return heads, kv_heads

    def attention(
        self, *, hidden_size: int, kv_heads_default: bool, head_size: int | None = None, **own: Any
    ) -> SelfAttention:
        """Self-attention; without a ``head_size`` the heads divide the hidden states."""
        heads, kv_heads = self.heads(kv_heads_default=kv_heads_default)
        if head_size is None and hidden_size < heads:
            self.config.fault("num_attention_heads", "is larger than hidden_size")
        return SelfAttention(
            hidden_size=hidden_size,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_size=head_size or max(1, hidden_size // heads),
            **own,
        )

    def rope(self, max_positions: int, *, default_ratio: float = 1.0) -> Rope:
        """The rotary embedding.

        Raises:
            Refusal: it is not described exactly.
        """
        return read_rope(self.config, max_positions=max_positions, default_ratio=default_ratio)


def norms(count: int, hidden_size: int) -> Vectors:
    """The norms of a layer."""
    return Vectors(name="layernorms", elements=count * hidden_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shell:
    """What stands around the layers.

    Attributes:
        tied: whether the head is the embedding's table.
        quantized_head: whether vLLM hands the head the quantisation config.
        embedding_stages, norm_stages, head_stages: where vLLM builds each.
    """

    vocab_size: int
    hidden_size: int
    tied: bool
    quantized_head: bool = False
    embedding_stages: Stages = Stages.EVERY
    norm_stages: Stages = Stages.EVERY
    head_stages: Stages = Stages.EVERY
    embedding_name: str = "embed_tokens"
    norm_name: str = "norm"

    def parts(self, path: str, head_path: str) -> Iterator[Outside]:
        """Embedding, final norm and logits head."""
        vocab, hidden = self.vocab_size, self.hidden_size
        embedding = TokenEmbedding(vocab_size=vocab, hidden_size=hidden, name=self.embedding_name)
        yield Outside(part=embedding, stages=self.embedding_stages, path=path)
        norm: Part = Vectors(name=self.norm_name, elements=hidden)
        yield Outside(part=norm, stages=self.norm_stages, path=path)
        head = LogitsHead(
            vocab_size=vocab, hidden_size=hidden, tied=self.tied, quantizable=self.quantized_head
        )
        yield Outside(part=head, stages=self.head_stages, path=head_path)
