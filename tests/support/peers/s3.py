"""A bucket on a real S3 server (moto) in a process of its own, on loopback."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import boto3

from tests.support.peers.programs import free_port, wait_until
from tests.support.repository import ROOT

KEY, SECRET = "AKIAEXAMPLEPLANTED00", "secret/PLANTED+0000000000000000000000000"
BUCKET = "mammod-spool"


@dataclass
class S3:
    """The server; `fault` has it misbehave (see `tests.support.peers.s3_server`), "" no more. `new_prefix`
    for each test.
    """

    folder: Path
    port: int
    prefix: str = "site"
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def credentials(self) -> Path:
        return self.folder / "credentials"

    def new_prefix(self) -> None:
        """An empty place."""
        self.prefix = f"site/{uuid.uuid4()}"

    def settings(self, directory: Path, **more: Any) -> dict[str, Any]:
        """The [spool] section of a node with this directory."""
        return {
            "directory": str(directory),
            "min_free": 1,
            "url": f"s3://{BUCKET}/{self.prefix}",
            "endpoint": self.endpoint,
            "credentials_file": str(self.credentials),
        } | more

    def start(self) -> None:
        self.credentials.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
        command = [sys.executable, "-m", "tests.support.peers.s3_server", str(self.port), str(self.folder / "faults")]
        with (self.folder / "s3.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self._answers, "the S3 server", 60)
        self._request("PUT", f"/{BUCKET}")

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "s3.log").read_text()[-2000:]
        try:
            self._request("GET", "/moto-api/")
        except OSError:
            return False
        return True

    def fault(self, what: str) -> None:
        faults = self.folder / "faults"
        if not what:
            faults.unlink(missing_ok=True)
            return
        new = faults.with_suffix(".new")
        new.write_text(what)
        new.rename(faults)

    def objects(self) -> dict[str, bytes]:
        """Every object below the prefix by its path, asked for without our client and without a fault."""
        listing = self._request("GET", f"/{BUCKET}?list-type=2&prefix={self.prefix}/").decode()
        keys = [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]
        return {key.removeprefix(f"{self.prefix}/"): self._request("GET", f"/{BUCKET}/{key}") for key in keys}

    def delete(self, path: str) -> None:
        self._request("DELETE", f"/{BUCKET}/{self.prefix}/{path}")

    def put(self, path: str, content: bytes, sha256: str = "") -> None:
        """Put an object there, with this note of its content where given."""
        self._request(
            "PUT", f"/{BUCKET}/{self.prefix}/{path}", content, {"X-Amz-Meta-Sha256": sha256} if sha256 else {}
        )

    def demand_credentials(self) -> tuple[str, str]:
        """Make a user who may do all; from now on only that user's key and secret, returned here, are let
        in.
        """
        iam = boto3.client(
            "iam", "us-east-1", endpoint_url=self.endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )
        iam.create_user(UserName="mammod")
        allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        iam.put_user_policy(UserName="mammod", PolicyName="spool", PolicyDocument=json.dumps(allow))
        made = iam.create_access_key(UserName="mammod")["AccessKey"]
        self._request("POST", "/moto-api/reset-auth", b"0")
        return made["AccessKeyId"], made["SecretAccessKey"]

    def _request(
        self, method: str, path: str, body: bytes | None = None, more: Mapping[str, str] = MappingProxyType({})
    ) -> bytes:
        headers = {
            "Content-Type": "application/octet-stream",  # moto reads a form where none is named
            **more,
            "X-In-Order": "1",
            "Authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request, "
            "SignedHeaders=host, Signature=0",
        }
        request = urllib.request.Request(f"{self.endpoint}{path}", data=body, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return bytes(answer.read())
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)


@contextmanager
def running_s3(folder: Path) -> Iterator[S3]:
    """An S3 server with one empty bucket until the block ends."""
    folder.mkdir(parents=True)
    server = S3(folder, free_port())
    try:
        server.start()
        yield server
    finally:
        server.stop()
