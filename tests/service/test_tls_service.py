"""The whole service with DICOM TLS on every way in and out, DCMTK's TLS programs being the modality and the
archive.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from config.settings import Archive as ArchiveSettings
from daemon.archive.client import Archive
from daemon.archive.query_retrieve import Wanted
from daemon.cli.app import app
from daemon.errors import ArchiveError
from tests.daemon.system.test_tls import client, handshake
from tests.support import launch
from tests.support.cases import Case
from tests.support.fork_server import run_forked
from tests.support.peers.archives import running_orthanc
from tests.support.peers.certificates import Authority, Files
from tests.support.peers.programs import dcmsend, free_port, storescu, wait_until
from tests.support.scu import request_association
from tests.support.services import AE_TITLE, Service

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")]


def tls_table(files: Files, ca: Authority) -> dict[str, str]:
    return {"certificate": str(files.certificate), "key": str(files.key), "ca": str(ca.file)}


def dcmtk_options(files: Files, ca: Authority) -> tuple[str, ...]:
    return ("+tls", str(files.key), str(files.certificate), "+cf", str(ca.file))


def mammod(*arguments: str) -> Result:
    """A command, in this process: starting another takes seconds."""
    return CliRunner().invoke(app, arguments)


def secure_settings(service: Files, ca: Authority, **archive: Any) -> dict[str, dict[str, Any]]:
    table = tls_table(service, ca)
    return {"listener": {"tls": table}, "archive": {"tls": table, **archive}}


def test_everything_that_goes_in_and_out_goes_by_tls(
    new_service: Callable[..., Service], case: Case, tmp_path: Path
) -> None:
    """The lesion object by storescu +tls, its image by C-FIND and C-MOVE, the report by C-STORE; C-GET; the
    send command.
    """
    ca = Authority(tmp_path / "tls")
    ours, theirs, modality = (ca.issue(name) for name in ("ours", "theirs", "modality"))
    service_port = free_port()
    with running_orthanc(
        tmp_path / "archive",
        options={
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(theirs.certificate),
            "DicomTlsPrivateKey": str(theirs.key),
            "DicomTlsTrustedCertificates": str(ca.file),
            "DicomModalities": {
                "mammod": {"AET": AE_TITLE, "Host": "127.0.0.1", "Port": service_port, "UseDicomTls": True}
            },
        },
        answers=lambda port, aet: tls_echo(aet, port, theirs, ca, tmp_path),
    ) as archive:
        choices = secure_settings(ours, ca, retrieve="c-move", retrieve_after_s=0)
        choices["listener"]["port"] = service_port
        service = new_service((archive.aet, archive.dicom_port), settings=choices)
        service.port = service_port
        service.start()
        archive.upload(case.image_path.read_bytes())
        options = ("-R", "+C", "-nh", *dcmtk_options(modality, ca))
        sent = storescu([case.segmentation_path], service.host, service.port, service.aet, options=options)
        assert set(sent.values()) == {0}
        service.wait_jobs("done")
        (item,) = service.outbox()
        assert set(archive.instances()) == {case.image.SOPInstanceUID, item.sop_instance_uid}
        got: list[str] = []
        wanted = [Wanted(None, None, case.image.SOPInstanceUID)]
        tls_archive(archive.aet, archive.dicom_port, theirs, ca, tmp_path).get_instances(
            wanted, lambda incoming: got.append(incoming.sop_instance_uid)
        )
        assert got == [case.image.SOPInstanceUID]

        config = ("--config", str(service.settings))
        assert mammod("send", *map(str, case.files), *config).exit_code == 0, "to the service itself, by its own TLS"
        to_archive = ("--to", f"127.0.0.1:{archive.dicom_port}", "--aet", archive.aet, *config)
        assert mammod("send", str(case.segmentation_path), *to_archive).exit_code == 1, (
            "without --tls nobody listens there"
        )
        assert mammod("send", str(case.segmentation_path), *to_archive, "--tls").exit_code == 0
        assert case.segmentation.SOPInstanceUID in archive.instances()

        assert dcmsend([case.image_path], service.host, service.port, service.aet) == {}, "nothing goes in without TLS"
        assert service.stop() == 0


def tls_archive(aet: str, port: int, files: Files, ca: Authority, folder: Path) -> Archive:
    settings = ArchiveSettings(ae_title=aet, host="127.0.0.1", port=port, tls=files.tls(ca.file), timeout_s=5)
    return Archive(settings, "TESTS", folder)


def tls_echo(aet: str, port: int, files: Files, ca: Authority, folder: Path) -> bool:
    try:
        tls_archive(aet, port, files, ca, folder).echo()
    except ArchiveError:
        return False
    return True


def test_sighup_takes_over_certificates_and_peers_without_dropping_an_association(
    new_service: Callable[..., Service], case: Case, tmp_path: Path
) -> None:
    ca = Authority(tmp_path / "tls")
    ours, caller = ca.issue("ours", ends=timedelta(days=3)), ca.issue("caller")
    settings = secure_settings(ours, ca)
    settings["listener"]["peers"] = [{"ae_title": "OLD"}]
    service = new_service(settings=settings)
    service.start()
    assert "certificate ends soon" in service.log
    assert handshake(service.port, client(ca, caller))[2] == ours.serial
    status = json.loads(mammod("status", "--json", "--config", str(service.settings)).stdout)
    assert status["certificates"][0]["days_left"] == pytest.approx(3, abs=0.1)
    # In a process with the stand-in engine: the real one would be converted first.
    stand_in = dict(os.environ) | {"MAMMOD_TEST_ENGINE": "stand-in", "COLUMNS": "200"}
    arguments = ("check", "--config", service.settings, "--allow-untrained")
    checked = run_forked(launch.main, *arguments, environment=stand_in).stdout
    assert any("listener.tls.certificate" in line and "in 3 days: replace it" in line for line in checked.splitlines())

    open_before = request_association(service.port, calling="OLD", tls=client(ca, caller))
    assert open_before.is_established
    renewed = ca.issue("renewed")
    ours.replace(renewed)
    service.settings.write_text(service.settings.read_text().replace('"OLD"', '"NEW"'))
    assert service.process is not None
    service.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings reloaded" in service.log, "the reload")
    assert '"listener.peers"' in service.log
    assert handshake(service.port, client(ca, caller))[2] == renewed.serial
    assert not request_association(service.port, calling="OLD", tls=client(ca, caller)).is_established
    new = request_association(service.port, calling="NEW", tls=client(ca, caller))
    assert new.is_established
    new.release()
    assert open_before.is_established
    open_before.release()
    live = json.loads(mammod("status", "--json", "--config", str(service.settings)).stdout)
    assert live["running"] is True
    assert live["rejected"]["unknown_peer"] == 1
    assert live["certificates"][0]["days_left"] > 30
    assert service.stop() == 0
