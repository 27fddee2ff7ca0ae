"""How vLLM cuts a model over ranks."""

from collections.abc import Mapping
from dataclasses import dataclass

PARTITION_VARIABLE = "VLLM_PP_LAYER_PARTITION"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """One worker's place, and how wide each kind of parallelism is.

    Attributes:
        moe_tensor_parallel: ranks that share each expert; data-parallel ranks count when
            experts are not distributed whole.
        expert_parallel: ranks over which whole experts are distributed, 1 without EP.
        encoder_data_parallel: whether encoders of images and sound are to be whole on every
            rank (``--mm-encoder-tp-mode data``).
        redundant_experts: copies of busy experts in every layer, over all ranks (EPLB).
    """

    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    moe_tensor_parallel: int
    expert_parallel: int
    encoder_data_parallel: bool = False
    redundant_experts: int = 0

    @property
    def is_first_stage(self) -> bool:
        """Whether it holds the input embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether it computes logits and samples."""
        return self.pp_rank == self.pp_size - 1

    @property
    def shares_tokens(self) -> bool:
        """Whether tensor ranks may divide tokens, not widths, around the routed experts.

        Source: vLLM 0.32 ``config/parallel.py``, ``use_sequence_parallel_moe``: expert
        parallelism over tensor and data ranks.
        """
        return self.expert_parallel > self.tp_size > 1


def ranks(
    *,
    tensor_parallel: int,
    pipeline_parallel: int,
    data_parallel: int,
    expert_parallel: bool,
    encoder_data_parallel: bool = False,
    redundant_experts: int = 0,
) -> tuple[Rank, ...]:
    """Every rank of one data-parallel replica, ordered by (pp_rank, tp_rank).

    Source: vLLM 0.32 ``model_executor/layers/fused_moe/config.py``,
    ``FusedMoEParallelConfig.make``: without EP the experts are split over TP × DP ranks, with
    EP whole experts are distributed over the same ranks.
    """
    moe_ranks = tensor_parallel * data_parallel
    return tuple(
        Rank(
            tp_rank=tp_rank,
            tp_size=tensor_parallel,
            pp_rank=pp_rank,
            pp_size=pipeline_parallel,
            moe_tensor_parallel=1 if expert_parallel else moe_ranks,
            expert_parallel=moe_ranks if expert_parallel else 1,
            encoder_data_parallel=encoder_data_parallel,
            redundant_experts=redundant_experts,
        )
        for pp_rank in range(pipeline_parallel)
        for tp_rank in range(tensor_parallel)
    )


def stage_layers(num_layers: int, num_stages: int, env: Mapping[str, str]) -> tuple[range, ...]:
    """The layers of every pipeline stage.

    Layers that do not divide go to the last stages but one, one each:
    the last holds the final norm and the logits, the first the embedding.

    >>> [len(stage) for stage in stage_layers(62, 4, {})]
    [15, 16, 16, 15]

    Raises:
        ValueError: ``VLLM_PP_LAYER_PARTITION`` does not describe this model.

    Source: vLLM 0.32 ``distributed/utils.py``, ``get_pp_indices``.
    """
    sizes = _given_sizes(num_layers, num_stages, env.get(PARTITION_VARIABLE))
    if sizes is None:
        sizes = [num_layers // num_stages] * num_stages
        for stage in range(2, num_layers % num_stages + 2):
            sizes[-stage] += 1
    starts = [sum(sizes[:stage]) for stage in range(num_stages)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


def _given_sizes(num_layers: int, num_stages: int, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != num_stages or sum(sizes) != num_layers or min(sizes) < 0:
        raise ValueError(
            f"{PARTITION_VARIABLE}={text} must name {num_stages} stages that sum to "
            f"{num_layers} layers"
        )
    return sizes


def mapped_experts(num_experts: int, rank: Rank) -> int:
    """Entries of the map from the model's experts to the rank's; none without EP."""
    return num_experts + rank.redundant_experts if rank.expert_parallel > 1 else 0


def local_experts(num_experts: int, rank: Rank) -> int:
    """Whole experts on this rank, copies included; the first ranks take the remainder.

    With data parallelism the ranks of replica 0 are described.

    Source: vLLM 0.32 ``layers/fused_moe/expert_map_manager.py``, ``determine_expert_map``.
    """
    base, remainder = divmod(num_experts + rank.redundant_experts, rank.expert_parallel)
    return base + (1 if rank.tp_rank < remainder else 0)


def kv_heads_per_rank(num_kv_heads: int, tp_size: int) -> int:
    """KV heads on one rank; fewer heads than ranks are replicated.

    Source: vLLM 0.32 ``config/model.py``, ``ModelConfig.get_num_kv_heads``.
    """
    return max(1, num_kv_heads // tp_size)
