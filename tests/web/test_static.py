"""The page's files: what they may do, how they are sent, and that they can be read."""

import asyncio
import gzip
import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

import vllm_capacity.web
from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.web.application import web_application
from vllm_capacity.web.static import page_files

PAGE = Path(vllm_capacity.web.__file__).parent / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))
INDEX = (PAGE / "index.html").read_text(encoding="utf-8")
STYLE = (PAGE / "style.css").read_text(encoding="utf-8")
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}


def get(path: str, *, telemetry_path: str = "/metrics", **headers: str) -> httpx.Response:
    application = web_application(
        CollectorRegistry(), lambda: FleetAssessment(targets=()), telemetry_path=telemetry_path
    )

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app=application)
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.get(path, headers={"accept-encoding": "identity", **named})

    return asyncio.run(request())


class Tags(HTMLParser):
    """Every tag of a document with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags() -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(INDEX)
    return parser.found


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/static/page.js", "text/javascript; charset=utf-8"),
        ("/static/style.css", "text/css; charset=utf-8"),
        ("/static/favicon.svg", "image/svg+xml"),
    ],
)
def test_files_come_with_their_type_and_a_strict_policy(path: str, media_type: str) -> None:
    response = get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert set(response.headers["content-security-policy"].split("; ")) == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_a_file_that_is_known_is_not_sent_again() -> None:
    first = get("/static/style.css")
    assert first.headers["cache-control"] == "no-cache"
    again = get("/static/style.css", if_none_match=f'"old", {first.headers["etag"]}')
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    other = get("/static/style.css", if_none_match='"old"')
    assert (other.status_code, other.content) == (200, first.content)


def test_files_come_compressed_to_those_who_take_it() -> None:
    plain, small = get("/static/style.css"), get("/static/style.css", accept_encoding="gzip")
    assert small.headers["content-encoding"] == "gzip"
    assert small.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert int(small.headers["content-length"]) < len(plain.content) / 2
    assert small.content == plain.content
    assert gzip.decompress(page_files()["page.js"].compressed) == (PAGE / "page.js").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/index.html",
        "/static/nothing.js",
        "/static/../static.py",
        "/static/%2e%2e/static.py",
        "/static/%2e%2e%2fstatic.py",
        "/static//etc/passwd",
    ],
)
def test_nothing_but_the_pages_files_is_found(path: str) -> None:
    assert get(path).status_code == 404


def test_the_page_names_the_metrics_where_they_are() -> None:
    assert get("/", telemetry_path='/deep/"numbers"').text.count('href="deep/&quot;') == 2


def test_all_files_together_are_under_100_kb() -> None:
    assert sum(len(file.body) for file in page_files().values()) < 100_000


def test_the_markup_has_no_script_style_or_address_that_the_policy_forbids() -> None:
    for tag, attributes in tags():
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "action"):
            address = attributes.get(name) or ""
            assert not address.startswith(("http", "//", "/")), f"{tag} {address}"
    assert re.findall(r"<script[^>]*>([^<]*)</script>", INDEX) == ["", ""]
    assert "<style" not in INDEX


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_set_text_as_text_and_ask_nobody_else(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert not re.search(forbidden, source)
    assert re.findall(r"https?://[^\"]+", source) in ([], ["http://www.w3.org/2000/svg"])
    assert len(source.splitlines()) < 300


def test_scripts_import_what_is_exported_and_use_it() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in SCRIPTS}
    exported = {
        name: set(
            re.findall(r"^export (?:async )?(?:const|function|class) (\w+)", source, re.MULTILINE)
        )
        for name, source in sources.items()
    }
    imported: dict[str, set[str]] = {name: set() for name in sources}
    for name, source in sources.items():
        for names, origin in re.findall(
            r'^import \{([^}]+)\} from "\./([^"]+)";', source, re.MULTILINE
        ):
            words = {word.strip() for word in names.split(",") if word.strip()}
            assert words <= exported[origin], f"{name} wants of {origin}"
            assert all(len(re.findall(rf"\b{word}\b", source)) > 1 for word in words), name
            imported[origin] |= words
        for alias, origin in re.findall(
            r'^import \* as (\w+) from "\./([^"]+)";', source, re.MULTILINE
        ):
            imported[origin] |= exported[origin]
            assert alias in source
    assert {name for name in sources if exported[name] - imported[name]} == set()


def test_every_element_that_a_script_asks_for_is_there() -> None:
    there = {attributes["id"] for _, attributes in tags() if "id" in attributes}
    asked = {
        name
        for script in SCRIPTS
        for name in re.findall(r'byId\("([^"]+)"\)', script.read_text(encoding="utf-8"))
    }
    assert len(asked) > 40
    assert asked <= there


def palette() -> dict[str, tuple[str, str]]:
    """The colours of both themes by name, light and dark."""
    found = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", STYLE)
    return {name: (light, dark) for name, light, dark in found}


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""

    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["card", "page"])
def test_text_and_marks_stand_out_from_what_is_behind_them(theme: int, ground: str) -> None:
    colours = {name: pair[theme] for name, pair in palette().items()}
    for text in ("text", "soft", "link", "ok", "warning", "critical", "unknown"):
        assert contrast(colours[text], colours[ground]) >= 4.5, text
    for mark in ("used", "predicted"):
        assert contrast(colours[mark], colours[ground]) >= 3, mark
    assert contrast(colours["used"], colours["track"]) >= 3
    assert contrast(colours["text"], colours["track"]) >= 4.5
