"""Step-3: one KV head, queries through a narrow projection, experts in most layers."""

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Part
from vllm_capacity.predict.models.assembly import (
    MAX_TOKENS,
    Ends,
    assemble,
    num_layers,
    width,
    window,
    with_defaults,
)
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.parts import Mlp, SparseMoe, Vectors
from vllm_capacity.predict.parts.factored_attention import FactoredAttention
from vllm_capacity.predict.rope import read_rope

#: Source: vLLM 0.32 ``transformers_utils/configs/step3_vl.py``, ``Step3TextConfig``.
_DEFAULTS = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_attention_heads": 64,
    "num_hidden_layers": 61,
    "max_seq_len": 65536,
    "vocab_size": 128815,
    "moe_intermediate_size": 5120,
    "moe_num_experts": 48,
    "moe_top_k": 3,
    "max_position_embedding": 65536,
    "share_expert_dim": 5120,
    "share_q_dim": 2048,
    "head_dim": 256,
}
#: Its config class has no default, and the class reads it on every stage but the first.
_UNSAID = "vLLM refuses to start: step3_text.py needs tie_word_embeddings for pipeline stages"


def build_step3(config: Fields, *, path: str = "", head_path: str = "") -> Model:
    """The text model of Step-3.

    Raises:
        Refusal: it is not described exactly.

    Source: vLLM 0.32 ``model_executor/models/step3_text.py``.
    """
    config = with_defaults(config, _DEFAULTS)
    hidden, head_size = width(config, "hidden_size"), width(config, "head_dim")
    positions = config.required_integer("max_position_embedding", maximum=MAX_TOKENS)
    rope = read_rope(config, max_positions=positions)
    attention = FactoredAttention(
        hidden_size=hidden,
        num_heads=width(config, "num_attention_heads"),
        num_kv_heads=1,
        head_size=head_size,
        sliding_window=window(config),
        query_rank=config.integer("share_q_dim", minimum=0) or head_size,
        rope=rope.table(head_size),
    )
    experts = SparseMoe(
        hidden_size=hidden,
        num_experts=width(config, "moe_num_experts"),
        experts_per_token=width(config, "moe_top_k"),
        intermediate_size=width(config, "moe_intermediate_size"),
        name="moe",
    )
    shared = Mlp(
        hidden_size=hidden, intermediate_size=width(config, "share_expert_dim"), name="share_expert"
    )
    dense = Mlp(hidden_size=hidden, intermediate_size=width(config, "intermediate_size"))
    norms = Vectors(name="layernorms", elements=2 * hidden)
    sparse_parts: tuple[Part, ...] = (attention, experts, shared, norms)
    sparse = _sparse_layers(config)
    return assemble(
        source="step3_text.py",
        layers=[
            sparse_parts if layer in sparse else (attention, dense, norms)
            for layer in range(num_layers(config))
        ],
        # The head is never tied, and the embedding is on the last stage too where it is said to.
        ends=Ends.read(config, path=path, head_path=head_path, own_head=True),
        ropes=(rope,),
        max_positions=config.integer("max_seq_len"),
        stages_refusal=None if "tie_word_embeddings" in config.values else _UNSAID,
    )


def _sparse_layers(config: Fields) -> frozenset[int]:
    listed = config.text("moe_layers_enum")
    if listed is None:
        config.fault("moe_layers_enum", "is missing; add the model's value")
        return frozenset()
    words = listed.strip().split(",")
    if not all(word.strip().isdigit() for word in words):
        config.fault("moe_layers_enum", "must be numbers of layers with commas between them")
        return frozenset()
    return frozenset(map(int, words))


BUILDERS: dict[str, Builder] = {"Step3TextForCausalLM": build_step3}
