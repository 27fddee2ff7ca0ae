"""ChatGLM, as published with a config class of its own."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model
from vllm_capacity.predict.models.assembly import (
    MAX_TOKENS,
    Ends,
    assemble,
    flag,
    self_attention,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.naming import alike, renamed
from vllm_capacity.predict.parts import Mlp, Vectors
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.rope import Rope

_CHATGLM = {
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "num_layers": 28,
    "ffn_hidden_size": 13696,
    "num_attention_heads": 32,
    "seq_length": 2048,
    "rmsnorm": True,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "multi_query_attention": False,
    "multi_query_group_num": 1,
}


def build_chatglm(config: Fields, *, path: str = "transformer", head_path: str = "") -> Model:
    """ChatGLM2, ChatGLM3 and GLM-4 as published with their own config class.

    Raises:
        Refusal: it has a vision tower, which this class refuses.

    Source: vLLM 0.32 ``model_executor/models/chatglm.py``,
    ``transformers_utils/configs/chatglm.py``.
    """
    del head_path
    if config.has("vision_config"):
        raise Refusal("vLLM refuses to start: this class is text-only; vision_config is set")
    if not config.has("tie_word_embeddings"):
        raise Refusal(
            "vLLM refuses to start: chatglm.py reads tie_word_embeddings, which is missing"
        )
    config = with_defaults(config, _CHATGLM)
    config = renamed(config, {"num_hidden_layers": "num_layers", "vocab_size": "padded_vocab_size"})
    hidden, heads = width(config, "hidden_size"), width(config, "num_attention_heads")
    grouped = flag(config, "multi_query_attention")
    rope = _half_rotated(config.required_integer("seq_length", maximum=MAX_TOKENS))
    bias = flag(config, "add_bias_linear")
    attention = self_attention(
        config,
        rope,
        num_kv_heads=width(config, "multi_query_group_num") if grouped else heads,
        head_size=max(1, hidden // heads),
        qkv_bias=flag(config, "add_bias_linear", "add_qkv_bias"),
        o_bias=bias,
        name="self_attention",
        sliding_window=window(config),
        qkv_name="query_key_value",
        qkv_shards=("query_key_value",),
        o_name="dense",
    )
    mlp = Mlp(
        hidden_size=hidden,
        intermediate_size=width(config, "ffn_hidden_size"),
        bias=bias,
        up_name="dense_h_to_4h",
        up_shards=("dense_h_to_4h",),
        down_name="dense_4h_to_h",
    )
    vectors = 1 if config.boolean("rmsnorm") else 2
    ends = Ends.read(
        config,
        path=path,
        head_path=path,
        everywhere=True,
        norm_vectors=vectors if flag(config, "post_layer_norm") else 0,
        embedding_name="embedding",
    )
    norms = Vectors(name="layernorms", elements=2 * vectors * hidden)
    return assemble(
        source="chatglm.py",
        layers=alike(config, (attention, mlp, norms)),
        ends=ends,
        ropes=(rope,),
        layers_path=f"{path}.encoder",
        max_positions=config.integer("seq_length"),
    )


def _half_rotated(positions: int) -> Rope:
    """Half of every head rotated, never scaled, whatever config.json says."""
    return Rope(
        rope_type="default",
        factor=1.0,
        original_max_positions=positions,
        max_positions=positions,
        rotary_ratio=0.5,
    )


BUILDERS: dict[str, Builder] = {
    "ChatGLMForConditionalGeneration": build_chatglm,
    "ChatGLMModel": build_chatglm,
}
