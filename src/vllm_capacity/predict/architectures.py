"""Structural traits of the decoder classes that are described exactly.

One row per architecture *class* as vLLM builds it, never per model. Each row names the file it
was read from (vLLM 0.32 ``model_executor/models/``); an architecture without a row is refused.
"""

from dataclasses import dataclass, field


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What distinguishes one decoder class from another in memory.

    Attributes:
        source: file the row was read from.
        qkv_bias, o_bias, mlp_bias: biases of the linear layers.
        qk_norm: ``head`` one weight per head element, ``sharded`` one per element of all heads
            of the rank.
        head_dim_from_config: whether ``head_dim`` of config.json is honoured.
        head_dim_default: the config class's own default where the key is absent.
        kv_heads_default: whether an absent ``num_key_value_heads`` means as many as heads.
        tied_default: the config class's own ``tie_word_embeddings``.
        complete_stages: whether every pipeline stage builds embedding, final norm and head.
        rotary_ratio: share of a head that is rotated where config.json does not say.
        rotary_dim_key: config key with the rotated elements per head.
        sliding_window_switch: config key that must be true for ``sliding_window`` to count.
        sliding_window_default: whether the config class has a window of its own where absent.
        aliases: config keys that stand for the usual ones.
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
    tied_default: bool = False
    complete_stages: bool = False
    rotary_ratio: float = 1.0
    rotary_dim_key: str | None = None
    sliding_window_switch: str | None = None
    sliding_window_default: bool = False
    moe: MoeTraits | None = None
    aliases: dict[str, str] = field(default_factory=dict)


_LLAMA = Traits(
    source="llama.py",
    qkv_bias=Flag(keys=("attention_bias", "bias"), override="qkv_bias"),
    o_bias=Flag(keys=("attention_bias", "bias")),
    mlp_bias=Flag(keys=("mlp_bias",)),
    kv_heads_default=True,
)
_MISTRAL = Traits(
    source="mistral.py",
    qkv_bias=_LLAMA.qkv_bias,
    o_bias=_LLAMA.o_bias,
    mlp_bias=_LLAMA.mlp_bias,
    sliding_window_default=True,
)
_QWEN2 = Traits(
    source="qwen2.py",
    qkv_bias=ALWAYS,
    head_dim_from_config=False,
    sliding_window_switch="use_sliding_window",
)

TRAITS = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _MISTRAL,
    "Phi3ForCausalLM": Traits(
        source="phi3.py",
        qkv_bias=_LLAMA.qkv_bias,
        o_bias=_LLAMA.o_bias,
        mlp_bias=_LLAMA.mlp_bias,
        kv_heads_default=True,
    ),
    "Qwen2ForCausalLM": _QWEN2,
    "MiMoForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": Traits(
        source="qwen3.py",
        qkv_bias=Flag(keys=("attention_bias",)),
        qk_norm="head",
        head_dim_default=128,
        sliding_window_switch="use_sliding_window",
    ),
    "Qwen3MoeForCausalLM": Traits(
        source="qwen3_moe.py",
        qkv_bias=Flag(keys=("attention_bias",)),
        qk_norm="head",
        sliding_window_switch="use_sliding_window",
        complete_stages=True,
        moe=MoeTraits(
            experts_key="num_experts",
            width_key="moe_intermediate_size",
            quantized_router=True,
            dense_step_key="decoder_sparse_step",
            dense_list_key="mlp_only_layers",
            shared_width_key="shared_expert_intermediate_size",
        ),
    ),
    "MixtralForCausalLM": Traits(
        source="mixtral.py",
        complete_stages=True,
        moe=MoeTraits(
            experts_key="num_local_experts",
            width_key="intermediate_size",
            block="block_sparse_moe",
        ),
    ),
    "Glm4MoeForCausalLM": Traits(
        source="glm4_moe.py",
        qkv_bias=Flag(keys=("attention_bias",)),
        qk_norm="head",
        qk_norm_flag=Flag(keys=("use_qk_norm",)),
        rotary_ratio=0.5,
        moe=MoeTraits(
            experts_key="n_routed_experts",
            width_key="moe_intermediate_size",
            float32_router=True,
            correction_bias=ALWAYS,
            dense_first_key="first_k_dense_replace",
            shared_count_key="n_shared_experts",
        ),
    ),
    "MiniMaxM2ForCausalLM": Traits(
        source="minimax_m2.py",
        qkv_bias=Flag(keys=("attention_bias",)),
        qk_norm="sharded",
        rotary_dim_key="rotary_dim",
        moe=MoeTraits(
            experts_key="num_local_experts",
            width_key="intermediate_size",
            float32_router=True,
            correction_bias=Flag(keys=("use_routing_bias",)),
        ),
    ),
    "GPTBigCodeForCausalLM": Traits(
        source="transformers/ (transformers' modeling_gpt_bigcode.py)",
        family="gpt_bigcode",
        qkv_bias=ALWAYS,
        o_bias=ALWAYS,
        mlp_bias=ALWAYS,
        head_dim_from_config=False,
        tied_default=True,
        aliases={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
        },
    ),
}
