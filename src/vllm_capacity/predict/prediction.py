"""A deployment's description → everything that vLLM will make of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vllm_capacity.errors import EngineArgsError, Fault
from vllm_capacity.predict.context_parallel import context_parallel_refusal
from vllm_capacity.predict.engine_args import EngineArgs
from vllm_capacity.predict.expert_balance import redundant_experts
from vllm_capacity.predict.fields import Fields
from vllm_capacity.predict.gpu import Gpu
from vllm_capacity.predict.kv_cache.deployed import Surroundings, deployed_planner
from vllm_capacity.predict.kv_cache.held import KVCacheLayout
from vllm_capacity.predict.kv_cache.plan import KVCachePlan, Planner
from vllm_capacity.predict.memory.activation import (
    SORTING_RELEASE,
    Batch,
    activation_peak,
)
from vllm_capacity.predict.memory.budget import (
    NOTHING,
    Estimate,
    MemoryBudget,
    cuda_graphs,
    memory_budget,
    non_torch,
    requested_bytes,
)
from vllm_capacity.predict.memory.calibrated_budget import (
    Corrections,
    calibrated,
    corrections,
    measured_args,
)
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.predict.memory.loaded_weights import loaded_bytes
from vllm_capacity.predict.memory.lora import lora_bytes, lora_slots
from vllm_capacity.predict.memory.samplers import Sampler, choose_sampler
from vllm_capacity.predict.memory.weights import (
    StageModel,
    Widths,
    refusal,
    weights_bytes,
)
from vllm_capacity.predict.model import NO_RENAMES, Model
from vllm_capacity.predict.model_config import ModelConfig
from vllm_capacity.predict.models.renamings import RENAMINGS
from vllm_capacity.predict.parallel import Rank, ranks, stage_layers
from vllm_capacity.predict.parts import LogitsHead, TokenEmbedding
from vllm_capacity.predict.quantization.checkpoint import read_quantization
from vllm_capacity.predict.quantization.module_names import Renaming
from vllm_capacity.predict.quantization.scheme import Quantization, Unquantized
from vllm_capacity.predict.refusal import Refusal
from vllm_capacity.predict.resolved import ResolvedArgs, resolve
from vllm_capacity.predict.speculative import read_speculative, slots_ahead
from vllm_capacity.predict.vllm_version import NEWEST_KNOWN, OLDEST_KNOWN, VllmVersion
from vllm_capacity.units import GIB, Bytes, format_gib

_HOPPER = 9
#: GPUs that vLLM has router kernels for.
#: Source: vLLM 0.32 ``layers/fused_moe/router/gate_linear.py``, ``GateLinear``.
_ROUTER_KERNELS = frozenset({(9, 0), (10, 0), (10, 1), (10, 3)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """What an operator deploys.

    Attributes:
        gpu: None where there is none or it is unknown; then there is no budget.
        vllm_version: None for the newest known.
        env: environment variables that vLLM reads.
        flashinfer: whether FlashInfer is installed; None for what the release's image ships.
        calibration: terms that were measured, to be used instead of estimates.
    """

    model: ModelConfig
    engine_args: EngineArgs
    gpu: Gpu | None
    vllm_version: VllmVersion | None
    env: Mapping[str, str] = field(default_factory=dict)
    flashinfer: bool | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What the deployment ought to use, before anything is measured.

    Attributes:
        supported: whether all of it is described exactly; if not, nothing else is set.
        reason: one sentence why not.
        weights_bytes: of every rank, ordered by (pp_rank, tp_rank).
        budget: of the tightest rank; None without a GPU.
        budgets: of every rank, ordered likewise; empty without a GPU.
        plans: one per asked number, or one for what the deployment itself says or leaves.
        bytes_per_token: KV bytes per token of a long request, per rank.
        layout: what running requests hold; known where no plan can be made, too, even if for that
            the deployment as a whole is not ``supported``.
    """

    supported: bool
    reason: str | None = None
    resolved: ResolvedArgs | None = None
    weights_bytes: tuple[Bytes, ...] | None = None
    budget: MemoryBudget | None = None
    budgets: tuple[MemoryBudget, ...] = ()
    plans: tuple[KVCachePlan, ...] = ()
    bytes_per_token: tuple[Bytes, ...] | None = None
    layout: KVCacheLayout | None = None


