"""The vision encoder and resampler of MiniCPM-V 2.5 to 4.5.

Source: vLLM 0.32 ``models/minicpmv.py``, ``layers/resampler.py``.
"""

from collections.abc import Iterator

from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.model import Model, Outside, Part
from vllm_capacity.predict.models.vision.common import (
    IMAGE_AND_VIDEO,
    MAX_WIDTH,
    Sizes,
    towers,
)
from vllm_capacity.predict.models.vision.idefics import idefics2_vision
from vllm_capacity.predict.models.vision.llava import text_width
from vllm_capacity.predict.models.wrapper import Wrapper, build_wrapped
from vllm_capacity.predict.parts import Vectors
from vllm_capacity.predict.parts.vision import Projection, Tower
from vllm_capacity.predict.refusal import Refusal

#: Text model by the file's own version.
_TEXT = {
    "2.5": ("LlamaForCausalLM", "llama"),
    "2.6": ("Qwen2ForCausalLM", "qwen2"),
    "4.0": ("LlamaForCausalLM", "llama"),
    "4.5": ("Qwen3ForCausalLM", "qwen3"),
}
#: Positions that the resampler keeps: rows and columns, and moments from 4.5 on.
_PLACES = 70 * 70
_MOMENTS = 36000


def build_minicpmv(config: Fields, *, path: str = "", head_path: str = "") -> Model:
    """MiniCPM-V.

    Raises:
        Refusal: its version is not described exactly.
    """
    del path, head_path
    version = str(config.values.get("version", "2.5"))
    if "version" not in config.values and config.values.get("hidden_size") == 2304:
        version = "2.0"
    if version not in _TEXT:
        raise Refusal(f"minicpmv.py of version {version} is not described exactly yet")
    architecture, kind = _TEXT[version]

    def built(outer: Fields, text: Fields) -> Iterator[Outside]:
        return _towers(outer, text, moments=_MOMENTS if version == "4.5" else 0)

    wrapper = Wrapper(
        source="minicpmv.py",
        towers=built,
        architecture=architecture,
        text_type=kind,
        text_type_decides=False,
        flat=True,
        path="llm.model",
        head_path="llm",
    )
    return build_wrapped(config, wrapper)


def _towers(config: Fields, text: Fields, *, moments: int) -> Iterator[Outside]:
    sizes = Sizes(config, "vision_config", {"num_channels": 3})
    layers = sizes.layers()
    if config.boolean("drop_vision_last_layer"):
        layers -= 1
    yield from towers(
        IMAGE_AND_VIDEO,
        Tower(
            name="vpm",
            parts=idefics2_vision(sizes, layers=layers),
            data_parallel=True,
            own_names=True,
        ),
        Tower(name="resampler", parts=tuple(_resampler(config, sizes, text, moments))),
    )


def _resampler(config: Fields, sizes: Sizes, text: Fields, moments: int) -> Iterator[Part]:
    width, inputs = text_width(text), sizes["hidden_size"]
    queries = config.required_integer("query_num", maximum=MAX_WIDTH)
    if inputs != width:
        yield Projection(name="kv_proj", input_size=inputs, output_sizes=(width,), bias=False)
    # Queries, PyTorch's own attention, three norms and the last projection.
    own = queries * width + 4 * width * (width + 1) + 6 * width + width * width
    yield Vectors(name="parameters", elements=own)
    yield Vectors(name="pos_embed", elements=(_PLACES + moments) * width)
