"""The registry of model classes agrees with the modules that build them."""

from importlib import import_module
from pathlib import Path

from vllm_capacity.predict import models
from vllm_capacity.predict.models.registry import architectures, architectures_of, builder_of

FOLDER = Path(models.__file__).parent


def _modules() -> list[str]:
    sources = {path.stem: path.read_text() for path in FOLDER.glob("*.py")}
    return [name for name, text in sources.items() if "\nBUILDERS: dict" in text]


def test_every_class_of_every_module_is_registered_under_it_and_no_other() -> None:
    for name in _modules():
        built = import_module(f"vllm_capacity.predict.models.{name}").BUILDERS
        assert set(architectures_of(name)) == set(built), name


def test_every_registered_class_has_its_builder() -> None:
    assert len(architectures()) >= 150
    assert all(builder_of(name) is not None for name in architectures())


def test_a_class_that_is_not_described_has_none() -> None:
    assert builder_of("NeverForCausalLM") is None
