"""The page at ``/`` and its files, from the package; nothing is built and nothing is fetched."""

import gzip
import hashlib
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_HEADERS = {
    # Asked again each time, which costs 304 and no body: a new version never meets old files.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
_INDEX = "index.html"
_TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page as it is sent.

    Attributes:
        media_type: what it is.
        body: its bytes.
        compressed: the same by gzip.
        etag: changes with its bytes.
    """

    media_type: str
    body: bytes
    compressed: bytes
    etag: str

    @classmethod
    def of(cls, name: str, body: bytes) -> "PageFile":
        """The file of that name."""
        etag = f'W/"{hashlib.sha256(body).hexdigest()[:20]}"'  # weak: the same however encoded
        media_type = _TYPES[name.rpartition(".")[2]]
        return cls(media_type, body, gzip.compress(body, mtime=0), etag)

    def response(self, request: Request) -> Response:
        """The file; without a body where the client has it already."""
        headers = {**_HEADERS, "ETag": self.etag}
        known = request.headers.get("if-none-match", "").split(",")
        if self.etag in (tag.strip() for tag in known):
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.body, headers=headers, media_type=self.media_type)
        headers["Content-Encoding"] = "gzip"
        return Response(self.compressed, headers=headers, media_type=self.media_type)


def page_files(telemetry_path: str = "/metrics") -> dict[str, PageFile]:
    """Every file of the page by its name.

    Args:
        telemetry_path: where the page says that the metrics are.
    """
    folder = files("vllm_capacity.web").joinpath("page")
    bodies = {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}
    bodies[_INDEX] = _completed(bodies[_INDEX].decode(), telemetry_path).encode()
    return {name: PageFile.of(name, body) for name, body in bodies.items()}


def page_routes(telemetry_path: str = "/metrics") -> list[Route]:
    """The routes of the page. What is no file of it is not found: no path is ever opened."""
    known = page_files(telemetry_path)
    index = known.pop(_INDEX)

    async def page(request: Request) -> Response:
        return index.response(request)

    async def static(request: Request) -> Response:
        file = known.get(request.path_params["name"])
        return Response(status_code=404) if file is None else file.response(request)

    return [Route("/", page), Route("/static/{name}", static)]


def _completed(index: str, telemetry_path: str) -> str:
    """The page with its links to the metrics."""
    path = escape(telemetry_path.removeprefix("/"))
    return index.replace('href="metrics"', f'href="{path}"')
