"""DeepSeek-V4: windows and compressed caches, hyper-connections, hashed routing."""

from collections.abc import Mapping
from dataclasses import replace

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Outside, Part, Stages
from vllm_capacity.predict.models.assembly import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.latent_reading import (
    assemble,
    check_silu,
    norms,
    read_experts,
    required,
    shared_experts_width,
)
from vllm_capacity.predict.parts import SparseMoe, Vectors
from vllm_capacity.predict.parts.compressed_attention import (
    COMPRESS_RATIOS,
    OVERLAPPING_RATIO,
    CompressedAttention,
    CompressedIndexer,
    Compressor,
)
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope, RopeTable, read_rope

_FLOAT32 = 4
_INT32 = 4
_SOURCE = "deepseek_v4/nvidia/model.py"


def build_deepseek_v4(config: Fields, *, path: str = "model", head_path: str = "") -> Model:
    """DeepSeek-V4's text model.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``models/deepseek_v4/nvidia/model.py`` and ``attention.py``.
    """
    check_silu(config, _SOURCE)
    if config.values.get("vision_n_layers"):
        raise Refusal("config key vision_n_layers changes memory in a way that is not covered yet")
    hashed = config.required_integer("num_hash_layers", minimum=0, maximum=MAX_LAYERS)
    ratios = _compress_ratios(config)
    experts, streams = _experts(config), _hyper_connections(config)
    kinds: dict[tuple[int, bool], tuple[Part, ...]] = {}

    def parts_of(layer: int) -> tuple[Part, ...]:
        kind = (ratios[layer], layer < hashed)
        if kind not in kinds:
            ratio, by_hash = kind
            router = _hash_table(config) if by_hash else _correction(config)
            kinds[kind] = (_attention(config, ratio), experts, *router, norms(config), streams)
        return kinds[kind]

    positions = config.required_integer("max_position_embeddings", maximum=MAX_TOKENS)
    model = assemble(
        config,
        source=_SOURCE,
        path=path,
        head_path=head_path,
        parts_of=parts_of,
        rope=read_rope(_rope_fields(config, compressed=True), max_positions=positions),
        compiled=False,
    )
    head = Vectors(name="hc_head", elements=head_elements(config), element_bytes=_FLOAT32)
    return replace(
        model,
        outside=(*model.outside, Outside(part=head, stages=Stages.EVERY, path=path)),
    )


def head_elements(config: Fields) -> int:
    """Float32 elements that make one hidden state of the residual streams."""
    streams = required(config, "hc_mult")
    return streams * streams * required(config, "hidden_size") + streams + 1


def _compress_ratios(config: Fields) -> tuple[int, ...]:
    layers = config.required_integer("num_hidden_layers", maximum=MAX_LAYERS)
    ratios = config.integers("compress_ratios")
    if ratios is None or len(ratios) < layers:
        config.fault("compress_ratios", f"must list a ratio for each of {layers} layers")
        return (1,) * layers
    ratios = tuple(max(1, ratio) for ratio in ratios[:layers])
    for ratio in ratios:
        if ratio not in COMPRESS_RATIOS:
            raise Refusal(f"vLLM refuses to start: compress_ratios has {ratio}, not 0, 4 or 128")
    return ratios


def _experts(config: Fields) -> SparseMoe:
    experts = read_experts(config, correction_bias=False, shared_width=shared_experts_width(config))
    shared = experts.shared
    if shared is not None:
        block = _block_rows(config)
        shared = replace(shared, token_parallel_stages=False, block_rows=block)
    return replace(experts, name="ffn", shared=shared)


def _block_rows(config: Fields) -> int | None:
    """Rows of a block of quantised weights, of which every rank gets whole ones.

    Source: vLLM 0.32 ``models/deepseek_v4/nvidia/model.py``, ``DeepseekV4MLP``.
    """
    quantization = config.values.get("quantization_config")
    size = quantization.get("weight_block_size") if isinstance(quantization, Mapping) else None
    if not isinstance(size, list | tuple) or not size or not isinstance(size[0], int):
        return None
    return size[0] if 0 < size[0] <= MAX_WIDTH else None


