"""`fetch_bundle`: from a folder, a ZIP file and a web server on loopback; what is not the bundle asked for
installs nothing.
"""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from daemon.cli.app import app
from daemon.tools.fetch_bundle import fetch_bundle
from daemon.workers.bundle_source import default_bundle_path
from model.bundle import load_bundle
from model.errors import BundleError

DEFAULT = default_bundle_path()
DIGEST = load_bundle(DEFAULT).digest


def nothing(_done: int, _total: int | None) -> None:
    pass


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("packed") / "bundle.zip"
    with zipfile.ZipFile(file, "w") as contents:
        for one in DEFAULT.iterdir():
            contents.write(one, f"some-folder/{one.name}")
    return file


@pytest.fixture(scope="module")
def server(packed: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(packed.parent))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("form", ["folder", "zip", "url"])
def test_installed_under_its_digest(form: str, packed: Path, server: str, tmp_path: Path) -> None:
    source = {"folder": str(DEFAULT), "zip": str(packed), "url": f"{server}/bundle.zip"}[form]
    told: list[tuple[int, int | None]] = []
    bundle = fetch_bundle(source, tmp_path / "bundles", DIGEST[:12], lambda *progress: told.append(progress))
    assert bundle.path == tmp_path / "bundles" / DIGEST[:12]
    assert bundle.digest == DIGEST
    assert (bundle.path / "weights.npz").read_bytes() == (DEFAULT / "weights.npz").read_bytes()
    assert [entry.name for entry in (tmp_path / "bundles").iterdir()] == [DIGEST[:12]]
    assert (told[-1] == (packed.stat().st_size,) * 2) if form == "url" else not told
    assert fetch_bundle(source, tmp_path / "bundles", DIGEST, nothing).path == bundle.path  # again: as it was


def test_another_digest_installs_nothing(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"has the digest {DIGEST}, not 0123456789ab"):
        fetch_bundle(str(packed), tmp_path, "0123456789ab", nothing)
    assert not list(tmp_path.iterdir())


def test_a_url_needs_a_digest(server: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="needs --digest"):
        fetch_bundle(f"{server}/bundle.zip", tmp_path, None, nothing)
    with pytest.raises(BundleError, match="at least 12 hexadecimal digits"):
        fetch_bundle(f"{server}/bundle.zip", tmp_path, DIGEST[:11], nothing)


def test_what_is_no_bundle_installs_nothing(server: str, tmp_path: Path) -> None:
    into = tmp_path / "into"
    text = tmp_path / "text.zip"
    text.write_text("not a ZIP file")
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    altered = tmp_path / "altered"
    altered.mkdir()
    (altered / "manifest.json").write_bytes((DEFAULT / "manifest.json").read_bytes())
    (altered / "weights.npz").write_bytes(b"other weights")
    for source, reason in (
        (text, "no readable ZIP file"),
        (empty, "holds 0 files manifest.json"),
        (altered, "damaged or not this bundle's"),
        (tmp_path, "no bundle in"),
        (tmp_path / "missing.zip", "No such file"),
    ):
        with pytest.raises(BundleError, match=reason):
            fetch_bundle(str(source), into, None, nothing)
    with pytest.raises(BundleError, match="cannot be fetched"):
        fetch_bundle(f"{server}/missing.zip", into, DIGEST, nothing)
    assert not list(into.iterdir())


def test_the_command_says_what_to_set(packed: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bundle", "fetch", str(packed), "--to", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert f'[model] bundle = "{tmp_path / DIGEST[:12]}"' in done.output


def test_the_weights_licence_travels_with_them() -> None:
    manifest = json.loads((DEFAULT / "manifest.json").read_text())
    assert manifest["trained"]
    assert "CC BY 3.0" in (DEFAULT.parent / "LICENSE").read_text()
