"""How text models rename the modules of a checkpoint, as its quantisation speaks of them.

Wrappers carry theirs in :attr:`Model.renames`.
Source: vLLM 0.32 ``model_executor/models/``, ``hf_to_vllm_mapper`` of each class.
"""

from vllm_capacity.predict.quantization.module_names import Renaming

_QWEN3_5 = Renaming(prefixes=(("model.language_model.", "model."), ("mtp.", None)))
_LFM2 = Renaming(substrings=((".conv.", ".short_conv."),))
_MAMBA = Renaming(substrings=((".A_log", ".A"),))
_NEMOTRON_H = Renaming(
    substrings=(("A_log", "A"), ("embeddings", "embed_tokens")),
    prefixes=(("backbone", "model"), ("mtp", None)),
)

RENAMINGS: dict[str, Renaming] = {
    "FalconH1ForCausalLM": Renaming(substrings=(("A_log", "A"), ("mamba", "mamba.mamba"))),
    "FalconMambaForCausalLM": _MAMBA,
    "GptOssForCausalLM": Renaming(substrings=((".self_attn.", ".attn."),)),
    "JambaForCausalLM": Renaming(substrings=((".self_attn.", "."), (".A_log", ".A"))),
    "Lfm2ForCausalLM": _LFM2,
    "Lfm2MoeForCausalLM": _LFM2,
    "Mamba2ForCausalLM": _MAMBA,
    "MambaForCausalLM": _MAMBA,
    "NemotronHForCausalLM": _NEMOTRON_H,
    "Qwen3NextForCausalLM": Renaming(prefixes=(("mtp.", None),)),
    "Qwen3_5ForCausalLM": _QWEN3_5,
    "Qwen3_5MoeForCausalLM": _QWEN3_5,
    "Zamba2ForCausalLM": Renaming(
        substrings=(("A_log", "A"), ("0.weight", "A.weight"), ("1.weight", "B.weight"))
    ),
}
