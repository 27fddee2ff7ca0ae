"""Print what Alertmanager sends to its webhook; stands for whoever is on call.

Usage: python print_alerts.py PORT
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def lines(notification: dict[str, Any], receiver: str) -> list[str]:
    """One line for each alert of a notification: who gets it, what it is, what to read."""
    return [
        f"{receiver} {alert['status']} {alert['labels']['alertname']}: "
        f"{alert['annotations'].get('summary', '')} {alert['annotations'].get('runbook_url', '')}"
        for alert in notification["alerts"]
    ]


class Receiver(BaseHTTPRequestHandler):
    """Takes notifications at any path; the path is the receiver's name."""

    def do_POST(self) -> None:
        """Print the alerts and say that they came."""
        length = int(self.headers.get("Content-Length", 0))
        notification = json.loads(self.rfile.read(length))
        print(*lines(notification, self.path.strip("/")), sep="\n", flush=True)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Receiver).serve_forever()
