"""Wrappers around text models, by the class that vLLM registers."""

from dataclasses import replace
from functools import partial

from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.renames import RENAMES
from vllm_capacity.predict.models.vision import (
    audio,
    deepseek_ocr,
    gemma,
    gemma3n,
    glm,
    idefics,
    intern,
    kimi,
    llava,
    minimax,
    others,
    qwen,
)
from vllm_capacity.predict.models.vision.minicpm import build_minicpmv
from vllm_capacity.predict.models.whisper import build_whisper
from vllm_capacity.predict.models.wrapper import Wrapper, build_wrapped

_NO_STAGES = "vLLM refuses to start: this class cannot be divided into pipeline stages"

WRAPPERS = {
    "Qwen2VLForConditionalGeneration": Wrapper(
        source="qwen2_vl.py",
        towers=qwen.qwen2_tower,
        architecture="Qwen2ForCausalLM",
        text_type="qwen2_vl_text",
        text_type_decides=False,
        flat=True,
        inner_tie=True,
    ),
    "Qwen2_5_VLForConditionalGeneration": Wrapper(
        source="qwen2_5_vl.py",
        towers=qwen.qwen2_5_tower,
        architecture="Qwen2ForCausalLM",
        text_type="qwen2_5_vl_text",
        text_type_decides=False,
        flat=True,
        inner_tie=True,
    ),
    "Qwen3VLForConditionalGeneration": Wrapper(
        source="qwen3_vl.py",
        towers=qwen.qwen3_tower,
        architecture="Qwen3ForCausalLM",
        text_type="qwen3_vl_text",
        text_type_decides=False,
        short_positions=True,
        levels=qwen.deepstack_levels,
    ),
    "Qwen3VLMoeForConditionalGeneration": Wrapper(
        source="qwen3_vl_moe.py",
        towers=qwen.qwen3_tower,
        architecture="Qwen3MoeForCausalLM",
        text_type="qwen3_vl_moe_text",
        text_type_decides=False,
        short_positions=True,
        levels=qwen.deepstack_levels,
    ),
    "Qwen3_5ForConditionalGeneration": Wrapper(
        source="qwen3_5.py",
        towers=qwen.qwen3_5_tower,
        architecture="Qwen3_5ForCausalLM",
        text_type="qwen3_5_text",
        short_positions=True,
    ),
    "Qwen3_5MoeForConditionalGeneration": Wrapper(
        source="qwen3_5.py",
        towers=qwen.qwen3_5_tower,
        architecture="Qwen3_5MoeForCausalLM",
        text_type="qwen3_5_moe_text",
        short_positions=True,
    ),
    "Mistral3ForConditionalGeneration": Wrapper(
        source="mistral3.py", towers=llava.mistral3, text_type="mistral", tied=True
    ),
    "LlavaForConditionalGeneration": Wrapper(source="llava.py", towers=llava.llava, inner_tie=True),
    "LlavaNextForConditionalGeneration": Wrapper(source="llava_next.py", towers=llava.llava_next),
    "LlavaOnevisionForConditionalGeneration": Wrapper(
        source="llava_onevision.py",
        towers=llava.llava_onevision,
        text_type="qwen2",
        inner_tie=True,
    ),
    "PixtralForConditionalGeneration": Wrapper(
        source="pixtral.py", towers=llava.pixtral_native, text_type="mistral"
    ),
    "Gemma3ForConditionalGeneration": Wrapper(
        source="gemma3_mm.py",
        towers=llava.gemma3,
        architecture="Gemma3ForCausalLM",
        text_type="gemma3_text",
        tied=True,
    ),
    "PaliGemmaForConditionalGeneration": Wrapper(
        source="paligemma.py",
        towers=llava.paligemma,
        text_type="gemma",
        tied=True,
        # vLLM's Gemma reads it nowhere: the wrapper's own attention to whole images decides.
        ignored=("use_bidirectional_attention",),
    ),
    "Llama4ForConditionalGeneration": Wrapper(
        source="mllama4.py",
        towers=llava.llama4,
        architecture="Llama4ForCausalLM",
        text_type="llama4_text",
        text_type_decides=False,
    ),
    "Gemma4ForConditionalGeneration": Wrapper(
        source="gemma4_mm.py",
        towers=gemma.gemma4,
        architecture="Gemma4ForCausalLM",
        text_type="gemma4_text",
        text_type_decides=False,
        tied=True,
    ),
    "KimiVLForConditionalGeneration": Wrapper(
        source="kimi_vl.py",
        towers=kimi.kimi_vl,
        architecture="DeepseekV2ForCausalLM",
        text_type="deepseek_v2",
        text_type_decides=False,
        tied=None,
    ),
    "KimiK25ForConditionalGeneration": Wrapper(
        source="kimi_k25.py",
        towers=kimi.kimi_k25,
        architecture="DeepseekV2ForCausalLM",
        text_type="deepseek_v3",
        tied=True,
    ),
    "KimiK3ForConditionalGeneration": Wrapper(
        source="kimi_k3",
        towers=kimi.kimi_k3,
        architecture="KimiLinearForCausalLM",
        text_type="kimi_linear",
        text_type_decides=False,
        tied=None,
    ),
    "InternVLChatModel": Wrapper(
        source="internvl.py",
        towers=intern.internvl_chat,
        text_keys=("llm_config", "text_config"),
        tied=None,
    ),
    "InternVLForConditionalGeneration": Wrapper(
        source="interns1.py", towers=intern.internvl, text_type="qwen2", tied=True
    ),
    "InternS1ForConditionalGeneration": Wrapper(
        source="interns1.py", towers=intern.internvl, text_type="qwen3", tied=None
    ),
    "Glm4vForConditionalGeneration": Wrapper(
        source="glm4_1v.py",
        towers=glm.glm4v,
        architecture="Glm4ForCausalLM",
        text_type="glm4v_text",
        text_type_decides=False,
        flat=True,
        inner_tie=True,
    ),
    "Glm4vMoeForConditionalGeneration": Wrapper(
        source="glm4_1v.py",
        towers=glm.glm4v,
        architecture="Glm4MoeForCausalLM",
        text_type="glm4v_moe_text",
        text_type_decides=False,
        flat=True,
        inner_tie=True,
    ),
    "GlmOcrForConditionalGeneration": Wrapper(
        source="glm_ocr.py",
        towers=glm.glm_ocr,
        architecture="Glm4ForCausalLM",
        text_type="glm_ocr_text",
        text_type_decides=False,
        flat=True,
        inner_tie=True,
    ),
    "Idefics3ForConditionalGeneration": Wrapper(
        source="idefics3.py",
        towers=idefics.idefics3,
        architecture="LlamaForCausalLM",
        named_tie=True,
        path="model.text_model",
        head_path="",
        stages_refusal=_NO_STAGES,
    ),
    "SmolVLMForConditionalGeneration": Wrapper(
        source="smolvlm.py",
        towers=idefics.idefics3,
        architecture="LlamaForCausalLM",
        named_tie=True,
        path="model.text_model",
        head_path="",
        stages_refusal=_NO_STAGES,
    ),
    "Qwen2AudioForConditionalGeneration": Wrapper(
        source="qwen2_audio.py",
        towers=audio.qwen2_audio,
        architecture="Qwen2ForCausalLM",
        text_type="qwen2",
        tied=None,
    ),
    "Qwen2_5OmniModel": Wrapper(
        source="qwen2_5_omni_thinker.py",
        towers=audio.qwen2_5_omni,
        architecture="Qwen2ForCausalLM",
        inner_key="thinker_config",
        text_type="qwen2_5_omni_text",
        text_type_decides=False,
        tied=None,
    ),
    "Qwen2_5OmniForConditionalGeneration": Wrapper(
        source="qwen2_5_omni_thinker.py",
        towers=audio.qwen2_5_omni,
        architecture="Qwen2ForCausalLM",
        inner_key="thinker_config",
        text_type="qwen2_5_omni_text",
        text_type_decides=False,
        tied=None,
    ),
    "Qwen3OmniMoeForConditionalGeneration": Wrapper(
        source="qwen3_omni_moe_thinker.py",
        towers=audio.qwen3_omni,
        architecture="Qwen3MoeForCausalLM",
        inner_key="thinker_config",
        text_type="qwen3_omni_moe_text",
        text_type_decides=False,
        tied=None,
        said_tie=True,
        levels=qwen.deepstack_levels,
    ),
    "Qwen3ASRForConditionalGeneration": Wrapper(
        source="qwen3_asr.py",
        towers=audio.qwen3_audio,
        architecture="Qwen3ForCausalLM",
        inner_key="thinker_config",
        text_type="qwen3_asr_text",
        text_type_decides=False,
        tied=None,
    ),
    "MiniMaxM3SparseForConditionalGeneration": Wrapper(
        source="minimax_m3",
        towers=minimax.minimax_m3,
        architecture="MiniMaxM3SparseForCausalLM",
        text_type="minimax_m3",
        text_type_decides=False,
        tied=None,
    ),
    "Gemma3nForConditionalGeneration": Wrapper(
        source="gemma3n_mm.py",
        towers=gemma3n.gemma3n,
        architecture="Gemma3nForCausalLM",
        text_type="gemma3n_text",
        text_type_decides=False,
        tied=True,
        stages_refusal=_NO_STAGES,
    ),
    "Cohere2VisionForConditionalGeneration": Wrapper(
        source="cohere2_vision.py", towers=others.cohere2_vision, text_type="cohere2", tied=True
    ),
    "PaddleOCRVLForConditionalGeneration": Wrapper(
        source="paddleocr_vl.py",
        towers=others.paddleocr,
        architecture="Ernie4_5ForCausalLM",
        text_type="paddleocr_vl_text",
        text_type_decides=False,
        flat=True,
        tied=True,
        inner_tie=True,
        stages_refusal=_NO_STAGES,
    ),
    "Lfm2VlForConditionalGeneration": Wrapper(
        source="lfm2_vl.py",
        towers=others.lfm2_vl,
        text_type="lfm2",
        tied=True,
        path="language.model",
        head_path="language",
    ),
    "Phi3VForCausalLM": Wrapper(
        source="phi3v.py",
        towers=others.phi3v,
        architecture="LlamaForCausalLM",
        text_type="phi3",
        text_type_decides=False,
        flat=True,
        path="model",
        head_path="",
    ),
    "DeepseekOCRForCausalLM": Wrapper(
        source="deepseek_ocr.py",
        towers=deepseek_ocr.deepseek_ocr,
        text_keys=("language_config",),
        text_type="deepseek_v2",
        text_type_decides=False,
        tied=None,
    ),
}

BUILDERS: dict[str, Builder] = {
    name: partial(
        build_wrapped, wrapper=replace(wrapper, renames=RENAMES.get(name, wrapper.renames))
    )
    for name, wrapper in WRAPPERS.items()
}
BUILDERS["WhisperForConditionalGeneration"] = build_whisper
BUILDERS["MiniCPMV"] = build_minicpmv
