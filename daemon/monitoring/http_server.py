"""Serve the status port: status page, metrics and health.

    /          the status page for a browser; it requests /overview every two seconds
    /overview  what the status page shows; JSON
    /metrics   for Prometheus
    /healthz   200 if the process is alive, 503 if it should be restarted; JSON with the reasons
    /readyz    200 if it accepts work, 503 if senders should come back later; JSON with the reasons
    /status    the same as `mammod status --json` (sends a C-ECHO to the archive)
    /live      the part of /status that only the running process knows; contacts no other system

Every path is read-only and carries no patient data.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog

from config.settings import Settings
from daemon.archive.client import Archive
from daemon.ledger import Ledger
from daemon.monitoring.monitor import Monitor
from daemon.monitoring.status_report import collect
from model.bundle import Bundle

REQUEST_TIMEOUT_S = 10
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/plots.js": ("plots.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    # Only what the page needs: nothing inline, nothing from other hosts, no framing.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

log = structlog.get_logger()


class StatusHttpServer:
    """HTTP server on `[status] host` and `port`, in its own thread.

    `live` returns the answer to /live; `monitor` answers every other path but /status.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        archive: Archive,
        bundle: Bundle,
        live: Callable[[], dict[str, Any]],
        monitor: Monitor,
    ) -> None:
        answers: dict[str, Callable[[str], tuple[int, str, bytes]]] = {
            "/metrics": lambda accept: _metrics(monitor, accept),
            "/healthz": lambda _: _verdict("alive", monitor.why_not_alive()),
            "/readyz": lambda _: _verdict("ready", monitor.why_not_ready()),
            "/overview": lambda _: _json(200, monitor.overview()),
            "/status": lambda _: _json(200, collect(ledger, archive, bundle, live())),
            "/live": lambda _: _json(200, live()),
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_TIMEOUT_S
            server_version, sys_version = "mammod", ""

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                try:
                    if path in FILES:
                        name, kind = FILES[path]
                        answer = 200, kind, _file(name)
                    elif path in answers:
                        answer = answers[path](self.headers.get("Accept", ""))
                    else:
                        answer = _json(404, {"paths": ["/", *answers]})
                except Exception as error:
                    log.error("status request failed", path=path, error=type(error).__name__)
                    answer = _json(500, {"error": "see the service's log"})
                self._send(*answer)

            def _send(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                for name, value in HEADERS.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: a request is not worth a line."""

        self._server = ThreadingHTTPServer((settings.status.host, settings.status.port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and close the port."""
        self._server.shutdown()
        self._server.server_close()


def _json(code: int, content: object) -> tuple[int, str, bytes]:
    return code, "application/json", json.dumps(content).encode()


def _verdict(what: str, reasons: list[str]) -> tuple[int, str, bytes]:
    return _json(503 if reasons else 200, {what: not reasons, "reasons": reasons})


def _metrics(monitor: Monitor, accept: str) -> tuple[int, str, bytes]:
    body, kind = monitor.metrics(accept)
    return 200, kind, body


@cache
def _file(name: str) -> bytes:
    return (PAGE / name).read_bytes()
