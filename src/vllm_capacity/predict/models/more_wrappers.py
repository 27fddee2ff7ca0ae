"""Further wrappers around text models, by the class that vLLM registers."""

from functools import partial

from vllm_capacity.predict.model import Renames
from vllm_capacity.predict.models.builder import Builder
from vllm_capacity.predict.models.renames import RENAMES
from vllm_capacity.predict.models.vision import (
    audio,
    deepseek_vl,
    folding,
    further,
    granite_speech,
    intern,
    llava,
    minicpm,
    molmo,
    qwen,
)
from vllm_capacity.predict.models.wrapper import Wrapper, build_wrapped

_HEAD = ("lm_head.", "language_model.lm_head.")
_TEXT = ("model.language_model.", "language_model.model.")
_REST = ("model.", "language_model.model.")
_LLM = ("llm_config", "text_config")

WRAPPERS = {
    "LlavaNextVideoForConditionalGeneration": Wrapper(
        source="llava_next_video.py",
        towers=llava.llava_next_video,
        inner_tie=True,
        renames=RENAMES["LlavaNextForConditionalGeneration"],
    ),
    "BeeForConditionalGeneration": Wrapper(
        source="bee.py",
        towers=llava.bee,
        text_type="qwen3",
        inner_tie=True,
        renames=RENAMES["LlavaNextForConditionalGeneration"],
    ),
    "LightOnOCRForConditionalGeneration": Wrapper(
        source="lightonocr.py",
        towers=llava.mistral3,
        text_type="qwen3",
        tied=True,
        renames=Renames(
            prefixes=(
                ("model.vision_encoder.", "vision_tower."),
                ("model.vision_projection.", "multi_modal_projector."),
                _HEAD,
                _TEXT,
            )
        ),
    ),
    "NVLM_D": Wrapper(source="nvlm_d.py", towers=folding.nvlm, text_keys=_LLM, tied=None),
    "H2OVLChatModel": Wrapper(
        source="h2ovl.py", towers=intern.internvl_chat, text_keys=_LLM, tied=None
    ),
    "SkyworkR1VChatModel": Wrapper(
        source="skyworkr1v.py", towers=folding.skywork, text_keys=_LLM, tied=None
    ),
    "QianfanOCRForConditionalGeneration": Wrapper(
        source="qianfan_ocr.py", towers=folding.qianfan, text_type="qwen3"
    ),
    "OpenCUAForConditionalGeneration": Wrapper(
        source="opencua.py",
        towers=qwen.opencua,
        architecture="Qwen2ForCausalLM",
        text_type="qwen2",
        tied=None,
        renames=Renames(
            prefixes=(
                _TEXT,
                ("model.visual.", "visual."),
                ("vision_tower.", "visual."),
                _HEAD,
                _REST,
            )
        ),
    ),
    "Exaone4_5_ForConditionalGeneration": Wrapper(
        source="exaone4_5.py",
        towers=qwen.exaone4_5,
        architecture="Exaone4ForCausalLM",
        text_type="exaone4",
        renames=Renames(
            prefixes=(_TEXT, ("model.visual.", "visual."), _HEAD, _REST, ("mtp.", None))
        ),
    ),
    "HCXVisionV2ForCausalLM": Wrapper(
        source="hyperclovax_vision_v2.py",
        towers=qwen.hyperclovax_v2,
        text_type="hyperclovax",
        tied=True,
    ),
    "Eagle2_5_VLForConditionalGeneration": Wrapper(
        source="eagle2_5_vl.py", towers=folding.eagle2_5, text_type="qwen2", tied=None
    ),
    "KeyeForConditionalGeneration": Wrapper(
        source="keye.py",
        towers=folding.keye,
        architecture="Qwen3ForCausalLM",
        text_type="Keye",
        text_type_decides=False,
        flat=True,
        tied=None,
        said_tie=True,
        renames=Renames(prefixes=(_HEAD, _REST)),
    ),
    "KeyeVL1_5ForConditionalGeneration": Wrapper(
        source="keye_vl1_5.py",
        towers=folding.keye1_5,
        architecture="Qwen3ForCausalLM",
        text_type="KeyeVL1_5",
        text_type_decides=False,
        flat=True,
        tied=None,
        said_tie=True,
        renames=Renames(prefixes=(_HEAD, _REST)),
    ),
    "DotsOCRForCausalLM": Wrapper(
        source="dots_ocr.py",
        towers=folding.dots_ocr,
        architecture="Qwen2ForCausalLM",
        text_type="qwen2",
        text_type_decides=False,
        flat=True,
        tied=None,
        said_tie=True,
        renames=Renames(
            substrings=((".attn.qkv_proj.", ".attn.qkv."), (".attn.out_proj.", ".attn.proj.")),
            prefixes=(_HEAD, _REST),
        ),
    ),
    "Phi4ForCausalLMV": Wrapper(
        source="phi4siglip.py",
        towers=folding.phi4_siglip,
        architecture="Phi3ForCausalLM",
        text_type="phi4-siglip",
        text_type_decides=False,
        flat=True,
        tied=None,
        said_tie=True,
        renames=Renames(
            prefixes=(
                ("model.vision_tower.vision_tower.", "vision_tower."),
                ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
                ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
                _HEAD,
                _REST,
            )
        ),
    ),
    "DeepseekVLV2ForCausalLM": Wrapper(
        source="deepseek_vl2.py",
        towers=deepseek_vl.deepseek_vl2,
        text_keys=("language_config",),
        text_type="deepseek_v2",
        text_type_decides=False,
        tied=None,
        renames=Renames(prefixes=(("language.", "language_model."),)),
    ),
    "DeepseekOCR2ForCausalLM": Wrapper(
        source="deepseek_ocr2.py",
        towers=deepseek_vl.deepseek_ocr2,
        text_keys=("language_config",),
        text_type="deepseek_v2",
        text_type_decides=False,
        tied=None,
        renames=RENAMES["DeepseekOCRForCausalLM"],
    ),
    "AudioFlamingo3ForConditionalGeneration": Wrapper(
        source="audioflamingo3.py",
        towers=audio.audio_flamingo3,
        architecture="Qwen2ForCausalLM",
        text_type="qwen2",
        tied=None,
    ),
    "GlmAsrForConditionalGeneration": Wrapper(
        source="glmasr.py",
        towers=audio.glm_asr,
        architecture="LlamaForCausalLM",
        text_type="glmasr_text",
        text_type_decides=False,
        tied=True,
    ),
    "Ovis2_5": Wrapper(
        source="ovis2_5.py",
        towers=further.ovis2_5,
        text_keys=_LLM,
        tied=None,
        path="llm.model",
        head_path="llm",
    ),
    "Ovis2_6ForCausalLM": Wrapper(
        source="ovis2_5.py",
        towers=further.ovis2_5,
        text_keys=_LLM,
        tied=None,
        path="llm.model",
        head_path="llm",
    ),
    "Ovis2_6_MoeForCausalLM": Wrapper(
        source="ovis2_5.py",
        towers=further.ovis2_5,
        text_keys=_LLM,
        tied=None,
        path="llm.model",
        head_path="llm",
    ),
    "Step3VLForConditionalGeneration": Wrapper(
        source="step3_vl.py",
        towers=further.step3_vl,
        architecture="Step3TextForCausalLM",
        text_type="step3_text",
        tied=None,
    ),
    "Phi4MMForCausalLM": Wrapper(
        source="phi4mm.py",
        towers=further.phi4mm,
        architecture="Phi3ForCausalLM",
        text_type="phi4mm",
        text_type_decides=False,
        flat=True,
        tied=None,
        said_tie=True,
        path="model",
        head_path="",
        stages_refusal="vLLM refuses to start: this class cannot be divided into pipeline stages",
    ),
    "MiniCPMV4_6ForConditionalGeneration": Wrapper(
        source="minicpmv4_6.py",
        towers=minicpm.minicpmv4_6,
        architecture="Qwen3_5ForCausalLM",
        text_type="qwen3_5_text",
        text_type_decides=False,
        outer_tie=False,
    ),
    "MiniCPMV4_7ForConditionalGeneration": Wrapper(
        source="minicpmv4_7.py",
        towers=minicpm.minicpmv4_7,
        architecture="Qwen3_5ForCausalLM",
        text_type="qwen3_5_text",
        text_type_decides=False,
        outer_tie=False,
    ),
    "GraniteSpeechForConditionalGeneration": Wrapper(
        source="granite_speech.py",
        towers=granite_speech.granite_speech,
        text_type="granite",
        tied=True,
    ),
    "GraniteSpeechPlusForConditionalGeneration": Wrapper(
        source="granite_speech_plus.py",
        towers=granite_speech.granite_speech,
        text_type="granite",
        tied=True,
    ),
}

BUILDERS: dict[str, Builder] = {
    name: partial(build_wrapped, wrapper=wrapper) for name, wrapper in WRAPPERS.items()
}
BUILDERS["GLM4VForCausalLM"] = further.build_glm4v
BUILDERS["MiniCPMO"] = minicpm.build_minicpmo
BUILDERS["MolmoForCausalLM"] = molmo.build_molmo
