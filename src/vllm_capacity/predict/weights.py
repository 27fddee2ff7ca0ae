"""The parameters and buffers of every rank, as vLLM constructs them."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from vllm_capacity.predict.decoder import Decoder, MoeShape
from vllm_capacity.predict.dtypes import element_bytes
from vllm_capacity.predict.modules import Attention, Linear, Module, Plain, RoutedExperts
from vllm_capacity.predict.parallel import Rank, local_experts, stage_layers
from vllm_capacity.predict.quantization import Quantization, Unquantized
from vllm_capacity.units import MIB, Bytes, round_up

#: Source: vLLM 0.32 ``layers/vocab_parallel_embedding.py``, ``DEFAULT_VOCAB_PADDING_SIZE``.
VOCAB_PADDING = 64
#: Four float32 buffers: key, value, query and probability scale.
#: Source: vLLM 0.32 ``layers/attention/attention.py``, ``_init_kv_cache_quant``.
_ATTENTION_SCALE_BYTES = 16
_FLOAT32 = 4
_LARGE_ALLOCATION = 10 * MIB
_SEGMENT = 2 * MIB
_SPLIT_ABOVE = 1 * MIB


def padded_vocab(decoder: Decoder) -> int:
    """Rows of the embedding over all ranks."""
    return round_up(decoder.vocab_size, VOCAB_PADDING)


def weights_bytes(
    decoder: Decoder,
    ranks: tuple[Rank, ...],
    *,
    dtype: str,
    quantization: Quantization,
    env: Mapping[str, str],
) -> tuple[Bytes, ...]:
    """Bytes of parameters and buffers on every rank, before repacking after load.

    Source: the model classes of vLLM 0.32 ``model_executor/models/``; see ``architectures.py``.
    """
    stages = stage_layers(decoder.num_hidden_layers, ranks[0].pp_size, env)
    width = element_bytes(dtype)
    known: dict[tuple[int, int], Bytes] = {}
    sizes = []

    def measure(module: Module) -> int:
        return module_bytes(module, width, quantization)

    for rank in ranks:
        # Tensor-parallel ranks differ only where experts do not divide.
        key = rank.pp_rank, local_experts(decoder.moe.num_experts, rank) if decoder.moe else 0
        if key not in known:
            layers = stages[rank.pp_rank]
            alike = quantization.treats_layers_alike
            known[key] = Bytes(_over_modules(decoder, rank, layers, measure, alike=alike))
        sizes.append(known[key])
    return tuple(sizes)


def _over_modules(
    decoder: Decoder,
    rank: Rank,
    layers: range,
    measure: Callable[[Module], int],
    *,
    alike: bool,
) -> int:
    """The measure summed over a rank; ``alike`` layers of a kind are measured once."""

    def total(modules: Iterable[Module]) -> int:
        return sum(map(measure, modules))

    size = total(outer_modules(decoder, rank, layers))
    if not alike:
        return size + sum(total(layer_modules(decoder, rank, layer)) for layer in layers)
    for count, example in _kinds(decoder, layers):
        size += count * total(layer_modules(decoder, rank, example))
    return size


def _kinds(decoder: Decoder, layers: range) -> Iterator[tuple[int, int]]:
    """How many dense and sparse layers there are, and an example of each."""
    sparse = [layer for layer in layers if _is_sparse(decoder, layer)]
    dense = [layer for layer in layers if not _is_sparse(decoder, layer)]
    return ((len(kind), kind[0]) for kind in (dense, sparse) if kind)


def _is_sparse(decoder: Decoder, layer: int) -> bool:
    return decoder.moe is not None and layer in decoder.moe.layers


def allocator_slack_bytes(
    decoder: Decoder,
    rank: Rank,
    layers: range,
    *,
    dtype: str,
    quantization: Quantization,
) -> Bytes:
    """Bytes that PyTorch's allocator counts above the parameters' own.

    A tensor of 10 MiB or more gets a segment of whole 2 MiB; what is left of it is given to
    others only where it exceeds 1 MiB. Biases and scales are too small to count.

    Source: PyTorch ``c10/cuda/CUDACachingAllocator.cpp``, ``get_allocation_size`` and
    ``should_split``.
    """
    width = element_bytes(dtype)

    def slack(module: Module) -> int:
        return sum(map(_tensor_slack, _tensor_bytes(module, width, quantization)))

    return Bytes(_over_modules(decoder, rank, layers, slack, alike=True))


def _tensor_bytes(module: Module, width: int, quantization: Quantization) -> tuple[int, ...]:
    """Bytes of each large tensor of a module."""
    total = module_bytes(module, width, quantization)
    if isinstance(module, RoutedExperts):
        # Gate and up are one tensor, down another.
        return (2 * total // 3, total // 3)
    if isinstance(module, Linear):
        return (total * module.elements // (module.elements + module.bias_elements),)
    return (total,)


def _tensor_slack(size: int) -> int:
    if size < _LARGE_ALLOCATION:
        return 0
    slack = round_up(size, _SEGMENT) - size
    return slack if slack <= _SPLIT_ABOVE else 0


def module_bytes(module: Module, width: int, quantization: Quantization) -> int:
    """Bytes of one module on one rank; ``width`` is the model dtype's."""
    if isinstance(module, Plain):
        return module.elements * (module.element_bytes or width)
    if isinstance(module, Linear):
        return quantization.linear_bytes(module, width)
    if isinstance(module, RoutedExperts):
        mapping = _FLOAT32 * module.expert_map_entries
        return mapping + quantization.experts_bytes(module, width)
    return _ATTENTION_SCALE_BYTES + quantization.attention_bytes(width)


