"""What builders of decoders with names of their own have in common."""

from collections.abc import Mapping
from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Part
from vllm_capacity.predict.models.assembly import (
    flag,
    num_layers,
)


def renamed(config: Fields, aliases: Mapping[str, str]) -> Fields:
    """The configuration with usual names beside the class's own; ``aliases`` is usual → own."""
    usual = {name: config.values[own] for name, own in aliases.items() if own in config.values}
    return Fields({**config.values, **usual}, path=config.path, faults=config.faults)


def alike(config: Fields, parts: tuple[Part, ...]) -> tuple[tuple[Part, ...], ...]:
    """So many layers of these parts as ``num_hidden_layers`` says."""
    return (parts,) * num_layers(config)


def layers_at(model: Model, path: str) -> Model:
    """The model with its layers right under ``path``."""
    layers = tuple(replace(layer, path=f"{path}.{at}") for at, layer in enumerate(model.layers))
    return replace(model, layers=layers)


def said_tied(config: Fields) -> bool:
    """Whether the head is the embedding, which a config class that is not vLLM's must say."""
    if not config.has("tie_word_embeddings"):
        config.fault("tie_word_embeddings", "is missing; add the model's value")
    return flag(config, "tie_word_embeddings")