def _correction(config: Fields) -> tuple[Part, ...]:
    if config.text("topk_method") != "noaux_tc":
        return ()
    elements = required(config, "n_routed_experts")
    name = "ffn.gate.e_score_correction_bias"
    return (Vectors(name=name, elements=elements, element_bytes=_FLOAT32),)


def _hash_table(config: Fields) -> tuple[Part, ...]:
    """Which experts every token of the vocabulary visits."""
    entries = required(config, "vocab_size") * required(config, "num_experts_per_tok")
    return (Vectors(name="ffn.gate.tid2eid", elements=entries, element_bytes=_INT32),)


def _hyper_connections(config: Fields) -> Vectors:
    """What mixes the residual streams before attention and before the experts, in float32.

    Source: vLLM 0.32 ``models/deepseek_v4/nvidia/model.py``, ``DeepseekV4DecoderLayer``.
    """
    streams = required(config, "hc_mult")
    mixed = (2 + streams) * streams
    elements = mixed * streams * required(config, "hidden_size") + mixed + 3
    return Vectors(name="hc", elements=2 * elements, element_bytes=_FLOAT32)


def _attention(config: Fields, ratio: int) -> CompressedAttention:
    hidden_size, head_size = required(config, "hidden_size"), required(config, "head_dim")
    compressor = Compressor(hidden_size=hidden_size, head_size=head_size, compress_ratio=ratio)
    q_lora_rank = required(config, "q_lora_rank")
    indexer = None
    if ratio == OVERLAPPING_RATIO:
        indexer = CompressedIndexer(
            q_lora_rank=q_lora_rank,
            num_heads=required(config, "index_n_heads"),
            compressor=replace(compressor, head_size=required(config, "index_head_dim")),
        )
    return CompressedAttention(
        hidden_size=hidden_size,
        num_heads=required(config, "num_attention_heads"),
        q_lora_rank=q_lora_rank,
        head_size=head_size,
        o_groups=required(config, "o_groups"),
        o_lora_rank=required(config, "o_lora_rank"),
        sliding_window=config.required_integer("sliding_window", maximum=MAX_TOKENS),
        rope=_table(config, compressed=ratio > 1),
        compressor=compressor if ratio > 1 else None,
        indexer=indexer,
    )


def _rope_fields(config: Fields, *, compressed: bool) -> Fields:
    """The configuration with the rope parameters of one kind of layer at its top."""
    key = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    given = config.values.get(key)
    if isinstance(given, Mapping) and all(
        isinstance(given.get(kind), Mapping) for kind in ("main", "compress")
    ):
        given = given["compress" if compressed else "main"]
    values = {**config.values, "rope_scaling": given, "rope_parameters": None}
    return Fields(values, path=config.path, faults=config.faults)


def _table(config: Fields, *, compressed: bool) -> RopeTable:
    """The float32 table of layers with a compressed cache, or of those with a window only.

    Source: vLLM 0.32 ``models/deepseek_v4/common/rope.py``, ``build_deepseek_v4_rope``: YaRN is
    for layers that compress.
    """
    positions = config.required_integer("max_position_embeddings", maximum=MAX_TOKENS)
    rope = read_rope(_rope_fields(config, compressed=compressed), max_positions=positions)
    plain: Rope = replace(
        rope,
        rope_type="deepseek_yarn",
        base=config.number("rope_theta", minimum=1e-6, maximum=1e15) or 10000.0,
        original_max_positions=positions,
        factor=1.0,
    )
    if compressed:
        base = config.number("compress_rope_theta", minimum=1e-6, maximum=1e15)
        if base is None:
            config.fault("compress_rope_theta", "is missing; add the model's value")
        plain = replace(plain, base=base or plain.base)
        if rope.rope_type != "default":
            plain = replace(
                plain,
                factor=rope.factor,
                original_max_positions=rope.original_max_positions,
            )
    return RopeTable(
        rope=plain,
        head_size=required(config, "head_dim"),
        columns=required(config, "qk_rope_head_dim"),
        element_bytes=_FLOAT32,
        interleaved=True,
    )


BUILDERS: dict[str, Builder] = {"DeepseekV4ForCausalLM": build_deepseek_v4}
