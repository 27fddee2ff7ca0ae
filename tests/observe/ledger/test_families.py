"""What requests found in the cache, told again when it is known better."""

from vllm_capacity.observe.engine_snapshot import Histogram
from vllm_capacity.observe.ledger.admission import Arrivals
from vllm_capacity.observe.ledger.cohorts import CohortBook
from vllm_capacity.observe.ledger.departure import Departure, Taken
from vllm_capacity.observe.ledger.families import Families
from vllm_capacity.observe.ledger.samples import Samples


def families() -> Families:
    """Those of clients who ask for one sample each, in blocks of 16 tokens."""
    samples = Samples()
    for count in (0, 50):
        samples.record(Histogram(count=count, total=count, buckets=((1.0, count), (2.0, count))))
    told = Families(samples)
    told.block_size, told.mean_prompt_tokens = 16, 200.0
    return told


def come(told: Families, book: CohortBook, arrived: float, *sums: float) -> None:
    requests, prompts, cached = sums
    for cohort in told.come(book, Arrivals(arrived, int(requests), prompts, cached, 200.0)):
        book.admit(cohort)


def departed(arrived: float, requests: int, prompts: float, cached: float) -> Departure:
    return Departure(
        requests=requests,
        arrived_seconds=arrived,
        arrived_deviation_seconds=0.4,
        prompt_tokens=prompts,
        cached_tokens=cached,
    )


def test_those_who_have_just_left_are_not_told_apart_again() -> None:
    told, book = families(), CohortBook()
    come(told, book, 0.0, 3, 600, 128)
    come(told, book, 1.0, 1, 200, 64)
    first = next(cohort for cohort in book.cohorts if cohort.arrived_seconds == 0.0)
    others = [c for c in book.cohorts if c is not first and c.arrived_seconds == 0.0]
    for cohort in (first, *others):
        cohort.take(cohort.requests)  # all hung up; nobody has swept them out yet
    last = book.cohorts[-1]
    taken = [Taken(last.take(1.0), last)]
    told.tell_again(book, departed(1.0, 1, 200, 80), taken)
    assert book.requests == 0
