"""The status port: /healthz (the process lives), /readyz (it can accept associations), /status (JSON), /live (JSON).

/live is the part of /status that only the running process knows, and asks nobody else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from config.settings import Settings
from daemon.archive import Archive
from daemon.ledger import Ledger
from daemon.status import collect
from model.bundle import Bundle

REQUEST_LIMIT_S = 10


class StatusServer:
    """Serves on `[status] host` and `port`; `ready` is what /readyz answers, `live` gives what /live does."""

    def __init__(
        self, settings: Settings, ledger: Ledger, archive: Archive, bundle: Bundle, live: Callable[[], dict[str, Any]]
    ) -> None:
        self.ready = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_LIMIT_S

            def do_GET(self) -> None:
                if self.path == "/healthz":
                    self._answer(200, {"alive": True})
                elif self.path == "/readyz":
                    self._answer(200 if owner.ready else 503, {"ready": owner.ready})
                elif self.path == "/status":
                    self._answer(200, collect(ledger, archive, bundle, live()))
                elif self.path == "/live":
                    self._answer(200, live())
                else:
                    self._answer(404, {"paths": ["/healthz", "/readyz", "/status", "/live"]})

            def _answer(self, code: int, content: object) -> None:
                body = json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Requests are not worth a log line."""

        self._server = ThreadingHTTPServer((settings.status.host, settings.status.port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
