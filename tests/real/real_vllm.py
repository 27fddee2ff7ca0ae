"""A genuine vLLM on the CPU, with a tiny model of random weights that is made here."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Server, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator

VLLM_PYTHON_VARIABLE = "CPU_VLLM_PYTHON"


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyLlama:
    """A Llama small enough to decode a dozen requests on two cores; its weights are random."""

    layers: int = 8
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 4
    head_size: int = 64
    max_positions: int = 8192

    # The 256 byte symbols, then the two special tokens.
    vocabulary: int = 258

    def write(self, folder: Path) -> Path:
        """Write config.json and a byte-level tokenizer without merges into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config(), indent=1))
        (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer(), ensure_ascii=False))
        (folder / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "bos_token": "<s>",
                    "eos_token": "</s>",
                    "model_max_length": self.max_positions,
                }
            )
        )
        return folder

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
            "vocab_size": self.vocabulary,
            "bos_token_id": 256,
            "eos_token_id": 257,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyGemma3(TinyLlama):
    """A Gemma 3 as small: ten of its twelve layers see no farther than a window."""

    layers: int = 12
    hidden: int = 512
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 128
    window_tokens: int = 256

    def config(self) -> dict[str, Any]:
        kinds = 5 * ["sliding_attention"] + ["full_attention"]
        return TinyLlama.config(self) | {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": kinds * (self.layers // len(kinds)),
            "query_pre_attn_scalar": self.head_size,
            "rope_local_base_freq": 10000.0,
            "rope_parameters": None,
            "rope_theta": 1e6,
            "sliding_window": self.window_tokens,
            "tie_word_embeddings": True,
        }


def byte_tokenizer() -> dict[str, Any]:
    """A tokenizer.json whose tokens are the 256 bytes and two special ones."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 256, "content": "<s>", "special": True, **special},
            {"id": 257, "content": "</s>", "special": True, **special},
        ],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "model": {"type": "BPE", "vocab": _byte_symbols(), "merges": []},
    }


def _byte_symbols() -> dict[str, int]:
    # Byte-level BPE writes each byte as one printable character: those of Latin-1 that print stand
    # for themselves, the others get code points from 256 upwards, in order.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols |= {byte: chr(256 + position) for position, byte in enumerate(others)}
    return {symbols[byte]: byte for byte in range(256)}


def vllm_python() -> Path:
    """The interpreter of an environment that holds the CPU build of vLLM."""
    where = os.environ.get(VLLM_PYTHON_VARIABLE)
    if not where:
        raise RuntimeError(
            f"{VLLM_PYTHON_VARIABLE} is not set: run `make real`, which prepares the environment, "
            "or set it to the python of an environment with the CPU build of vLLM 0.32"
        )
    return Path(where)


VLLM_ENV = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
}


@contextmanager
def vllm_server(
    model: Path,
    folder: Path,
    *flags: str,
    kv_cache_gib: int = 1,
    name: str = "vllm",
    port: int | None = None,
) -> Iterator[Server]:
    """A genuine vLLM that serves `model` from the CPU; ready when the block begins (about 40 s)."""
    port = port or free_port()
    command = [
        *(vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", model),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--load-format", "dummy", "--enforce-eager", *flags),
    ]
    env = VLLM_ENV | {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib)}
    url = f"http://127.0.0.1:{port}"
    with running(name, command, url=url, folder=folder, env=env) as server:
        server.wait_ready("/health", seconds=300)
        yield server


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedCapacity:
    """What vLLM prints about its pool when it starts (v1/core/kv_cache_utils.py)."""

    tokens: int
    max_model_len_tokens: int
    concurrency: float

    @classmethod
    def read(cls, log: str) -> LoggedCapacity:
        found = re.search(
            r"KV cache size: ([\d,]+) tokens, "
            r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x",
            log,
        )
        if found is None:
            raise LookupError("the log has no line about the KV cache size")
        tokens, length, concurrency = (text.replace(",", "") for text in found.groups())
        return cls(
            tokens=int(tokens), max_model_len_tokens=int(length), concurrency=float(concurrency)
        )
