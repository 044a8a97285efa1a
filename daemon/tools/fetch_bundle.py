"""Fetch a model bundle from a folder, a ZIP file or a URL, verify it, and install it under its digest."""

from __future__ import annotations

import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from model.bundle import MANIFEST, WEIGHTS, Bundle, load_bundle
from model.errors import BundleError

MAX_BUNDLE_BYTES = 2 * 1024**3
MIN_DIGEST_LENGTH = 12
TIMEOUT_S = 60
_CHUNK_BYTES = 1024**2

Progress = Callable[[int, int | None], None]


def fetch_bundle(source: str, destination: Path, digest: str | None, progress: Progress) -> Bundle:
    """Return the bundle of `source`, verified and installed in `destination` under 12 digits of its digest.

    `source` is a bundle's folder, a ZIP file of one, or the http(s) URL of such a file. `digest` is the
    bundle's whole digest or at least its first 12 digits; a URL needs it. `progress` is called with the
    bytes so far and in all (None if the server does not say). A bundle that is installed already is
    verified and left as it is. The folder appears whole or not at all.

    Raises:
        BundleError: the source cannot be read, is no bundle, is untrained, or has another digest.
    """
    is_url = urlsplit(source).scheme in ("http", "https")
    _check_digest(digest, is_url)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=destination))
    except OSError as error:
        raise BundleError(f"{destination} cannot be written ({error.strerror}); name another folder by --to") from error
    try:
        folder = work / "bundle"
        folder.mkdir(mode=0o755)
        if is_url:
            _download(source, work / "bundle.zip", progress)
            _unpack(work / "bundle.zip", folder, source)
        elif Path(source).is_dir():
            _copy(Path(source), folder)
        else:
            _unpack(Path(source), folder, source)
        bundle = load_bundle(folder)
        if digest is not None and not bundle.digest.startswith(digest.lower()):
            raise BundleError(
                f"{source} has the digest {bundle.digest}, not {digest}: it is another bundle or was altered; "
                "ask its author which digest is right"
            )
        installed = destination / bundle.digest[:MIN_DIGEST_LENGTH]
        if not installed.exists():
            folder.rename(installed)
        return load_bundle(installed)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_digest(digest: str | None, is_url: bool) -> None:
    if digest is None:
        if is_url:
            raise BundleError(
                "a bundle from a URL needs --digest, which its author states; it is never installed unchecked"
            )
    elif len(digest) < MIN_DIGEST_LENGTH or set(digest.lower()) - set("0123456789abcdef"):
        raise BundleError(f"--digest {digest} is no digest; expected at least {MIN_DIGEST_LENGTH} hexadecimal digits")


def _download(url: str, file: Path, progress: Progress) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, file.open("wb") as out:
            length = answer.headers.get("Content-Length")
            total = int(length) if length else None
            done = 0
            while chunk := answer.read(_CHUNK_BYTES):
                done += len(chunk)
                if done > MAX_BUNDLE_BYTES:
                    raise BundleError(f"{url} is larger than {MAX_BUNDLE_BYTES >> 30} GiB; that is no bundle")
                out.write(chunk)
                progress(done, total)
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise BundleError(
            f"{url} cannot be fetched ({reason}); check the address, or copy the file here and name it instead"
        ) from error
    if total is not None and done != total:
        raise BundleError(f"{url}: the connection ended after {done:,} of {total:,} bytes; run the command again")


def _unpack(archive: Path, folder: Path, source: str) -> None:
    try:
        with zipfile.ZipFile(archive) as contents:
            for name in (MANIFEST, WEIGHTS):
                found = [item for item in contents.infolist() if Path(item.filename).name == name]
                if len(found) != 1:
                    raise BundleError(f"{source} holds {len(found)} files {name}, not one; it is no bundle")
                if found[0].file_size > MAX_BUNDLE_BYTES:
                    raise BundleError(
                        f"{source}: {name} is larger than {MAX_BUNDLE_BYTES >> 30} GiB; that is no bundle"
                    )
                with contents.open(found[0]) as packed, (folder / name).open("wb") as out:
                    shutil.copyfileobj(packed, out, _CHUNK_BYTES)
    except OSError as error:
        raise BundleError(
            f"{source} cannot be read ({error.strerror}); name a bundle's folder, ZIP file or URL"
        ) from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, NotImplementedError) as error:
        raise BundleError(
            f"{source} is no readable ZIP file ({error}); name a bundle's folder, ZIP file or URL"
        ) from error


def _copy(source: Path, folder: Path) -> None:
    try:
        for name in (MANIFEST, WEIGHTS):
            shutil.copyfile(source / name, folder / name)
    except OSError as error:
        raise BundleError(
            f"no bundle in {source} ({error.filename}: {error.strerror}); name a bundle's folder"
        ) from error
