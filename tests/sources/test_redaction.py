"""What ``record --redact`` writes instead of names."""

from pathlib import Path

import pytest

from vllm_capacity.sources.redaction import Redaction

PAGE = (Path(__file__).parent.parent / "data" / "vllm-0.32-metrics.txt").read_text()


@pytest.mark.parametrize(
    ("line", "redacted"),
    [
        ('a{model_name="/srv/acme/secret"} 1', 'a{model_name="name-1"} 1'),
        ('a{engine="0",model_name="m"} 1', 'a{engine="0",model_name="name-1"} 1'),
        (
            'l{running_lora_adapters="x,y",waiting_lora_adapters="y"} 1',
            'l{running_lora_adapters="name-1,name-2",waiting_lora_adapters="name-2"} 1',
        ),
        ('l{running_lora_adapters=""} 1', 'l{running_lora_adapters=""} 1'),
        ('a{model_name="a\\"b\\\\"} 1', 'a{model_name="name-1"} 1'),
        ('a{my_model_name="kept",le="1"} 1', 'a{my_model_name="kept",le="1"} 1'),
        ("a 1", "a 1"),
    ],
)
def test_names_are_numbered_and_all_else_is_kept(line: str, redacted: str) -> None:
    assert Redaction().page(line) == redacted


def test_the_same_name_is_the_same_on_every_page() -> None:
    redaction = Redaction()
    assert redaction.page('a{model_name="x"} 1') == redaction.page('a{model_name="x"} 1')
    assert redaction.page('a{model_name="y"} 1') == 'a{model_name="name-2"} 1'
    assert redaction.name("x") == "name-1"


def test_a_real_page_is_the_same_but_for_its_model() -> None:
    redacted = Redaction().page(PAGE)
    assert "small-llama" not in redacted
    assert redacted.replace("name-1", "./small-llama") == PAGE
