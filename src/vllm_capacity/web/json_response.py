"""JSON documents of the API: compact, compressed where the client takes it, never stored."""

import gzip
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

_GZIP_FROM_BYTES = 1024


def json_response(request: Request, document: Any) -> Response:
    """The document as compact UTF-8 JSON."""
    body = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    headers = {"Cache-Control": "no-store", "Vary": "Accept-Encoding"}
    accepted = request.headers.get("accept-encoding", "")
    if "gzip" in accepted and len(body) >= _GZIP_FROM_BYTES:
        body = gzip.compress(body, compresslevel=1)
        headers["Content-Encoding"] = "gzip"
    return Response(body, headers=headers, media_type="application/json")
