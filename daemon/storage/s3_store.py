"""A bucket of S3-compatible object storage, which several nodes share as their spool.

An object appears whole or not at all (S3 promises that), and counts only once the server has shown that it
holds what was sent. A key is the spool's path after the prefix of `spool.url`: a digest, nothing of the
patient.
"""

from __future__ import annotations

import asyncio
import base64
import configparser
import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

from config import settings as config
from config.errors import ConfigurationError
from daemon.errors import SpoolUnavailable
from daemon.storage.filesystem import DISK_FULL
from daemon.storage.store import Entry
from daemon.system.file_stamp import FileStamp, file_stamp

CONNECT_LIMIT_S = 5
ANSWER_LIMIT_S = 20
MIN_BYTES_PER_S = 4 * 2**20  # of a transfer, beyond that
MAX_OBJECT = 4 * 2**30  # bytes; S3 lets one request put 5 GiB
RETRY_AFTER_S = 10.0  # after a failure; no instance is accepted before
MAX_ATTEMPTS = 2
MAX_DELETED_AT_ONCE = 1000  # S3's own limit
CHUNK = 1 << 20  # bytes
BAD_CREDENTIALS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "InvalidClientTokenId",
)
NOT_THERE = ("NoSuchKey", "404", "NotFound")


class S3Store:
    """The bucket of `spool.url`, as a `Store`.

    Raises:
        ConfigurationError: the extra "s3" is not installed, or the credentials file cannot be used.
    """

    def __init__(self, settings: config.Spool) -> None:
        try:
            import s3fs  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "spool.url needs the extra s3: install mammod[s3], or leave spool.url out"
            ) from error
        assert settings.url is not None
        self._settings = settings
        self.bucket, _, self._prefix = settings.url.removeprefix("s3://").rstrip("/").partition("/")
        self._failed: tuple[float, str] | None = None
        self._connecting = threading.Lock()
        self._system: Any = None
        self._stamp: FileStamp | None = None
        for name in ("botocore", "aiobotocore", "boto3", "s3fs", "fsspec", "aiohttp", "urllib3"):
            logging.getLogger(name).setLevel(logging.WARNING)  # at debug they quote headers and bodies
        self._file_system()

    def __str__(self) -> str:
        return f"bucket {self.bucket} at {self._settings.endpoint or 'AWS'}"

    def check(self) -> None:
        """Refuse if an attempt failed a moment ago, so that senders are not held up one by one."""
        failed = self._failed
        if failed is not None and time.monotonic() - failed[0] < RETRY_AFTER_S:
            raise SpoolUnavailable(failed[1])

    def put(self, path: str, file: Path) -> None:
        """Store a file; return once the server has shown that it holds these bytes.

        The server gets their MD5 (Content-MD5, which every S3 has), refuses other bytes, and repeats the MD5
        as ETag. If the ETag is no MD5 (encryption with a customer's key), the object is read back.
        """
        md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                md5.update(chunk)
                sha256.update(chunk)
                size += len(chunk)
            content.seek(0)
            answer = self._call(
                "put_object",
                size,
                Key=self._key(path),
                Body=content,
                ContentLength=size,
                ContentMD5=base64.b64encode(md5.digest()).decode(),
                ContentType="application/dicom",
                Metadata={"sha256": sha256.hexdigest()},
            )
        if answer.get("ETag", "").strip('"') == md5.hexdigest():
            return
        held = hashlib.sha256()
        self._download(path, held.update)
        if held.digest() != sha256.digest():
            raise self._failure(f"{self} does not hold what was sent to it as {path}; see what lies between")

    def get(self, path: str, file: Path) -> bool:
        """Write the object into `file`, verified by what `put` noted; return False if there is none."""
        sha256 = hashlib.sha256()
        with file.open("wb") as content:

            def take(chunk: bytes) -> None:
                sha256.update(chunk)
                content.write(chunk)

            noted = self._download(path, take)
        if noted is None:
            return False
        if noted and noted != sha256.hexdigest():
            raise self._failure(f"{self} gave other bytes for {path} than were stored; see what lies between")
        return True

    def modified(self, path: str) -> float | None:
        """Return when the object was last written, in seconds since the epoch; None if there is none."""
        answer = self._call("head_object", Key=self._key(path), absent=None)
        return None if answer is None else answer["LastModified"].timestamp()

    def entries(self, folder: str) -> Iterator[Entry]:
        """Yield every object below `folder`."""
        start = self._key("")
        more: dict[str, Any] = {}
        while True:
            answer = self._call("list_objects_v2", Prefix=self._key(f"{folder}/"), **more)
            for found in answer.get("Contents", ()):
                yield Entry(found["Key"].removeprefix(start), found["Size"], found["LastModified"].timestamp())
            if not answer.get("IsTruncated"):
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; one that is not there is not an error."""
        keys = [{"Key": self._key(path)} for path in paths]
        for start in range(0, len(keys), MAX_DELETED_AT_ONCE):
            batch = {"Objects": keys[start : start + MAX_DELETED_AT_ONCE], "Quiet": True}
            if errors := self._call("delete_objects", Delete=batch).get("Errors"):
                raise self._failure(f"{self} does not remove objects ({errors[0].get('Code')}); allow s3:DeleteObject")

    def probe(self, folder: Path) -> None:
        """Write, read, list and delete an object, as the spool will; `folder` is for temporary files."""
        file = folder / f"probe-{uuid.uuid4()}.part"
        path = f"check/{file.stem}"
        try:
            file.write_bytes(b"mammod check")
            self.put(path, file)
            if not self.get(path, file) or path not in {entry.path for entry in self.entries("check")}:
                raise self._failure(f"{self} does not show an object that it just took; it must be consistent at once")
            self.delete([path])
        finally:
            file.unlink(missing_ok=True)

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _download(self, path: str, take: Callable[[bytes], None]) -> str | None:
        """Pass the object's bytes to `take`; return the noted SHA-256 ("" without), None without object."""

        async def download(client: Any) -> str | None:
            try:
                answer = await client.get_object(Bucket=self.bucket, Key=self._key(path))
            except Exception as error:
                if _code(error) in NOT_THERE:
                    return None
                raise
            read = 0
            async with answer["Body"] as body:
                async for chunk in body.iter_chunks(CHUNK):
                    take(chunk)
                    read += len(chunk)
            if read != answer["ContentLength"]:
                raise ConnectionError(f"{read} of {answer['ContentLength']} bytes came")
            return answer.get("Metadata", {}).get("sha256", "")

        return self._run("get_object", download, limit_s=ANSWER_LIMIT_S + MAX_OBJECT / MIN_BYTES_PER_S)

    def _call(self, method: str, size: int = 0, *, absent: Any = ..., **arguments: Any) -> Any:
        """Make a request of S3's API that moves `size` bytes; return `absent` if there is no such object."""

        async def call(client: Any) -> Any:
            try:
                return await getattr(client, method)(Bucket=self.bucket, **arguments)
            except Exception as error:
                if absent is not ... and _code(error) in NOT_THERE:
                    return absent
                raise

        return self._run(method, call, limit_s=ANSWER_LIMIT_S + size / MIN_BYTES_PER_S)

    def _run(self, method: str, work: Callable[[Any], Coroutine[Any, Any, Any]], limit_s: float) -> Any:
        from fsspec.asyn import sync

        async def bounded() -> Any:
            return await asyncio.wait_for(self._with_client(system, work), limit_s)

        try:
            system = self._file_system()
            answer = sync(system.loop, bounded)
        except ConfigurationError as error:
            raise self._failure(str(error)) from error
        except Exception as error:  # of botocore, aiohttp or the system: there is no common ancestor
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise  # of the local file
            raise self._failure(self._explain(method, error)) from error
        self._failed = None
        return answer

    @staticmethod
    async def _with_client(system: Any, work: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        return await work(await system.set_session())

    def _failure(self, reason: str) -> SpoolUnavailable:
        self._failed = (time.monotonic(), reason)
        return SpoolUnavailable(reason)

    def _file_system(self) -> Any:
        """Return s3fs's file system; a credentials file that was changed is read again."""
        import s3fs

        with self._connecting:
            file = self._settings.credentials_file
            stamp = file_stamp(file) if file else None
            if self._system is None or stamp != self._stamp:
                self._system = s3fs.S3FileSystem(
                    **(_credentials(file) if file else {}),
                    endpoint_url=self._settings.endpoint,
                    client_kwargs={"verify": str(self._settings.ca)} if self._settings.ca else {},
                    config_kwargs={
                        "connect_timeout": CONNECT_LIMIT_S,
                        "read_timeout": ANSWER_LIMIT_S + MAX_OBJECT / MIN_BYTES_PER_S,
                        "retries": {"total_max_attempts": MAX_ATTEMPTS, "mode": "standard"},
                        # Some servers refuse checksums newer than Content-MD5.
                        "request_checksum_calculation": "when_required",
                        "response_checksum_validation": "when_required",
                        "max_pool_connections": 50,
                    },
                    skip_instance_cache=True,
                    use_listings_cache=False,
                )
                self._stamp = stamp
            return self._system

    def _explain(self, method: str, error: Exception) -> str:
        """Say what went wrong and what to do, without quoting the request, which is signed."""
        code, kind = _code(error), type(error).__name__
        if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
            return f"{self}: there are no credentials; set spool.credentials_file, or AWS_ACCESS_KEY_ID and its like"
        if code in BAD_CREDENTIALS:
            return f"{self} does not know these credentials ({code}); correct spool.credentials_file or the environment"
        if code == "NoSuchBucket":
            return f"{self}: there is no such bucket; create it, or correct spool.url"
        if code == "RequestTimeTooSkewed":
            return f"{self} says that this machine's clock is wrong; set it by NTP"
        if code in ("AccessDenied", "AllAccessDisabled", "403"):
            return (
                f"{self} denies {method} to these credentials; allow s3:GetObject, PutObject, DeleteObject, ListBucket"
            )
        if code:
            return f"{self} answered {method} with {code}; see its own log"
        if isinstance(error, TimeoutError) or "Timeout" in kind:
            return f"{self} gave no answer in time ({method}); see whether it is up and the network free"
        if kind in ("SSLError", "ClientConnectorCertificateError"):
            return f"{self} shows a certificate that is not trusted here; set spool.ca"
        return f"{self} cannot be reached ({kind}); see whether it is up, and spool.endpoint"


def _code(error: BaseException) -> str:
    """Return the error code of an answer of S3, "" for any other error."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return ""
    code = str(response.get("Error", {}).get("Code", ""))
    return code or str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))


def _credentials(file: Path) -> dict[str, str]:
    """Read key, secret and token from a file as AWS writes it (section [default], or the first)."""
    parser = configparser.ConfigParser(interpolation=None)
    expected = "expected aws_access_key_id and aws_secret_access_key in a section [default]"
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"spool.credentials_file {file} cannot be read: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError):
        raise ConfigurationError(f"spool.credentials_file {file} is no such file; {expected}") from None
    section = "default" if parser.has_section("default") else next(iter(parser.sections()), "")
    values = dict(parser[section]) if section else {}
    names = {"key": "aws_access_key_id", "secret": "aws_secret_access_key", "token": "aws_session_token"}
    found = {argument: values[name].strip() for argument, name in names.items() if values.get(name)}
    if not {"key", "secret"} <= found.keys():
        raise ConfigurationError(f"spool.credentials_file {file} holds no key; {expected}")
    return found
