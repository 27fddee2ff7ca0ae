"""Record what vLLM's own scheduler does under random workloads.

Run it where vLLM 0.32 is installed, with a folder that holds the ``config.json`` of any small
Llama:

    python record_scheduler_steps.py FOLDER ../data/vllm-0.32-scheduler-steps.json.xz

No model runs: tokens are made up, so that every request ends where its workload says. Of each step:
requests running, waiting and deferred, used blocks, prefix-cache queries and hits in tokens,
preemptions heard of, tokens delivered, requests finished, drafts accepted.
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
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

END_TOKEN = 3999
NUM_STEPS = 600
NUM_REQUESTS = 60
ACCEPTANCE_RATIO = 0.7
LAYER_TYPES = [
    ["sliding_attention", "full_attention"],
    ["full_attention"],
    ["sliding_attention", "sliding_attention", "full_attention"],
    ["linear_attention", "linear_attention", "full_attention"],
]


def random_config(rng: random.Random, case: int) -> dict[str, Any]:
    """The first sixteen cases have one group of layers; after them come others, and drafts."""
    config = plain_config(rng, case)
    if case < 16:
        return config
    kinds = LAYER_TYPES[case // 2 % len(LAYER_TYPES)]
    config["num_gpu_blocks"] = rng.choice([70, 90, 130, 300])
    config["num_speculative_tokens"] = rng.choice([0, 1, 3]) if len(set(kinds)) > 1 else 2
    config["enable_prefix_caching"] &= "linear_attention" not in kinds
    config["model_config"] = {
        "num_hidden_layers": len(kinds),
        "num_key_value_heads": 1,
        "head_dim": 1,
        "layer_types": kinds,
        "sliding_window": rng.choice([17, 40, 96]),
    }
    return config


def plain_config(rng: random.Random, case: int) -> dict[str, Any]:
    return {
        "block_size": 16,
        "num_gpu_blocks": rng.choice([18, 40, 65, 200]),
        "max_model_len": 256,
        "max_num_seqs": rng.choice([4, 16, 64]),
        "max_num_batched_tokens": rng.choice([64, 256, 1024]),
        "async_scheduling": case % 2 == 0,
        "enable_prefix_caching": case % 5 != 4,
    }


def random_requests(rng: random.Random, max_model_len: int) -> list[dict[str, Any]]:
    requests, step = [], 0
    for _ in range(NUM_REQUESTS):
        step += rng.choice([0, 0, 0, 1, 1, 2, 5, 20])
        longest = max_model_len - 1 if rng.random() < 0.1 else max_model_len // 3
        prompt_tokens = rng.randint(1, longest)
        requests.append(
            {
                "step": step,
                "prompt_tokens": prompt_tokens,
                "max_tokens": rng.randint(1, min(max_model_len - prompt_tokens, 120)),
                "stop_after_tokens": rng.randint(1, 150),
                "n": 3 if rng.random() < 0.1 else 1,
                "prefix": rng.choice([0, 1]) if rng.random() < 0.4 else None,
                "prefix_tokens": min(prompt_tokens, 37),
                "abort_step": step + rng.randint(1, 60) if rng.random() < 0.1 else None,
            }
        )
    return requests


def new_scheduler(model: str, config: dict[str, Any]) -> Scheduler:
    vllm_config = VllmConfig(
        model_config=ModelConfig(
            model=model, skip_tokenizer_init=True, max_model_len=config["max_model_len"]
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=config["max_num_seqs"],
            max_num_batched_tokens=config["max_num_batched_tokens"],
            max_model_len=config["max_model_len"],
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            async_scheduling=config["async_scheduling"],
        ),
        cache_config=CacheConfig(
            block_size=config["block_size"],
            enable_prefix_caching=config["enable_prefix_caching"],
        ),
    )
    vllm_config.cache_config.num_gpu_blocks = config["num_gpu_blocks"]
    # Without a GPU vLLM takes this back.
    vllm_config.scheduler_config.async_scheduling = config["async_scheduling"]
    drafts = config.get("num_speculative_tokens", 0)
    vllm_config.speculative_config = EagleHead(drafts) if drafts else None
    specs = [spec_of(kind, config) for kind in config.get("model_config", ONE_GROUP)["layer_types"]]
    block_size = math.lcm(*(spec.block_size for spec in specs))
    kind = AsyncScheduler if config["async_scheduling"] else Scheduler
    return kind(
        vllm_config=vllm_config,
        kv_cache_config=KVCacheConfig(
            num_blocks=config["num_gpu_blocks"],
            kv_cache_tensors=[],
            kv_cache_groups=[
                KVCacheGroupSpec([f"layer {i}"], spec) for i, spec in enumerate(specs)
            ],
            prefix_cache_retention_interval=0 if len(specs) > 1 else None,
        ),
        log_stats=True,
        structured_output_manager=StructuredOutputManager(vllm_config),
        block_size=block_size,
        hash_block_size=config["block_size"],
    )


ONE_GROUP = {"layer_types": ["full_attention"]}


class EagleHead:
    """Drafts a fixed number of tokens; what the scheduler asks of a speculative config."""

    num_speculative_tokens_per_batch_size = None
    max_num_new_slots_for_drafting = 0

    def __init__(self, num_speculative_tokens: int) -> None:
        self.num_speculative_tokens = num_speculative_tokens

    def use_eagle(self) -> bool:
        return True

    use_eagle_block_drop = use_eagle

    def use_dflash(self) -> bool:
        return False

    use_dspark = uses_draft_model = use_multi_module_mtp = use_dflash


def spec_of(kind: str, config: dict[str, Any]) -> Any:
    attention = {
        "block_size": config["block_size"],
        "num_kv_heads": 1,
        "head_size": 1,
        "dtype": torch.float32,
    }
    if kind == "sliding_attention":
        window = config["model_config"]["sliding_window"]
        return SlidingWindowSpec(**attention, sliding_window=window)
    if kind == "linear_attention":
        return MambaSpec(
            block_size=config["max_model_len"],
            shapes=((1,),),
            dtypes=(torch.float32,),
            num_speculative_blocks=config["num_speculative_tokens"],
        )
    return FullAttentionSpec(**attention)


def accepts_draft(position: int, prompt_tokens: int) -> bool:
    spread = (position * 0x9E3779B1 + prompt_tokens * 0x85EBCA6B) % 2**32
    return spread < ACCEPTANCE_RATIO * 2**32


class Recorder:
    """Drives one scheduler as vLLM's engine core does, with made-up tokens."""

    def __init__(self, model: str, config: dict[str, Any], requests: list[dict[str, Any]]) -> None:
        self.config, self.requests = config, requests
        self.scheduler = new_scheduler(model, config)
        self.hasher = get_request_block_hasher(config["block_size"], sha256)
        self.rng = random.Random(1)  # noqa: S311
        self.in_flight: deque[tuple[Any, set[str]]] = deque()
        self.stop_after: dict[str, int] = {}

    def record(self) -> list[list[int] | None]:
        rows = []
        for step in range(NUM_STEPS):
            for number, request in enumerate(self.requests):
                names = [f"{index}_{number}" for index in range(request["n"])]
                if request["step"] == step:
                    self.add(names, request)
                if request["abort_step"] == step:
                    self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)
            rows.append(self.update(*self.in_flight.popleft()) if self.in_flight else None)
            self.fill()
        return rows

    def add(self, names: list[str], request: dict[str, Any]) -> None:
        shared = request["prefix_tokens"] if request["prefix"] is not None else 0
        prompt = [(request["prefix"] * 1000 + i) % END_TOKEN for i in range(shared)]
        prompt += [self.rng.randrange(END_TOKEN) for _ in range(request["prompt_tokens"] - shared)]
        for name in names:
            params = SamplingParams(max_tokens=request["max_tokens"])
            params.update_from_generation_config({}, END_TOKEN)
            self.stop_after[name] = request["stop_after_tokens"]
            self.scheduler.add_request(
                Request(name, list(prompt), params, None, block_hasher=self.hasher)
            )

    def fill(self) -> None:
        while len(self.in_flight) < (2 if self.config["async_scheduling"] else 1):
            batch = self.scheduler.schedule()
            if batch.total_num_scheduled_tokens:
                alive = self.scheduler.requests
                names = batch.num_scheduled_tokens
                self.in_flight.append((batch, {n for n in names if not alive[n].is_prefill_chunk}))
            elif self.in_flight or not batch.preempted_req_ids:
                break

    def tokens(self, name: str, batch: Any) -> list[int]:
        """The accepted drafts and one more; the drafts of a request just admitted are padding."""
        request = self.scheduler.requests.get(name)
        delivered = request.num_output_tokens if request else 0
        prompt_tokens = request.num_prompt_tokens if request else 0
        drafts = len(batch.scheduled_spec_decode_tokens.get(name, ()))
        if name in {new.req_id for new in batch.scheduled_new_reqs}:
            drafts = 0
        if name in batch.scheduled_cached_reqs.resumed_req_ids:
            drafts = 0
        count = 1
        while count <= drafts and accepts_draft(delivered + count - 1, prompt_tokens):
            count += 1
        end = self.stop_after[name] - delivered
        return [END_TOKEN if i + 1 >= end else self.rng.randrange(END_TOKEN) for i in range(count)]

    def update(self, batch: Any, sampling: set[str]) -> list[int]:
        names = list(batch.num_scheduled_tokens)
        sampled = [self.tokens(n, batch) if n in sampling else [] for n in names]
        result = self.scheduler.update_from_output(
            batch,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=sampled,
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        drafts = self.config.get("num_speculative_tokens", 0)
        if drafts and not self.config["async_scheduling"]:
            drafted = [n for n in names if n in sampling and n in self.scheduler.requests]
            tokens = [[1] * drafts for _ in drafted]
            self.scheduler.update_draft_token_ids(DraftTokenIds(drafted, tokens))
        stats = next(o.scheduler_stats for o in result.values() if o.scheduler_stats)
        outputs = [output for o in result.values() for output in o.outputs]
        events = [event.type.name for output in outputs for event in output.events or []]
        return [
            stats.num_running_reqs,
            stats.num_waiting_reqs,
            stats.num_skipped_waiting_reqs,
            round(stats.kv_cache_usage * (self.config["num_gpu_blocks"] - 1)),
            stats.prefix_cache_stats.queries,
            stats.prefix_cache_stats.hits,
            events.count("PREEMPTED"),
            sum(len(output.new_token_ids) for output in outputs),
            sum(output.finish_reason is not None for output in outputs),
            stats.spec_decoding_stats.num_accepted_tokens if stats.spec_decoding_stats else 0,
        ]


def main(model: str, target: str, cases: int = 40) -> None:
    init_none_hash(sha256)
    recordings = []
    for case in range(cases):
        rng = random.Random(case)  # noqa: S311
        config = random_config(rng, case)
        requests = random_requests(rng, config["max_model_len"])
        steps = Recorder(model, config, requests).record()
        recordings.append({"config": config, "requests": requests, "steps": steps})
    text = json.dumps(recordings, separators=(",", ":")).encode()
    Path(target).write_bytes(lzma.compress(text, preset=9))


if __name__ == "__main__":
    main(*sys.argv[1:3])