def outer_modules(decoder: Decoder, rank: Rank, layers: range) -> Iterator[Module]:
    """What a rank holds besides its layers."""
    yield from _embeddings(decoder, rank)
    if decoder.rope is None:
        return
    head_dim = decoder.attention.head_dim
    if not decoder.traits.rotary_table:
        # Source: transformers 5 modeling_*.py, inv_freq and original_inv_freq.
        elements = 2 * (decoder.rope.rotary_elements(head_dim) // 2)
        yield Plain(name="rotary_emb.inv_freq", elements=elements, element_bytes=_FLOAT32)
    elif len(layers):
        elements = decoder.rope.cache_elements(head_dim)
        yield Plain(name="rotary_emb.cos_sin_cache", elements=elements)


def layer_modules(decoder: Decoder, rank: Rank, layer: int) -> Iterator[Module]:
    """What a rank holds of one layer."""
    if decoder.traits.family == "gpt_bigcode":
        return _gpt_bigcode_layer(decoder, rank, layer)
    return _layer(decoder, rank, layer)


def _embeddings(decoder: Decoder, rank: Rank) -> Iterator[Module]:
    """Input embedding, final norm and logits head; tied weights count once."""
    everything = decoder.complete_stages
    rows = padded_vocab(decoder) // rank.tp_size
    table = rows * decoder.hidden_size
    tied = decoder.tie_word_embeddings
    if everything or rank.is_first_stage or (tied and rank.is_last_stage):
        yield Plain(name="embed_tokens", elements=table)
    if decoder.traits.embedding_scale:
        yield Plain(name="normalizer", elements=1)
    if decoder.traits.learned_positions is not None:
        yield from _learned_positions(decoder, decoder.traits.learned_positions)
    if everything or rank.is_last_stage:
        yield Plain(name="norm", elements=decoder.traits.final_norms * decoder.hidden_size)
        if not tied:
            yield Plain(name="lm_head", elements=table)
        if decoder.traits.lm_head_bias:
            yield Plain(name="lm_head.bias", elements=rows)


def _learned_positions(decoder: Decoder, extra_rows: int) -> Iterator[Module]:
    """Position table, and the causal mask that transformers keeps as a buffer of bools."""
    rows = decoder.max_positions + extra_rows
    yield Plain(name="wpe", elements=rows * decoder.hidden_size)
    if decoder.traits.family == "gpt_bigcode":
        yield Plain(name="bias", elements=decoder.max_positions**2, element_bytes=1)


def _layer(decoder: Decoder, rank: Rank, layer: int) -> Iterator[Module]:
    prefix = f"model.layers.{layer}"
    yield from _attention(decoder, rank, f"{prefix}.self_attn")
    moe = decoder.moe
    if moe is not None and _is_sparse(decoder, layer):
        yield from _moe(decoder, moe, rank, f"{prefix}.{moe.traits.block}")
    else:
        yield from _mlp(
            decoder, rank, f"{prefix}.mlp", decoder.intermediate_size, bias=decoder.mlp_bias
        )
    elements = decoder.traits.norms * decoder.hidden_size + decoder.traits.activation_elements
    yield Plain(name=f"{prefix}.layernorms", elements=elements)


def _attention(decoder: Decoder, rank: Rank, name: str) -> Iterator[Module]:
    shape = decoder.attention
    heads = shape.num_heads // rank.tp_size * shape.head_dim
    kv = kv_heads_per_rank(shape.num_kv_heads, rank.tp_size) * shape.head_dim
    yield Linear(
        name=f"{name}.qkv_proj",
        shards=tuple(f"{name}.{part}_proj" for part in "qkv"),
        input_size=decoder.hidden_size,
        output_sizes=(heads, kv, kv),
        split="column",
        bias=shape.qkv_bias,
    )
    yield Linear(
        name=f"{name}.o_proj",
        shards=(f"{name}.o_proj",),
        input_size=heads,
        output_sizes=(decoder.hidden_size,),
        split="row",
        bias=shape.o_bias,
    )
    whole = (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    norms = {"none": 0, "head": 2 * shape.head_dim, "sharded": heads + kv, "whole": whole}
    yield Plain(name=f"{name}.qk_norm", elements=norms[shape.qk_norm])
    yield Attention(name=f"{name}.attn")


def kv_heads_per_rank(num_kv_heads: int, tp_size: int) -> int:
    """KV heads on one rank; fewer heads than ranks are replicated.

    Source: vLLM 0.32 ``config/model.py``, ``ModelConfig.get_num_kv_heads``.
    """
    return max(1, num_kv_heads // tp_size)


def _mlp(
    decoder: Decoder, rank: Rank, name: str, width: int, *, bias: bool = False
) -> Iterator[Module]:
    share = width // rank.tp_size
    gated = decoder.traits.gated_mlp
    yield Linear(
        name=f"{name}.gate_up_proj" if gated else f"{name}.up_proj",
        shards=(f"{name}.gate_proj", f"{name}.up_proj") if gated else (f"{name}.up_proj",),
        input_size=decoder.hidden_size,
        output_sizes=(share, share) if gated else (share,),
        split="column",
        bias=bias,
    )
    yield Linear(
        name=f"{name}.down_proj",
        shards=(f"{name}.down_proj",),
        input_size=share,
        output_sizes=(decoder.hidden_size,),
        split="row",
        bias=bias,
    )


def _moe(decoder: Decoder, moe: MoeShape, rank: Rank, name: str) -> Iterator[Module]:
    yield Linear(
        name=f"{name}.gate",
        shards=(f"{name}.gate",),
        input_size=decoder.hidden_size,
        output_sizes=(moe.num_experts,),
        quantizable=moe.traits.quantized_router,
        element_bytes=_FLOAT32 if moe.traits.float32_router else None,
    )
    if moe.correction_bias:
        yield Plain(
            name=f"{name}.e_score_correction_bias",
            elements=moe.num_experts,
            element_bytes=_FLOAT32,
        )
    if moe.shared_intermediate_size:
        yield from _shared_expert(decoder, moe, rank, name)
    yield RoutedExperts(
        name=f"{name}.experts",
        num_experts=local_experts(moe.num_experts, rank),
        hidden_size=decoder.hidden_size,
        intermediate_size=moe.intermediate_size // rank.moe_tensor_parallel,
        is_split=rank.moe_tensor_parallel > 1,
        expert_map_entries=moe.num_experts if rank.expert_parallel > 1 else 0,
    )


def _shared_expert(decoder: Decoder, moe: MoeShape, rank: Rank, name: str) -> Iterator[Module]:
    gated = moe.traits.shared_width_key is not None
    own = "shared_expert" if gated else "shared_experts"
    if gated:
        yield Plain(name=f"{name}.shared_expert_gate", elements=decoder.hidden_size)
    yield from _mlp(decoder, rank, f"{name}.{own}", moe.shared_intermediate_size)


def _gpt_bigcode_layer(decoder: Decoder, rank: Rank, layer: int) -> Iterator[Module]:
    """One layer of the Transformers backend: heads are split over ranks, the MLP is not.

    Source: vLLM 0.32 ``models/transformers/``; transformers 5 ``modeling_gpt_bigcode.py``.
    """
    shape, hidden = decoder.attention, decoder.hidden_size
    heads = shape.num_heads // rank.tp_size * shape.head_dim
    name = f"model.h.{layer}"
    sizes = (
        ("attn.c_attn", hidden, heads + 2 * shape.head_dim),
        ("attn.c_proj", heads, hidden),
        ("mlp.c_fc", hidden, decoder.intermediate_size),
        ("mlp.c_proj", decoder.intermediate_size, hidden),
    )
    for part, inputs, outputs in sizes:
        path = f"{name}.{part}"
        yield Linear(
            name=path, shards=(path,), input_size=inputs, output_sizes=(outputs,), bias=True
        )
    yield Plain(name=f"{name}.layernorms", elements=4 * hidden)
    yield Attention(name=f"{name}.attn.attn")


def refusal(decoder: Decoder, rank: Rank, quantization: Quantization, layers: range) -> str | None:
    """Why vLLM would not build the model on this rank, None if it would."""
    if isinstance(quantization, Unquantized):
        return None
    for layer in layers:
        for module in layer_modules(decoder, rank, layer):
            if isinstance(module, Linear | RoutedExperts):
                reason = quantization.refusal(module, tensor_parallel=rank.tp_size)
                if reason is not None:
                    return reason
    return None
