"""Record which blocks vLLM's own KVCacheManager lets running requests hold.

Run it where vLLM 0.32 is installed:

    python record_held_blocks.py ../data/vllm-0.32-held-blocks.json.xz

One request after another goes through prompt chunks and decoding as the scheduler would take it,
with drafts of which some are rejected, and with a step in flight where steps overlap. Of each step:
tokens that have a slot, lookahead slots among them, settled tokens, blocks held in every group.
"""

import json
import lzma
import math
import random
import sys
from collections import deque
from pathlib import Path
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request

MAX_MODEL_LEN = 1024
REQUESTS = 4
HEADS = {"num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
FULL = {"kind": "full", "block_size": 16}
WINDOW = {"kind": "window", "block_size": 16, "sliding_window": 100}
CHUNK = {"kind": "chunk", "block_size": 16, "attention_chunk_size": 128}
STATE = {"kind": "mamba", "block_size": MAX_MODEL_LEN, "mode": "none"}
ALIGNED = {"kind": "mamba", "block_size": 64, "mode": "align"}
CASES: list[dict[str, Any]] = [
    {"groups": [FULL]},
    {"groups": [FULL | {"kind": "latent", "block_size": 64}]},
    {"groups": [FULL, WINDOW, WINDOW]},
    {"groups": [WINDOW | {"sliding_window": 33}]},
    {"groups": [FULL | {"block_size": 32}, WINDOW | {"extra_retained_tokens": 5}]},
    {"groups": [FULL, CHUNK]},
    {"groups": [FULL, STATE], "caching": False},
    {"groups": [FULL | {"block_size": 64}, ALIGNED, ALIGNED]},
    {"groups": [FULL, {"kind": "cross", "block_size": 16}], "caching": False},
    {"groups": [FULL], "context_parallel_size": 2},
]


def spec(group: dict[str, Any], drafts: int) -> KVCacheSpec:
    known = {name: value for name, value in group.items() if name not in {"kind", "mode"}}
    match group["kind"]:
        case "full":
            return FullAttentionSpec(**HEADS, **known)
        case "latent":
            return MLAAttentionSpec(**HEADS, **known)
        case "window":
            return SlidingWindowSpec(**HEADS, **known)
        case "chunk":
            return ChunkedLocalAttentionSpec(**HEADS, **known)
        case "cross":
            return CrossAttentionSpec(**HEADS, **known)
    return MambaSpec(
        shapes=((1,),),
        dtypes=(torch.float32,),
        mamba_cache_mode=group["mode"],
        num_speculative_blocks=drafts,
        **known,
    )


class Recorder:
    """Takes requests through one manager as the scheduler does."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.rng = random.Random(json.dumps(case))  # noqa: S311
        specs = [spec(group, case["drafts"]) for group in case["groups"]]
        sizes = [each.block_size for each in specs if not isinstance(each, MambaSpec)]
        self.parallel = case.get("context_parallel_size", 1)
        self.caching = case.get("caching", True)
        whole = math.lcm(*(each.block_size for each in specs)) * self.parallel
        self.manager = KVCacheManager(
            KVCacheConfig(
                num_blocks=4000,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec([str(i)], each) for i, each in enumerate(specs)],
            ),
            max_model_len=MAX_MODEL_LEN,
            scheduler_block_size=whole,
            hash_block_size=min(sizes) * self.parallel,
            max_in_flight_tokens=512,
            enable_caching=self.caching,
            dcp_world_size=self.parallel,
        )
        self.hasher = get_request_block_hasher(min(sizes) * self.parallel, sha256)

    def record(self) -> list[dict[str, Any]]:
        return [self.run(str(number)) for number in range(REQUESTS)]

    def run(self, name: str) -> dict[str, Any]:
        prompt = self.rng.choice([5, 90, 300, 600]) + self.rng.randrange(60)
        params = SamplingParams(max_tokens=400)
        tokens = [self.rng.randrange(10**6) for _ in range(prompt)]
        hasher = self.hasher if self.caching else None
        request = Request(name, tokens, params, None, block_hasher=hasher)
        in_flight: deque[tuple[int, int, bool]] = deque()
        slots, steps = 0, []
        encoder = self.rng.randrange(1, 200)
        while request.num_tokens < prompt + 160:
            self.manager.new_step_starts()
            new, drafts = self.next_tokens(request, prompt)
            settled = max(0, request.num_computed_tokens - request.num_in_flight_tokens)
            first = request.num_computed_tokens == 0
            given = self.manager.allocate_slots(
                request,
                new,
                num_lookahead_tokens=self.case["lookahead"],
                num_encoder_tokens=encoder if first else 0,
            )
            assert given is not None
            slots = max(slots, request.num_computed_tokens + new + self.case["lookahead"])
            steps.append([slots, settled, *self.held(name)])
            request.num_computed_tokens += new
            request.num_in_flight_tokens += new
            in_flight.append((new, drafts, request.num_computed_tokens >= prompt))
            if len(in_flight) > self.case["overlap"]:
                self.settle(request, *in_flight.popleft())
        self.manager.free(request)
        return {"prompt_tokens": prompt, "encoder_tokens": encoder, "steps": steps}

    def next_tokens(self, request: Request, prompt: int) -> tuple[int, int]:
        left = prompt - request.num_computed_tokens
        if left <= 0:
            return 1 + self.case["drafts"], self.case["drafts"]
        chunk = self.rng.choice([64, 128, 256])
        return min(chunk, left), 0

    def settle(self, request: Request, new: int, drafts: int, samples: bool) -> None:
        request.num_in_flight_tokens -= new
        if not samples:
            return
        accepted = self.rng.randint(0, drafts)
        request.num_computed_tokens -= drafts - accepted
        request.append_output_token_ids([self.rng.randrange(10**6) for _ in range(accepted + 1)])

    def held(self, name: str) -> list[int]:
        groups = self.manager.coordinator.get_blocks(name)
        return [sum(not block.is_null for block in blocks) for blocks in groups]


def main(target: str) -> None:
    init_none_hash(sha256)
    recordings = []
    for groups in CASES:
        for overlap in (0, 1):
            for drafts, lookahead in ((0, 0), (3, 3), (3, 0)):
                case = groups | {"overlap": overlap, "drafts": drafts, "lookahead": lookahead}
                recordings.append(case | {"requests": Recorder(case).record()})
    text = json.dumps(recordings, separators=(",", ":")).encode()
    Path(target).write_bytes(lzma.compress(text, preset=9))


if __name__ == "__main__":
    main(sys.argv[1])