def predict(
    deployment: Deployment,
    *,
    available_kv_cache_bytes: Sequence[int | Sequence[int]] | None = None,
) -> Prediction:
    """Predict weights, memory budget and KV cache of a deployment.

    Args:
        deployment: what is deployed.
        available_kv_cache_bytes: plan the cache for these bytes per rank instead; an inner
            sequence holds one number per pipeline stage.

    Returns:
        The prediction; ``supported`` false with a reason where it would not be exact.

    Raises:
        EngineArgsError: an inner sequence does not hold one number per stage, or a calibration's
            arguments are none of vLLM's.
    """
    try:
        return _Prediction(deployment).predict(available_kv_cache_bytes)
    except Refusal as refused:
        return Prediction(supported=False, reason=str(refused))


class _Prediction:
    """One prediction under way."""

    def __init__(self, deployment: Deployment) -> None:
        described, args = deployment.model, deployment.engine_args
        if described.unsupported is not None or described.model is None:
            raise Refusal(described.unsupported or "the model is not described exactly")
        if args.not_covered:
            names = ", ".join(args.not_covered)
            raise Refusal(f"the effect of these arguments is not described exactly yet: {names}")
        self.speculative = read_speculative(args.speculative_config)
        self.deployment = deployment
        self.model = described.model.without_towers(args.allows_modality)
        self.version = deployment.vllm_version or NEWEST_KNOWN
        _check_release(self.model, self.version)
        self.quantization = _quantization(described, self.model, deployment)
        self.resolved = resolve(
            described,
            args,
            gpu=deployment.gpu,
            version=self.version,
            quantization=self.quantization,
            env=deployment.env,
        )
        self.draft = self._draft()
        self.widths = self._widths()
        self.ranks = ranks(
            tensor_parallel=self.resolved.tensor_parallel_size,
            pipeline_parallel=self.resolved.pipeline_parallel_size,
            data_parallel=self.resolved.data_parallel_size,
            expert_parallel=self.resolved.enable_expert_parallel,
            encoder_data_parallel=args.mm_encoder_tp_mode == "data",
            redundant_experts=redundant_experts(args, self.model, self.quantization),
        )
        self.stages = self._stages()

    def predict(self, asked: Sequence[int | Sequence[int]] | None) -> Prediction:
        self._check_layout()
        weights = self._weights()
        budgets = self._budgets(weights)
        planner = self._known_planner()
        layout = None if planner is None else self._layout(planner)
        plans: tuple[KVCachePlan, ...] = ()
        if planner is not None and self._knows_block_size():
            self.resolved = replace(
                self.resolved,
                block_size=planner.block_size,
                kv_cache_dtype=planner.kv_cache_dtype or self.resolved.kv_cache_dtype,
            )
            try:
                plans = self._plans(planner, asked, budgets)
            except Refusal as refused:
                return Prediction(supported=False, reason=str(refused), layout=layout)
        return Prediction(
            supported=True,
            layout=layout,
            resolved=self.resolved,
            weights_bytes=weights,
            budget=_tightest(budgets, planner),
            budgets=tuple(budgets or ()),
            plans=plans,
            bytes_per_token=None if planner is None else planner.bytes_per_token(),
        )

    def _draft(self) -> Model | None:
        """The draft model; the target is then built as it is beside one."""
        speculative, described = self.speculative, self.deployment.model
        if speculative is None:
            return None
        from vllm_capacity.predict.models.drafts import (  # noqa: PLC0415 (loads many families)
            Target,
            beside_draft,
            build_draft,
        )

        faults: list[Fault] = []
        config = speculative.draft_config
        draft = build_draft(
            speculative.method,
            Target(
                architecture=described.architecture,
                config=Fields(self.model.text_values or described.text, faults=faults),
                model=self.model,
                max_model_len=self.resolved.max_model_len,
            ),
            None if config is None else Fields(config, faults=faults),
            num_speculative_tokens=speculative.num_speculative_tokens,
        )
        if faults:
            fault = faults[0]
            raise Refusal(f"speculative_config: {fault.key} {fault.problem}")
        self.model = beside_draft(self.model, speculative.method)
        return draft

    def _widths(self) -> Widths:
        """Source: vLLM 0.32 ``custom_op.py``: compiled models run without custom operations."""
        deployment, gpu = self.deployment, self.deployment.gpu
        compiled = self.model.compiled and not self.resolved.enforce_eager
        capability = None if gpu is None else gpu.capability
        return Widths(
            dtype=self.resolved.dtype,
            quantization=self.quantization,
            flashinfer=bool(deployment.flashinfer) and not compiled,
            router_kernels=capability is None or capability in _ROUTER_KERNELS,
            capability=capability,
        )

    def _stages(self) -> tuple[StageModel, ...]:
        divided = self._stage_layers(self.model)
        return tuple(StageModel.of(self.model, layers) for layers in divided)

    def _stage_layers(self, model: Model) -> tuple[range, ...]:
        stages, env = self.resolved.pipeline_parallel_size, self.deployment.env
        try:
            return stage_layers(len(model.layers), stages, env)
        except ValueError as error:
            raise Refusal(f"vLLM refuses to start: {error}") from None

    def _check_layout(self) -> None:
        sparse = [any(layer.is_sparse for layer in stage.layers) for stage in self.stages]
        if self.model.is_moe and not (all(sparse) or self.model.dense_stages):
            # Source: vLLM 0.32 models/qwen3_moe.py, models/glm4_moe.py.
            raise Refusal("vLLM refuses to start: a pipeline stage has no sparse layer")
        if len(self.stages) > 1 and self.model.stages_refusal is not None:
            raise Refusal(self.model.stages_refusal)
        reason = self._context_parallel_refusal()
        reason = reason or refusal(self.stages[0], self.ranks[0], self.quantization)
        if reason is not None:
            raise Refusal(reason)

    def _context_parallel_refusal(self) -> str | None:
        size = self.deployment.engine_args.decode_context_parallel_size or 1
        return context_parallel_refusal(self.model, self.resolved.tensor_parallel_size, size)

    def _weights(self) -> tuple[Bytes, ...]:
        # Tensor-parallel ranks differ only where experts do not divide.
        known: dict[tuple[int, int], Bytes] = {}
        sizes = []
        for rank in self.ranks:
            odd = rank.tp_rank if self.model.is_moe and rank.expert_parallel > 1 else 0
            if (rank.pp_rank, odd) not in known:
                stage = self.stages[rank.pp_rank]
                known[rank.pp_rank, odd] = weights_bytes(stage, rank, self.widths)
            sizes.append(known[rank.pp_rank, odd])
        return tuple(sizes)

    def _knows_block_size(self) -> bool:
        """Whether it is known to be a GPU's, a CPU's, or the operator's own."""
        args = self.deployment.engine_args
        given = (self.deployment.gpu, args.block_size, args.kv_cache_memory_bytes)
        return any(each is not None for each in given)

    def _known_planner(self) -> Planner | None:
        """The planner; without a GPU it is no refusal that the cache hangs on which it is."""
        try:
            return self._planner()
        except Refusal:
            if self._knows_block_size():
                raise
            return None

    def _planner(self) -> Planner:
        firsts = {rank.pp_rank: rank for rank in reversed(self.ranks)}
        stages = [list(stage.caches(firsts[i])) for i, stage in enumerate(self.stages)]
        return deployed_planner(
            self.model,
            stages,
            draft=() if self.draft is None else tuple(self._draft_stage().caches(self.ranks[-1])),
            args=self.deployment.engine_args,
            resolved=self.resolved,
            speculative=self.speculative,
            where=Surroundings(
                gpu=self.deployment.gpu,
                flashinfer=self.deployment.flashinfer,
                env=self.deployment.env,
                version=self.version,
            ),
        )

    def _layout(self, planner: Planner) -> KVCacheLayout:
        overlaps = self.resolved.max_concurrent_batches > 1
        return KVCacheLayout(
            specs=tuple(group.spec for group in planner.groups),
            # Source: vLLM 0.32 platforms/cpu.py: on a CPU, one step after another.
            slots_ahead_tokens=slots_ahead(
                self.speculative, overlaps=overlaps and not self._is_on_cpu()
            ),
            max_num_batched_tokens=self.resolved.max_num_batched_tokens,
        )

    def _is_on_cpu(self) -> bool:
        """A vLLM on a CPU declares its cache in bytes."""
        return (
            self.deployment.gpu is None
            and self.deployment.engine_args.kv_cache_memory_bytes is not None
        )

    def _plans(
        self,
        planner: Planner,
        asked: Sequence[int | Sequence[int]] | None,
        budgets: Sequence[MemoryBudget] | None,
    ) -> tuple[KVCachePlan, ...]:
        if asked is not None:
            return tuple(planner.plan(self._per_rank(number), "asked") for number in asked)
        args = self.deployment.engine_args
        if args.num_gpu_blocks_override is not None:
            return (planner.plan(self._per_rank(0), "num_gpu_blocks_override"),)
        if args.kv_cache_memory_bytes:
            given = self._per_rank(args.kv_cache_memory_bytes)
            return (planner.plan(given, "kv_cache_memory_bytes"),)
        if budgets is None:
            return ()
        left = [budget.kv_cache_bytes for budget in budgets]
        plan = planner.plan(left, "predicted budget")
        heaviest = max(budget.weights_bytes for budget in budgets)
        gpu = self.deployment.gpu
        if gpu is not None and heaviest > gpu.total_memory_bytes:
            plan = replace(plan, error=_out_of_memory(heaviest, gpu), estimated_max_model_len=None)
        return (plan,)

    def _per_rank(self, number: int | Sequence[int]) -> list[int]:
        if isinstance(number, int):
            return [number] * len(self.ranks)
        if len(number) != len(self.stages):
            problem = f"must hold one number for each of {len(self.stages)} pipeline stages"
            fault = Fault("available_kv_cache_bytes", list(number), problem)
            raise EngineArgsError("available_kv_cache_bytes", [fault])
        return [number[rank.pp_rank] for rank in self.ranks]

    def _beside(self, stage: StageModel, rank: Rank, weights: Bytes) -> tuple[Estimate, ...]:
        """What takes memory beside the model's own weights, or spares it."""
        args = self.deployment.engine_args
        lora = lora_bytes(lora_slots(args), stage, rank, self.widths.element_bytes)
        offloaded = _offloaded(args.cpu_offload_gb, weights)
        draft = self._draft_weights(rank)
        return tuple(each for each in (draft, lora, offloaded) if each is not NOTHING)

    def _draft_stage(self) -> StageModel:
        draft, speculative = self.draft, self.speculative
        if draft is None or speculative is None:
            raise Refusal("no model drafts")
        if not speculative.is_whole_model:
            return StageModel(model=draft, layers=draft.layers)
        return StageModel.of(draft, self._stage_layers(draft)[-1])

    def _draft_weights(self, rank: Rank) -> Estimate:
        """A draft model without the embedding and head that it shares with its target.

        Source: vLLM 0.32 ``v1/spec_decode/eagle.py``: they are shared after loading where the
        checkpoint has no other ones for the draft, hence the upper bound.
        """
        if self.draft is None or not rank.is_last_stage:
            return NOTHING
        whole = self._draft_stage()
        if self.speculative is not None and self.speculative.is_whole_model:
            size = weights_bytes(whole, rank, replace(self.widths, quantization=Unquantized()))
            return Estimate(bytes=size, low=size, high=size, origin="the draft model")
        own = tuple(
            each
            for each in whole.model.outside
            if not isinstance(each.part, TokenEmbedding | LogitsHead)
        )
        alone = StageModel(model=replace(whole.model, outside=own), layers=whole.layers)
        size = weights_bytes(alone, rank, self.widths)
        most = weights_bytes(whole, rank, self.widths)
        return Estimate(bytes=size, low=size, high=most, origin="the draft model")

    def _budgets(self, weights: Sequence[Bytes]) -> list[MemoryBudget] | None:
        gpu, resolved = self.deployment.gpu, self.resolved
        known = resolved.max_num_seqs is not None and resolved.max_num_batched_tokens is not None
        if gpu is None or not known or gpu.total_memory_bytes <= 0:
            return None
        shared: dict[tuple[int, int], MemoryBudget] = {}
        pairs = list(zip(self.ranks, weights, strict=True))
        for rank, size in pairs:
            if (rank.pp_rank, size) not in shared:
                shared[rank.pp_rank, size] = self._budget(gpu, rank, size)
        found = self._corrections()
        return [calibrated(shared[rank.pp_rank, size], found) for rank, size in pairs]

    def _corrections(self) -> Corrections:
        """What was measured, beside what is predicted for the deployment that was measured."""
        calibration = self.deployment.calibration
        if calibration is None:
            return {}
        args = measured_args(calibration, self.deployment.engine_args)
        baseline = predict(replace(self.deployment, engine_args=args, calibration=None)).budget
        return {} if baseline is None else corrections(calibration, baseline)

    def _release_of_estimates(self, sampler: Sampler) -> VllmVersion:
        """The release whose start-ups estimate what is not derived.

        A release that is not known is taken to be of the time of its sampler.
        """
        if self.deployment.vllm_version is not None:
            return self.deployment.vllm_version
        return SORTING_RELEASE if sampler.sorts else NEWEST_KNOWN

    def _measured_elsewhere(self, rank: Rank, sampler: Sampler) -> dict[str, Estimate]:
        """Terms that are not derived; bounds hold every release's where it is not known."""
        release, env = self._release_of_estimates(sampler), self.deployment.env

        def graphs(version: VllmVersion) -> Estimate:
            return cuda_graphs(
                version,
                env,
                enforce_eager=self.resolved.enforce_eager,
                num_layers=len(self.stages[rank.pp_rank].layers),
                max_num_seqs=self.resolved.max_num_seqs or 0,
            )

        terms = {"non_torch": non_torch(rank, release), "cuda_graph": graphs(release)}
        if self.deployment.vllm_version is not None:
            return terms
        for other in (SORTING_RELEASE, NEWEST_KNOWN):
            terms["non_torch"] = terms["non_torch"].widened(non_torch(rank, other))
            terms["cuda_graph"] = terms["cuda_graph"].widened(graphs(other))
        return terms

    def _budget(self, gpu: Gpu, rank: Rank, weights: Bytes) -> MemoryBudget:
        resolved, env = self.resolved, self.deployment.env
        sampler = choose_sampler(
            self.deployment.vllm_version,
            env,
            flashinfer=self.deployment.flashinfer,
            capability=gpu.capability,
        )
        stage, release = self.stages[rank.pp_rank], self._release_of_estimates(sampler)
        peak = activation_peak(
            stage,
            rank,
            batch=Batch(
                max_num_seqs=resolved.max_num_seqs or 0,
                max_num_batched_tokens=resolved.max_num_batched_tokens or 0,
                max_model_len=resolved.max_model_len,
                block_size=resolved.block_size or 16,
                compiled=self.model.compiled and not resolved.enforce_eager,
                data_parallel=resolved.data_parallel_size,
            ),
            sampler=sampler,
            version=release,
            widths=self.widths,
        )
        loaded, allocated = loaded_bytes(stage, rank, self.widths, release)
        return memory_budget(
            requested=requested_bytes(gpu, resolved.gpu_memory_utilization, self.version),
            loaded=loaded,
            allocated=allocated,
            beside=self._beside(stage, rank, weights),
            activation=peak,
            **self._measured_elsewhere(rank, sampler),
        )


