"""How wrappers rename the checkpoint's modules, by class.

Source: vLLM 0.32 ``model_executor/models/*.py``, ``hf_to_vllm_mapper`` of each class.
"""

from collections.abc import Mapping

from vllm_capacity.predict.model import Renames

_HEAD = ("lm_head.", "language_model.lm_head.")
_TEXT = ("model.language_model.", "language_model.model.")
_REST = ("model.", "language_model.model.")
_TOWER = ("model.vision_tower.", "vision_tower.")
_PROJECTOR = ("model.multi_modal_projector.", "multi_modal_projector.")
_VISUAL = ("model.visual.", "visual.")
_NEWLINE = ("model.image_newline", "image_newline")
_THINKER = (
    ("thinker.lm_head.", "language_model.lm_head."),
    ("thinker.model.", "language_model.model."),
    ("thinker.", ""),
)
_QWEN2_VL = Renames(prefixes=(_TEXT, _VISUAL, _HEAD, _REST))
_QWEN3_VL = Renames(prefixes=(_VISUAL, _HEAD, _TEXT))
_QWEN3_5 = Renames(prefixes=(_VISUAL, _HEAD, _TEXT, ("mtp.", None)))
_LLAVA = Renames(prefixes=(_TEXT, _TOWER, _PROJECTOR, _HEAD))
_LLAVA_NEXT = Renames(prefixes=(_TEXT, _TOWER, _PROJECTOR, _NEWLINE, _HEAD))
_GLM = Renames(prefixes=(_HEAD, _TEXT, _VISUAL))
_INTERN = Renames(prefixes=(_HEAD, _TEXT, _TOWER, _PROJECTOR))
_OMNI2 = Renames(prefixes=(*_THINKER, ("talker.", None), ("token2wav.", None)))
_KIMI = Renames(
    prefixes=(
        ("language_model.layers.", "language_model.model.layers."),
        ("mm_projector.proj.0", "mm_projector.linear_1"),
        ("mm_projector.proj.2", "mm_projector.linear_2"),
    )
)

RENAMES: Mapping[str, Renames] = {
    "Qwen2VLForConditionalGeneration": _QWEN2_VL,
    "Qwen2_5_VLForConditionalGeneration": _QWEN2_VL,
    "Qwen3VLForConditionalGeneration": _QWEN3_VL,
    "Qwen3VLMoeForConditionalGeneration": _QWEN3_VL,
    "Qwen3_5ForConditionalGeneration": _QWEN3_5,
    "Qwen3_5MoeForConditionalGeneration": _QWEN3_5,
    "Mistral3ForConditionalGeneration": Renames(
        prefixes=(_TEXT, _TOWER, _PROJECTOR, _HEAD, _REST),
        suffixes=((".activation_scale", ".input_scale"), (".weight_scale_inv", ".weight_scale")),
    ),
    "LlavaForConditionalGeneration": _LLAVA,
    "LlavaNextForConditionalGeneration": _LLAVA_NEXT,
    "LlavaOnevisionForConditionalGeneration": _LLAVA_NEXT,
    "PixtralForConditionalGeneration": Renames(
        substrings=((".linear_1.", ".w_in."), (".linear_2.", ".w_out.")),
        prefixes=(
            _TEXT,
            ("model.vision_tower.", "vision_encoder."),
            ("model.multi_modal_projector.", "vision_language_adapter."),
        ),
    ),
    "Gemma3ForConditionalGeneration": _LLAVA,
    "PaliGemmaForConditionalGeneration": _LLAVA,
    "Gemma4ForConditionalGeneration": Renames(
        prefixes=(
            ("model.vision_tower", "vision_tower"),
            ("model.embed_vision", "embed_vision"),
            ("model.audio_tower.", "audio_tower."),
            ("model.embed_audio.", "embed_audio."),
            _TEXT,
            _HEAD,
            ("model", "language_model.model"),
        )
    ),
    "Gemma3nForConditionalGeneration": Renames(
        prefixes=(
            ("model.embed_audio.", "embed_audio."),
            ("model.embed_vision.", "embed_vision."),
            _TEXT,
            _TOWER,
            ("model.audio_tower.", "audio_tower."),
            _PROJECTOR,
            _HEAD,
            ("model", "language_model.model"),
        )
    ),
    "KimiK25ForConditionalGeneration": _KIMI,
    "KimiK3ForConditionalGeneration": _KIMI,
    "InternVLForConditionalGeneration": _INTERN,
    "InternS1ForConditionalGeneration": _INTERN,
    "Glm4vForConditionalGeneration": _GLM,
    "Glm4vMoeForConditionalGeneration": _GLM,
    "GlmOcrForConditionalGeneration": _GLM,
    "Qwen2_5OmniModel": _OMNI2,
    "Qwen2_5OmniForConditionalGeneration": _OMNI2,
    "Qwen3OmniMoeForConditionalGeneration": Renames(
        prefixes=(*_THINKER, ("talker.", None), ("code2wav.", None), _REST, _HEAD)
    ),
    "Qwen3ASRForConditionalGeneration": Renames(
        prefixes=(
            *_THINKER,
            ("model.audio_tower.", "audio_tower."),
            _TEXT,
            ("model.multi_modal_projector.linear_1.", "audio_tower.proj1."),
            ("model.multi_modal_projector.linear_2.", "audio_tower.proj2."),
            ("talker.", None),
            ("code2wav.", None),
        )
    ),
    "MiniMaxM3SparseForConditionalGeneration": Renames(
        substrings=((".mlp.fc1.", ".fc1."), (".mlp.fc2.", ".fc2.")),
        prefixes=(
            ("multi_modal_projector.", "vision_tower.multi_modal_projector."),
            ("patch_merge_mlp.", "vision_tower.patch_merge_mlp."),
        ),
    ),
    "Cohere2VisionForConditionalGeneration": Renames(prefixes=(_TOWER, _PROJECTOR, _TEXT)),
    "PaddleOCRVLForConditionalGeneration": Renames(prefixes=(_REST, _HEAD)),
    "Lfm2VlForConditionalGeneration": _INTERN,
    "Phi3VForCausalLM": Renames(
        prefixes=(
            ("model.vision_embed_tokens.wte", "embed_tokens"),
            ("model.vision_embed_tokens.", "vision_embed_tokens."),
            _HEAD,
            _REST,
        )
    ),
    "DeepseekOCRForCausalLM": Renames(
        prefixes=(
            ("model.embed_tokens.", "language_model.model.embed_tokens."),
            ("model.layers.", "language_model.model.layers."),
            ("model.norm.", "language_model.model.norm."),
            _HEAD,
            ("model.", ""),
        )
    ),
}
