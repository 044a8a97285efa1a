"""An S3 server on loopback that misbehaves when told: moto's, run as `python -m
tests.support.peers.s3_server PORT FAULTS`.

FAULTS is a file, looked at for each request: a method (or *) and what is done to it.
    * 503          every request is answered with that status
    PUT die        the process ends when it has read the body
    PUT corrupt    one bit of the body is another when it is stored
    GET cut        half of the body is sent
    PUT stuck      no answer for a minute
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

Start = Callable[..., Any]


class Misbehaving:
    def __init__(self, faults: Path) -> None:
        self._faults = faults
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        fault = self._fault(environ)
        if fault.isdigit():
            start(f"{fault} {fault}", [("Content-Type", "application/xml")])
            code = {"403": "AccessDenied", "500": "InternalError"}.get(fault, "ServiceUnavailable")
            return [f"<Error><Code>{code}</Code></Error>".encode()]
        if fault:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            if fault == "die":
                os._exit(1)
            if fault == "stuck":
                time.sleep(60)
            if fault == "corrupt":
                body = bytes([body[0] ^ 1]) + body[1:]
            environ["wsgi.input"] = io.BytesIO(body)
        answer = self._moto(environ, start)
        if fault == "cut":
            whole = b"".join(answer)
            return [whole[: len(whole) // 2]]
        return answer

    def _fault(self, environ: dict[str, Any]) -> str:
        if environ["PATH_INFO"].startswith("/moto-api") or "HTTP_X_IN_ORDER" in environ:
            return ""
        try:
            method, _, fault = self._faults.read_text().strip().partition(" ")
        except FileNotFoundError:
            return ""
        return fault if method in ("*", environ["REQUEST_METHOD"]) else ""


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), Misbehaving(Path(sys.argv[2])), threaded=True)
