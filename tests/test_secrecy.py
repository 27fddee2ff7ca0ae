"""What may be a secret is told by its name or form; what is none stays readable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.errors import Fault, SourceError
from vllm_capacity.secrecy import HIDDEN, is_secret_name, without_secrets

S = "S3CRET-8f2e"


@pytest.mark.parametrize(
    "text",
    [
        f"--api-key {S}",
        f"--api_key={S} --port 8000",
        f"--hf-token '{S} x'",
        f"--ssl-keyfile-password={S}",
        f"--model-loader-extra-config.token {S}",
        f"HF_TOKEN={S} vllm serve m",
        f'"api_key": "{S}"',
        f"'api_key': ['{S}', '{S}']",
        f"Config(password='{S}', n=1)",
        f"'secret_access_key': '{S}",
        f"https://me:{S}@host/x",
        f"https://{S}@host/x",
        f"s3://bucket/x?X-Amz-Signature={S}&a=1",
        f"https://host/x?access_token={S}",
        f"Authorization: Bearer {S}",
        f"the hub refuses token {S}",
        "hf_S3CRET8f2eabcd",
        "sk-S3CRET",
        f"vllm serve: error: unrecognized arguments: --api-ky {S} --x={S}",
        f"vllm serve: error: unrecognized arguments: {S}",
    ],
)
def test_a_secret_is_hidden(text: str) -> None:
    assert "S3CRET" not in without_secrets(text)
    assert HIDDEN in without_secrets(text) or "--x" in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "--max-num-batched-tokens 8192 --kv-cache-dtype fp8",
        "max_num_batched_tokens=8192, num_speculative_tokens: 3, tokenizer='t', token_count=4",
        "GPU KV cache size: 12,345 tokens",
        "User-specified max_model_len (999999) is greater than 4096 tokens",
        "http://localhost:8000/metrics cannot be reached: connection refused",
        "give --gpu, or run where NVML sees the GPU",
        "You are trying to access a gated repo. Make sure you have a token.",
        "bearer token file /run/token: must hold one visible ASCII word",
        "answered 401 Unauthorized; give a bearer token file",
        "hf_quant_config.json: is not JSON, and hf_overrides or hf_config_path either",
        "a@b.c",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize("name", ["api_key", "--hf-token", "AWS_SECRET_ACCESS_KEY", "x.password"])
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["max_num_batched_tokens", "tokenizer", "key", "block_size"])
def test_other_names_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@given(st.text(max_size=300))
def test_any_text_is_survived_and_hiding_twice_hides_no_more(text: str) -> None:
    hidden = without_secrets(text)
    assert without_secrets(hidden) == hidden


@pytest.mark.parametrize("size", [1_000, 10_000, 100_000])
def test_long_text_takes_no_longer_than_its_length(size: int) -> None:
    for piece in ("token", "--api-key ", "'", "[", "a.", "api_key=[", "https://", 'token: "\\'):
        assert isinstance(without_secrets(piece * (size // len(piece))), str)


def test_a_fault_shows_a_value_unless_it_may_be_a_secret() -> None:
    assert "got 'soon'" in str(Fault("scrape-interval", "soon", "must be a duration"))
    assert "S3CRET" not in str(Fault("targets[0].bearer-token", S, "is not known"))
    assert "S3CRET" not in str(Fault("vllm-args", f"--api-key {S} --oops", "is not known"))
    assert "S3CRET" not in str(Fault("x", {"api_key": S}, "is not known"))
    assert "S3CRET" not in str(SourceError("http", f"https://me:{S}@host refused"))