def _out_of_memory(weights: Bytes, gpu: Gpu) -> str:
    return (
        f"CUDA out of memory while the weights load: {format_gib(weights)} on a GPU of "
        f"{format_gib(gpu.total_memory_bytes)}. Share them among more GPUs (tensor_parallel_size)."
    )


def _offloaded(gibibytes: float | None, weights: Bytes) -> Estimate:
    """Weights that stay in host memory, as negative bytes.

    Source: vLLM 0.32 ``model_executor/offloader/uva.py``: whole parameters until the limit is
    reached, so that at most one more goes.
    """
    limit = min(int((gibibytes or 0.0) * GIB), weights)
    if not limit:
        return NOTHING
    least = Bytes(-min(weights, limit + GIB // 4))
    return Estimate(
        bytes=Bytes(-limit), low=least, high=Bytes(-limit), origin="less what is offloaded"
    )


def _quantization(described: ModelConfig, model: Model, deployment: Deployment) -> Quantization:
    capability = None if deployment.gpu is None else deployment.gpu.capability
    quantization, reason = read_quantization(
        described.quantization_config,
        argument=deployment.engine_args.quantization,
        model_type=described.model_type,
        expert_dtype=_text_or_none(described.text.get("expert_dtype")),
        renaming=_renaming(described.architecture, model),
        capability=capability,
        flashinfer=deployment.flashinfer is not False,
        cutlass=bool(deployment.flashinfer) and capability is not None and capability[0] == _HOPPER,
    )
    if quantization is None:
        raise Refusal(reason or "the quantisation is not described exactly")
    if model.quantized or isinstance(quantization, Unquantized):
        return quantization
    raise Refusal(f"quantised weights of {model.source} are not described exactly yet")


def _renaming(architecture: str, model: Model) -> Renaming | None:
    if model.renames != NO_RENAMES:
        return Renaming(**model.renames._asdict())
    return RENAMINGS.get(architecture)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _check_release(model: Model, version: VllmVersion) -> None:
    if version < OLDEST_KNOWN:
        raise Refusal(f"releases before {OLDEST_KNOWN} are not described exactly yet")
    if model.oldest_release is not None and version < VllmVersion(*model.oldest_release):
        since = ".".join(map(str, model.oldest_release))
        raise Refusal(f"{model.source} is described exactly from vLLM {since} on only")


def _tightest(
    budgets: Sequence[MemoryBudget] | None, planner: Planner | None
) -> MemoryBudget | None:
    """The budget of the rank that decides the number of blocks."""
    if budgets is None or planner is None:
        return None
    pairs = zip(budgets, planner.bytes_per_block(), strict=True)
    return min(pairs, key=lambda pair: pair[0].kv_cache_bytes / (pair[1] or 1))[0]
