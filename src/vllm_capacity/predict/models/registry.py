"""Where each class that vLLM registers is built; a module is loaded when one of its is asked for.

One entry per architecture *class*, never per model.
"""

from importlib import import_module
from typing import cast

from vllm_capacity.predict.models.builder import Builder

#: Module → the classes that it builds; each module keeps them in its ``BUILDERS``.
_CLASSES = {
    "backend": (
        "CwmForCausalLM FlexOlmoForCausalLM HunYuanMoEV1ForCausalLM MellumForCausalLM "
        "Olmo3ForCausalLM VaultGemmaForCausalLM"
    ),
    "bailing": ("BailingMoeV2_5ForCausalLM"),
    "bailing_moe": (
        "BailingMoeForCausalLM BailingMoeV2ForCausalLM Param2MoEForCausalLM SarvamMoEForCausalLM"
    ),
    "chatglm": ("ChatGLMForConditionalGeneration ChatGLMModel"),
    "dbrx": ("DbrxForCausalLM"),
    "deepseek_v4": ("DeepseekV4ForCausalLM"),
    "falcon": ("BloomForCausalLM FalconForCausalLM"),
    "falcon_h1": ("FalconH1ForCausalLM"),
    "gated_attention": ("AfmoeForCausalLM LagunaForCausalLM"),
    "gemma": ("Gemma2ForCausalLM Gemma3ForCausalLM Gemma3nForCausalLM Gemma4ForCausalLM"),
    "gpt_oss": ("GptOssForCausalLM"),
    "granite_hybrid": ("GraniteMoeHybridForCausalLM GraniteMoeSharedForCausalLM"),
    "jamba": ("JambaForCausalLM"),
    "kimi_linear": ("KimiLinearForCausalLM"),
    "latent": (
        "AXK1ForCausalLM DeepseekForCausalLM DeepseekV2ForCausalLM DeepseekV32ForCausalLM "
        "DeepseekV3ForCausalLM GlmMoeDsaForCausalLM MistralLarge3ForCausalLM"
    ),
    "latent_others": (
        "Glm4MoeLiteForCausalLM LongcatFlashForCausalLM MiniCPM3ForCausalLM "
        "PanguUltraMoEForCausalLM SarvamMLAForCausalLM"
    ),
    "lfm2": ("Lfm2ForCausalLM Lfm2MoeForCausalLM"),
    "llama4": ("Llama4ForCausalLM"),
    "llama_variants": ("HyperCLOVAXForCausalLM TeleChat2ForCausalLM"),
    "mamba": ("FalconMambaForCausalLM Mamba2ForCausalLM MambaForCausalLM"),
    "mimo_v2": ("MiMoV2FlashForCausalLM MiMoV2ForCausalLM"),
    "minimax_m3": ("MiniMaxM3SparseForCausalLM"),
    "more_wrappers": (
        "AudioFlamingo3ForConditionalGeneration BeeForConditionalGeneration "
        "DeepseekOCR2ForCausalLM DeepseekVLV2ForCausalLM DotsOCRForCausalLM "
        "Eagle2_5_VLForConditionalGeneration Exaone4_5_ForConditionalGeneration "
        "GLM4VForCausalLM GlmAsrForConditionalGeneration "
        "GraniteSpeechForConditionalGeneration "
        "GraniteSpeechPlusForConditionalGeneration H2OVLChatModel "
        "HCXVisionV2ForCausalLM KeyeForConditionalGeneration "
        "KeyeVL1_5ForConditionalGeneration LightOnOCRForConditionalGeneration "
        "LlavaNextVideoForConditionalGeneration MiniCPMO "
        "MiniCPMV4_6ForConditionalGeneration MiniCPMV4_7ForConditionalGeneration "
        "MolmoForCausalLM NVLM_D OpenCUAForConditionalGeneration Ovis2_5 "
        "Ovis2_6ForCausalLM Ovis2_6_MoeForCausalLM Phi4ForCausalLMV Phi4MMForCausalLM "
        "QianfanOCRForConditionalGeneration SkyworkR1VChatModel "
        "Step3VLForConditionalGeneration"
    ),
    "multimodal": (
        "Cohere2VisionForConditionalGeneration DeepseekOCRForCausalLM "
        "Gemma3ForConditionalGeneration Gemma3nForConditionalGeneration "
        "Gemma4ForConditionalGeneration Glm4vForConditionalGeneration "
        "Glm4vMoeForConditionalGeneration GlmOcrForConditionalGeneration "
        "Idefics3ForConditionalGeneration InternS1ForConditionalGeneration InternVLChatModel "
        "InternVLForConditionalGeneration KimiK25ForConditionalGeneration "
        "KimiK3ForConditionalGeneration KimiVLForConditionalGeneration "
        "Lfm2VlForConditionalGeneration Llama4ForConditionalGeneration "
        "LlavaForConditionalGeneration LlavaNextForConditionalGeneration "
        "LlavaOnevisionForConditionalGeneration MiniCPMV "
        "MiniMaxM3SparseForConditionalGeneration Mistral3ForConditionalGeneration "
        "PaddleOCRVLForConditionalGeneration PaliGemmaForConditionalGeneration "
        "Phi3VForCausalLM PixtralForConditionalGeneration Qwen2AudioForConditionalGeneration "
        "Qwen2VLForConditionalGeneration Qwen2_5OmniForConditionalGeneration "
        "Qwen2_5OmniModel Qwen2_5_VLForConditionalGeneration "
        "Qwen3ASRForConditionalGeneration Qwen3OmniMoeForConditionalGeneration "
        "Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration "
        "Qwen3_5ForConditionalGeneration Qwen3_5MoeForConditionalGeneration "
        "SmolVLMForConditionalGeneration WhisperForConditionalGeneration"
    ),
    "nemotron_h": ("NemotronHForCausalLM"),
    "nemotron_nas": ("DeciLMForCausalLM"),
    "olmo_hybrid": ("OlmoHybridForCausalLM"),
    "opt": ("OPTForCausalLM"),
    "pangu": ("PanguEmbeddedForCausalLM PanguProMoEV2ForCausalLM"),
    "qwen_delta_net": ("Qwen3NextForCausalLM Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM"),
    "sparse_windows": (
        "Cohere2MoeForCausalLM ExaoneMoEForCausalLM ExaoneMoeForCausalLM HYV3ForCausalLM"
    ),
    "step": ("Step3p5ForCausalLM"),
    "step3": ("Step3TextForCausalLM"),
    "table": (
        "ApertusForCausalLM ArceeForCausalLM CohereForCausalLM Ernie4_5ForCausalLM "
        "Ernie4_5_MoeForCausalLM ExaoneForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM "
        "GPTJForCausalLM GPTNeoXForCausalLM GemmaForCausalLM Glm4ForCausalLM "
        "Glm4MoeForCausalLM GlmForCausalLM GraniteForCausalLM GraniteMoeForCausalLM "
        "HunYuanDenseV1ForCausalLM IQuestCoderForCausalLM InternLM2ForCausalLM "
        "InternLM3ForCausalLM Jais2ForCausalLM LLaMAForCausalLM LlamaForCausalLM "
        "MiMoForCausalLM MiniCPMForCausalLM MiniMaxM2ForCausalLM Ministral3ForCausalLM "
        "MistralForCausalLM MixtralForCausalLM NemotronForCausalLM Olmo2ForCausalLM "
        "OlmoForCausalLM OlmoeForCausalLM OrionForCausalLM Phi3ForCausalLM PhiForCausalLM "
        "PhiMoEForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM "
        "Qwen3MoeForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM SolarForCausalLM "
        "StableLmForCausalLM Starcoder2ForCausalLM TeleChat3ForCausalLM TeleFLMForCausalLM"
    ),
    "windows": (
        "Cohere2ForCausalLM Exaone4ForCausalLM GraniteMoeSWAForCausalLM GraniteSWAForCausalLM"
    ),
    "zamba2": ("Zamba2ForCausalLM"),
}
_MODULE_OF = {name: module for module, names in _CLASSES.items() for name in names.split()}
_WRAPPERS = frozenset({"more_wrappers", "multimodal"})


def architectures() -> tuple[str, ...]:
    """Every class that is built."""
    return tuple(sorted(_MODULE_OF))


def architectures_of(*modules: str) -> tuple[str, ...]:
    """The classes that these modules build."""
    return tuple(sorted(name for name, module in _MODULE_OF.items() if module in modules))


def builder_of(architecture: str) -> Builder | None:
    """The builder of a class, None where it is not described."""
    module = _MODULE_OF.get(architecture)
    if module is None:
        return None
    builders = import_module(f"vllm_capacity.predict.models.{module}").BUILDERS
    return cast("Builder", builders[architecture])


def text_builder_of(architecture: str) -> Builder | None:
    """The same of a text model, which wrappers look for."""
    return None if _MODULE_OF.get(architecture) in _WRAPPERS else builder_of(architecture)
