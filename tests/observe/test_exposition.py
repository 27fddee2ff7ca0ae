"""The fast parser against the format's rules and against prometheus_client's parser."""

import math
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.errors import ExpositionError
from vllm_capacity.observe.exposition import MAX_REMEMBERED, MAX_SAMPLES, ExpositionParser, Sample
from vllm_capacity.observe.metric_names import WANTED_NAMES

PAGE = (Path(__file__).parent.parent / "data" / "vllm-0.32-metrics.txt").read_text()
NAMES = ("a", "vllm:running", "vllm:running_total")


def parse(text: str, *names: str) -> list[Sample]:
    return ExpositionParser(names or NAMES).parse(text.encode())


def by_prometheus_client(
    text: str, names: tuple[str, ...]
) -> list[tuple[str, dict[str, str], float]]:
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in names
    ]


def by_us(samples: list[Sample]) -> list[tuple[str, dict[str, str], float]]:
    return [(series.name, dict(series.labels), value) for series, value in samples]


def sort_key(item: tuple[str, dict[str, str], float]) -> tuple[str, str]:
    return item[0], str(sorted(item[1].items()))


def test_a_recorded_page_gives_the_values_that_prometheus_client_gives() -> None:
    ours = [
        (series.name, dict(series.labels), value)
        for series, value in ExpositionParser(WANTED_NAMES).parse(PAGE.encode())
    ]
    theirs = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(PAGE)
        for sample in family.samples
        if sample.name in set(WANTED_NAMES)
    ]
    assert sorted(ours, key=sort_key) == sorted(theirs, key=sort_key)
    assert len(ours) > 50


def test_every_further_page_is_read_like_the_first() -> None:
    parser = ExpositionParser(WANTED_NAMES)
    first = parser.parse(PAGE.encode())
    changed = re.sub(r"(num_requests_running\{[^}]*\}) \S+", r"\1 17.0", PAGE)
    second = parser.parse(changed.encode())
    assert [series for series, _ in first] == [series for series, _ in second]
    running = [value for series, value in second if series.name.endswith("requests_running")]
    assert running == [17.0]


@pytest.mark.parametrize(
    ("line", "labels", "value"),
    [
        ("a 1", {}, 1.0),
        ("a\t1", {}, 1.0),
        ("  a  1  ", {}, 1.0),
        ("a{} 1", {}, 1.0),
        ('a{x="1"} 2.5', {"x": "1"}, 2.5),
        ('a{x="1",y="2",} 3', {"x": "1", "y": "2"}, 3.0),
        ('a { x = "1" , y = "2" } 3', {"x": "1", "y": "2"}, 3.0),
        ('a{x="with spaces } and = signs"} 4', {"x": "with spaces } and = signs"}, 4.0),
        (r'a{x="quote \" slash \\ line \n"} 5', {"x": 'quote " slash \\ line \n'}, 5.0),
        ('a{x="é"} 6', {"x": "é"}, 6.0),
        ("a 1e3", {}, 1000.0),
        ("a +Inf", {}, math.inf),
        ("a 7 1700000000000", {}, 7.0),
        ('a{x="1"} 7 # {trace_id="b"} 0.5 1700000000.0', {"x": "1"}, 7.0),
        ("a 8\r", {}, 8.0),
    ],
)
def test_a_line_is_read_as_the_format_says(line: str, labels: dict[str, str], value: float) -> None:
    parser = ExpositionParser(NAMES)
    for _ in range(2):  # at first sight, and from memory
        [(series, read)] = parser.parse(f"{line}\n".encode())
        assert (series.name, dict(series.labels), read) == ("a", labels, value)


def test_not_a_number_stays_so() -> None:
    [(_, value)] = parse("a NaN\n")
    assert math.isnan(value)


def test_a_name_is_read_whole_or_not_at_all() -> None:
    text = (
        "ab 1\na_b 2\na:b 3\nvllm:running_created 4\nvllm:running_total 5\nvllm:running 6\n# a 7\n"
    )
    assert [(series.name, value) for series, value in parse(text)] == [
        ("vllm:running_total", 5.0),
        ("vllm:running", 6.0),
    ]


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("a 1\na 2", "was cut"),
        ("a\n", "no value"),
        ('a{x="1"}\n', "no value"),
        ("a one\n", "no number: 'one'"),
        ("a 1_0\n", "no number: '1_0'"),
        ('a{x="1} 2\n', "labels that cannot be read"),
        ("a{x=1} 2\n", "labels that cannot be read"),
    ],
)
def test_a_page_that_cannot_be_read_fails_whole_with_the_reason(page: str, problem: str) -> None:
    with pytest.raises(ExpositionError, match=re.escape(problem)):
        parse(page)


def test_a_page_of_too_many_wanted_samples_is_refused() -> None:
    with pytest.raises(ExpositionError, match="more than"):
        parse("a 1\n" * (MAX_SAMPLES + 1))


def test_what_is_remembered_stays_bounded() -> None:
    parser = ExpositionParser(NAMES)
    for page in range(3):
        parser.parse("".join(f'a{{x="{page}-{i}"}} 1\n' for i in range(MAX_REMEMBERED)).encode())
    assert len(parser._remembered) <= MAX_REMEMBERED


label_values = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20)
series = st.tuples(
    st.sampled_from([*NAMES, "b", "vllm:runnin", "vllm:running_created"]),
    st.dictionaries(st.sampled_from(["x", "engine", "model_name"]), label_values, max_size=3),
    st.floats(allow_nan=False),
)


def escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


@given(st.lists(series, max_size=20))
def test_any_page_gives_the_values_that_prometheus_client_gives(
    page: list[tuple[str, dict[str, str], float]],
) -> None:
    lines = []
    for name, labels, value in page:
        pairs = ",".join(f'{key}="{escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{pairs}}} {value!r}\n")
    text = "".join(lines)
    parser = ExpositionParser(NAMES)
    once, again = parser.parse(text.encode()), parser.parse(text.encode())
    assert once == again
    assert sorted(by_us(once), key=sort_key) == sorted(
        by_prometheus_client(text, NAMES), key=sort_key
    )


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_words(page: bytes) -> None:
    with suppress(ExpositionError):
        assert ExpositionParser(NAMES).parse(page) is not None
