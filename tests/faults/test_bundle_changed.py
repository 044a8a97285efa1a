"""The bundle folder changes under a running service: it keeps what it verified, a restart checks anew."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.workers.pinned_bundle import BundleWatch, pin_bundle
from model.bundle import MANIFEST, WEIGHTS, load_bundle
from model.errors import BundleError
from tests.support.cases import make_case
from tests.support.peers.archives import StoreSCP
from tests.support.peers.programs import dcmsend, wait_until
from tests.support.services import Service


def other_version(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"version": "9.9.9"}))


def damage(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(1000)
        file.write(b"nonsense")


@pytest.fixture
def folder(untrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained, tmp_path / "own"))


def test_the_copy_is_the_bundle_and_a_half_copy_is_made_anew(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "older").mkdir()
    bundle = load_bundle(folder, allow_untrained=True)
    kept = pin_bundle(bundle, tmp_path)
    assert kept.digest == bundle.digest
    assert kept.path != folder
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == [bundle.digest]
    assert {path.stat().st_mode & 0o777 for path in kept.path.iterdir()} == {0o600}
    assert kept.path.stat().st_mode & 0o777 == 0o700
    damage(kept.path)
    assert pin_bundle(bundle, tmp_path).digest == bundle.digest
    damage(folder)
    shutil.rmtree(kept.path)
    with pytest.raises(BundleError):
        pin_bundle(bundle, tmp_path)


def test_a_change_is_said_once_with_what_the_next_start_does(folder: Path) -> None:
    watch = BundleWatch(load_bundle(folder, allow_untrained=True))
    assert watch.look() is None
    (folder / MANIFEST).touch()
    assert watch.look() is None, "the same content"
    other_version(folder)
    taken = load_bundle(folder, allow_untrained=True).digest
    assert f"takes bundle {taken[:12]}" in (watch.look() or "")
    assert watch.look() is None
    damage(folder)
    assert "refuse" in (watch.look() or "")


@pytest.mark.peers
@pytest.mark.timeout(600)  # three starts of the service
def test_a_service_whose_bundle_is_damaged_goes_on_with_what_it_verified(
    new_service: Callable[..., Service], storescp: StoreSCP, folder: Path, tmp_path: Path
) -> None:
    service = new_service((storescp.aet, storescp.dicom_port), settings={"model": {"bundle": str(folder)}})
    pids = tmp_path / "classifiers"
    pids.mkdir()
    service.environment |= {"MAMMOD_TEST_PIDS": str(pids), "MAMMOD_TEST_VERIFY": "1"}
    service.start()
    damage(folder)
    (classifier,) = pids.iterdir()
    os.kill(int(classifier.name), signal.SIGKILL)
    case = make_case(tmp_path / "case")
    dcmsend(case.files, service.host, service.port, service.aet)
    service.wait_jobs("done")
    assert len(list(pids.iterdir())) == 2, "a new classifier loaded the bundle after the damage"
    assert service.stop() == 0

    service.start(wait=False)
    assert service.wait_dead() == 1
    assert "damaged" in service.log

    shutil.rmtree(folder)
    shutil.copytree(service.bundle, folder)
    other_version(folder)
    service.start()
    digest = load_bundle(folder, allow_untrained=True).digest
    wait_until(lambda: f'"bundle": "{digest[:12]}"' in service.log, "the new bundle")
    assert service.stop() == 0
