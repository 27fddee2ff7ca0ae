"""A moving load: when requests arrive, how long they are, and what their clients do."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from vllm_capacity.errors import Fault, SettingsError
from vllm_capacity.simulate.config import SimulationConfig
from vllm_capacity.simulate.requests import RequestSpec
from vllm_capacity.units import Tokens

_SHARED_PREFIX_TOKENS = Tokens(256)


def _steady(_: float) -> float:
    return 0.6


def _ramp(seconds: float) -> float:
    """From a tenth of saturation past it in ten minutes, and again."""
    return 0.1 + 1.1 * (seconds % 600) / 600


def _burst(seconds: float) -> float:
    """Quiet, with a quarter of every minute at twice what fits."""
    return 2.0 if 30 <= seconds % 60 < 45 else 0.3


def _crowd(seconds: float) -> float:
    """Quiet, with three of every ten minutes at twice what fits."""
    return 2.0 if 120 <= seconds % 600 < 300 else 0.3


def _diurnal(seconds: float) -> float:
    """A day in ten minutes, its morning first, with shorter waves upon it."""
    day = math.sin(math.tau * seconds / 600)
    wave = math.sin(math.tau * seconds / 90)
    return 0.6 + 0.3 * day + 0.2 * wave


LOAD_PATTERNS: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {"diurnal": _diurnal, "steady": _steady, "ramp": _ramp, "burst": _burst, "crowd": _crowd}
)
"""Load at a time in seconds; 1.0 fills the pool on average."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request and the second at which it comes."""

    at_seconds: float
    spec: RequestSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The clients of one simulated server. Equal workloads give equal arrivals.

    Attributes:
        pattern: a name in ``LOAD_PATTERNS``.
        seed: seed of everything random.
        prompt_tokens_mean: mean length of prompts without what they share, log-normally spread.
        output_tokens_mean: mean length of answers, log-normally spread.
        shared_prefix_share: share of the prompts that begin with one of a few shared prefixes.
        shared_prefix_tokens: length of a shared prefix.
        num_shared_prefixes: how many shared prefixes there are.
        parallel_share: share of the clients that want ``parallel_n`` answers.
        parallel_n: answers that those want.
        hang_up_share: share of the clients that leave early, some before the first token.
        external_share: share of the prompts whose first half an external cache holds.
        pinned_share: share of the requests that a router sends to the first engine in any case.

    Raises:
        SettingsError: with every value that makes no load.
    """

    pattern: str = "diurnal"
    seed: int = 0
    prompt_tokens_mean: float = 600.0
    output_tokens_mean: float = 250.0
    shared_prefix_share: float = 0.3
    shared_prefix_tokens: Tokens = _SHARED_PREFIX_TOKENS
    num_shared_prefixes: int = 4
    parallel_share: float = 0.03
    parallel_n: int = 3
    hang_up_share: float = 0.04
    external_share: float = 0.0
    pinned_share: float = 0.0

    def __post_init__(self) -> None:
        faults = [
            Fault(name, getattr(self, name), "must be a share, 0 to 1")
            for name in (
                "shared_prefix_share",
                "parallel_share",
                "hang_up_share",
                "external_share",
                "pinned_share",
            )
            if not 0 <= getattr(self, name) <= 1
        ]
        faults += [
            Fault(name, getattr(self, name), "must be at least 1")
            for name in (
                "prompt_tokens_mean",
                "output_tokens_mean",
                "shared_prefix_tokens",
                "num_shared_prefixes",
                "parallel_n",
            )
            if not 1 <= getattr(self, name) < math.inf
        ]
        if self.pattern not in LOAD_PATTERNS:
            known = ", ".join(LOAD_PATTERNS)
            faults.append(Fault("pattern", self.pattern, f"must be one of {known}"))
        if faults:
            raise SettingsError("workload", faults)

    def arrivals(self, config: SimulationConfig) -> Iterator[Arrival]:
        """Arrivals without end, earliest first, at a pace that suits the server.

        A Poisson process whose rate follows the pattern, thinned from its highest rate.
        """
        random = Random(self.seed)  # noqa: S311  # a load, no secret
        level = LOAD_PATTERNS[self.pattern]
        saturating = self.saturating_requests_per_second(config)
        highest = 2.0
        seconds = 0.0
        while True:
            seconds += random.expovariate(highest * saturating)
            if random.random() * highest < level(seconds):
                yield Arrival(seconds, self._spec(random, config.max_model_len))

    def saturating_requests_per_second(self, config: SimulationConfig) -> float:
        """Arrival rate that just fills the pools, by Little's law.

        A request holds its prompt and on average half of its output, as long as it decodes; what
        is shared is there once and hardly counts.
        """
        answers = 1 + self.parallel_share * (self.parallel_n - 1)
        held = self.prompt_tokens_mean + self.output_tokens_mean / 2
        in_pool = config.num_usable_blocks * config.block_size / held
        concurrent = min(in_pool, config.max_num_seqs)
        # Every step decodes all of them and prefills those that take the place of the finished.
        step_tokens = concurrent * (1 + self.prompt_tokens_mean / self.output_tokens_mean)
        step = config.step_base_seconds + config.step_seconds_per_token * step_tokens
        per_engine = concurrent / (self.output_tokens_mean * step)
        return config.data_parallel_size * per_engine / answers

    def _spec(self, random: Random, max_model_len: int) -> RequestSpec:
        longest = max_model_len - 1
        prompt_tokens = _length(random, self.prompt_tokens_mean, longest)
        stop_after = _length(random, self.output_tokens_mean, longest)
        # Most clients ask for more than the model says; some are cut short.
        max_tokens = max(1, round(stop_after * random.uniform(0.7, 3.0)))
        shares = random.random() < self.shared_prefix_share
        prefix = random.randrange(self.num_shared_prefixes) if shares else None
        prefix_tokens = self.shared_prefix_tokens if shares else 0
        prompt_tokens = min(prompt_tokens + prefix_tokens, longest)
        parallel = random.random() < self.parallel_share
        hang_up_tokens, hang_up_seconds = self._hang_up(random, stop_after)
        return RequestSpec(
            prompt_tokens=Tokens(prompt_tokens),
            max_tokens=Tokens(min(max_tokens, max_model_len - prompt_tokens)),
            stop_after_tokens=Tokens(stop_after),
            n=self.parallel_n if parallel else 1,
            prefix=prefix,
            prefix_tokens=Tokens(min(prefix_tokens, prompt_tokens)),
            hang_up_after_tokens=hang_up_tokens,
            hang_up_after_seconds=hang_up_seconds,
            external_tokens=Tokens(prompt_tokens // 2 if self._is_external(random) else 0),
            data_parallel_rank=self._rank(random),
        )

    # Without such a cache or router nothing is drawn: all else stays as it was.
    def _is_external(self, random: Random) -> bool:
        return bool(self.external_share) and random.random() < self.external_share

    def _rank(self, random: Random) -> int | None:
        return 0 if self.pinned_share and random.random() < self.pinned_share else None

    def _hang_up(self, random: Random, output_tokens: int) -> tuple[Tokens | None, float | None]:
        if random.random() >= self.hang_up_share:
            return None, None
        if random.random() < 0.25:
            return None, random.uniform(0.1, 5.0)
        return Tokens(random.randint(1, output_tokens)), None


def _length(random: Random, mean: float, longest: int) -> int:
    """A log-normal length of the given mean, 1 to ``longest``."""
    sigma = 0.7  # the longest of a hundred is about four times the mean
    drawn = random.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)
    return min(max(1, round(drawn)), longest)
