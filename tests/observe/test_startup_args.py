"""Printed arguments: read without running them, without what may be secret."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.observe.startup_args import read_arguments

PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
).filter(lambda value: "://" not in repr(value))


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("{'model': 'a/b', 'max_model_len': 8192}", {"model": "a/b", "max_model_len": 8192}),
        ("Namespace(model='a,b', x=None, y=(1, 2))", {"model": "a,b", "y": [1, 2]}),
        ("model='a', dtype=torch.bfloat16, cut={'a'", {"model": "a", "dtype": "torch.bfloat16"}),
        ("{'a': <E.A: 2>, 'd': {'mode': <E.B: 'b'>}}", {"a": 2, "d": {"mode": "b"}}),
        ("Namespace(f=<function serve at 0x7f>, a=1)", {"a": 1}),
        ("{'c': KVConfig(a=[1, 2], b='x'), 'd': 1}", {"c": "***", "d": 1}),
        ("{'a': 1, 'max_model_len': 81", {"a": 1}),
        ("{'task': 'it\\'s, {', \"b\": 2}", {"task": "it's, {", "b": 2}),
        ("{'a': inf, 'b': {1}}", {"a": "***", "b": [1]}),
        ("{}", {}),
        ("", {}),
    ],
)
def test_what_is_printed_is_read(text: str, arguments: dict[str, Any]) -> None:
    assert read_arguments(text) == arguments


@pytest.mark.parametrize(
    "text",
    [
        "{'api_key': 'S3CRET'}",
        "{'api_key': ['S3CRET']}",
        "{'hf_token': 'S3CRET'}",
        "{'model_loader_extra_config': {'aws_secret_access_key': 'S3CRET'}}",
        "{'kv': KVConfig(extra={'password': 'S3CRET'})}",
        "{'kv': KVConfig(api_key='S3CRET')}",
        "{'ssl_keyfile_password': 'S3CRET'}",
        "{'model': 'https://me:S3CRET@hub/x'}",
        "{'otlp': 'hf_S3CRETS3CRET'}",
    ],
)
def test_what_is_called_like_a_secret_or_looks_like_one_is_not_kept(text: str) -> None:
    assert "S3CRET" not in repr(read_arguments(text))


@given(st.from_regex(r"[a-z_]{1,20}", fullmatch=True))
def test_under_no_name_but_a_known_one_is_text_kept(name: str) -> None:
    kept = read_arguments(f"{{'{name}': 'S3CRET', 'n': {{'{name}': ['S3CRET']}}}}")
    assert "S3CRET" not in repr(kept)
    assert set(kept) <= {name, "n"}


def test_counts_of_tokens_are_no_secrets() -> None:
    arguments = {"max_num_batched_tokens": 1, "tokenizer": "t", "num_speculative_tokens": 2}
    assert read_arguments(repr(arguments)) == arguments


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}_x", fullmatch=True), PLAIN, max_size=5))
def test_a_dict_of_plain_values_is_read_back(arguments: dict[str, Any]) -> None:
    read = read_arguments(repr(arguments))
    assert set(read) == set(arguments)


@given(st.text(max_size=300))
def test_any_text_gives_a_dict(text: str) -> None:
    for opening in ("{'a': ", "Namespace(a=", ""):
        assert isinstance(read_arguments(opening + text), dict)
