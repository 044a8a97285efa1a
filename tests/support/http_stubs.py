"""HTTP servers for tests, on a free loopback port."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Quiet(BaseHTTPRequestHandler):
    """HTTP/1.1, with nothing on stderr."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def http_server(handler: type[Quiet], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Requests are handled by `handler`, each connection in a thread of its own; yields the server's URL."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls:
        httpd.socket = tls.wrap_socket(httpd.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        # The tests' certificates are for localhost.
        yield f"{'https://localhost' if tls else 'http://127.0.0.1'}:{httpd.server_port}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
