"""What tells one decoder class from another, as far as memory is concerned."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """A trait that is fixed by the class, or true where any of ``keys`` is.

    Attributes:
        override: config key that alone decides where it is present.
    """

    keys: tuple[str, ...] = ()
    default: bool = False
    override: str | None = None


NEVER = Flag()
ALWAYS = Flag(default=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeTraits:
    """How the class builds its sparse layers.

    Attributes:
        experts_key: config key with the number of routed experts.
        width_key: config key with the width of one expert.
        block: module path inside a layer.
        float32_router: whether router weights are float32.
        quantized_router: whether the router receives the quantisation config.
        correction_bias: whether a float32 bias per expert corrects the scores.
        dense_first_key: config key with the number of leading dense layers.
        dense_step_key: config key: every how many layers one is sparse.
        dense_list_key: config key with indices of dense layers.
        shared_width_key: config key with the width of the gated shared expert.
        shared_count_key: config key with how many experts' width the shared expert has.
        shared_required: whether the config class has a shared expert where the key is absent.
        dense_last_key: config key with the index of the last sparse layer, -1 for the last.
        dense_stages: whether vLLM starts a pipeline stage without any sparse layer.
        fits_tensorrt: whether TensorRT-LLM's kernels know how its router scores: none knows a
            softmax that is not renormalised, or that a bias corrects.
    """

    experts_key: str
    width_key: str
    block: str = "mlp"
    float32_router: bool = False
    quantized_router: bool = False
    correction_bias: Flag = NEVER
    dense_first_key: str | None = None
    dense_step_key: str | None = None
    dense_list_key: str | None = None
    shared_width_key: str | None = None
    shared_count_key: str | None = None
    shared_required: bool = False
    dense_last_key: str | None = None
    dense_stages: bool = False
    fits_tensorrt: Flag = ALWAYS


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What distinguishes one decoder class from another in memory.

    Attributes:
        source: file the row was read from.
        qkv_bias, o_bias, mlp_bias: biases of the linear layers.
        qk_norm: ``head`` one weight per head element, ``sharded`` one per element of all heads
            of the rank, ``whole`` one per element of all heads of the model.
        head_dim_from_config: whether ``head_dim`` of config.json is honoured.
        head_dim_default: the config class's own default where the key is absent.
        kv_heads_default: whether an absent ``num_key_value_heads`` means as many as heads.
        tied_default: the config class's own ``tie_word_embeddings``; None where that class
            comes with the checkpoint, so that config.json must say it.
        complete_stages: whether every pipeline stage builds embedding, final norm and head.
        rotary_ratio: share of a head that is rotated where config.json does not say.
        rotary_dim_key: config key with the rotated elements per head.
        sliding_window_switch: config key that must be true for ``sliding_window`` to count.
        sliding_window_default: whether the config class has a window of its own where absent.
        switched_window: the config class's own window where that switch is on; None without one.
        window_pattern: layers that have the window where config.json has no ``layer_types``:
            ``all``; ``last``, those from ``max_window_layers`` on; ``odd``, every other one.
        layer_windows: whether the class gives each layer the window that ``layer_types`` says;
            others know one window for all layers or none.
        mixed_layers: whether the class starts where ``layer_types`` differ.
        aliases: config keys that stand for the usual ones.
        silu_only: whether vLLM refuses any other ``hidden_act``.
        gated_mlp: whether the MLP has a gate besides up and down.
        default_width_ratio: ``intermediate_size`` in units of ``hidden_size`` where absent.
        norms: vectors of ``hidden_size`` in the norms of a layer; a norm with bias has two.
        final_norms: the same of the norm after the last layer.
        activation_elements: learned elements of the activation function in each layer.
        learned_positions: rows of a position table beyond ``max_position_embeddings``; None
            where positions are rotary.
        rotary_table: whether vLLM's table of cosines and sines is built; the Transformers
            backend keeps two float32 vectors of frequencies on every stage instead.
        positions_key: config key that, where present, gives the rows of that table.
        embedding_scale: whether a scalar of the model's dtype scales the embedding.
        lm_head_bias: whether the logits head has a bias.
        tied_stages: whether vLLM can pipeline tied embeddings.
        partial_rotary: whether config.json may rotate another share than ``rotary_ratio``.
        decoder_path: vLLM's module path of the decoder where it stands alone.
        layers_name: its name of the layers in it.
        attention_name: its name of the attention in a layer.
        fused_qkv: whether the checkpoint, too, has one projection of queries, keys and values.
        fused_gate_up: the same of gate and up.
        quantized: whether quantised weights are described exactly too.
        expects: config keys that must be absent, null or this value; None where any value is
            too much, and a string names another key whose value it must be.
    """

    source: str
    family: str = "llama"
    qkv_bias: Flag = NEVER
    o_bias: Flag = NEVER
    mlp_bias: Flag = NEVER
    qk_norm: str = "none"
    qk_norm_flag: Flag = ALWAYS
    head_dim_from_config: bool = True
    head_dim_default: int | None = None
    kv_heads_default: bool = False
    tied_default: bool | None = False
    complete_stages: bool = False
    rotary_ratio: float = 1.0
    rotary_dim_key: str | None = None
    sliding_window_switch: str | None = None
    sliding_window_default: bool = False
    switched_window: int | None = None
    window_pattern: str = "all"
    layer_windows: bool = False
    mixed_layers: bool = True
    moe: MoeTraits | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    silu_only: bool = True
    gated_mlp: bool = True
    default_width_ratio: int | None = None
    norms: int = 2
    final_norms: int = 1
    activation_elements: int = 0
    learned_positions: int | None = None
    rotary_table: bool = True
    positions_key: str | None = None
    embedding_scale: bool = False
    lm_head_bias: bool = False
    tied_stages: bool = True
    partial_rotary: bool = True
    decoder_path: str = "model"
    layers_name: str = "layers"
    attention_name: str = "self_attn"
    fused_qkv: bool = False
    fused_gate_up: bool = False
    quantized: bool = True
    expects: dict[str, Any] = field(default_factory=dict)
