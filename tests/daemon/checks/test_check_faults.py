"""`mammod check` over the real fault: it names what is wrong and what to do, and is content where nothing
is.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from config.errors import ConfigurationError
from config.loading import load_settings
from config.settings import Settings
from daemon.checks.archive import archive_findings
from daemon.checks.certificates import certificate_findings
from daemon.checks.finding import Finding
from daemon.checks.machine import gpu_findings, machine_findings
from daemon.checks.ports import port_findings
from daemon.checks.run import findings
from daemon.checks.storage import storage_findings
from daemon.cli.app import app
from daemon.dicom.sop_classes import OWN_REPORT_CLASSES
from daemon.ledger import Ledger, instances
from daemon.reports.registry import KIND_CLASSES, KINDS
from tests.daemon.ledger.test_transitions import stored
from tests.support import archive_stubs, dicomweb_stubs, launch
from tests.support.fork_server import run_forked
from tests.support.http_stubs import Quiet, http_server
from tests.support.peers.archives import running_orthanc, running_storescp
from tests.support.peers.certificates import Authority, Files
from tests.support.peers.nginx import running_nginx
from tests.support.peers.programs import free_port, program, running, wait_until
from tests.support.services import ROOT

UNKNOWN_CALLERS_STAY_OUT = {f"DicomAlwaysAllow{what}": False for what in ("Echo", "Store", "Find", "Get", "Move")}


def settings(folder: Path, **sections: dict[str, Any]) -> Settings:
    given: dict[str, dict[str, Any]] = {
        "spool": {"directory": folder / "spool", "min_free": 1},
        "listener": {"port": free_port(), "host": "127.0.0.1"},
        "status": {"port": free_port()},
        "archive": {"host": "127.0.0.1", "port": 1, "timeout_s": 5},
    }
    for section, values in sections.items():
        given[section] = given.get(section, {}) | values
    return Settings.model_validate(given)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def bad(found: Iterator[Finding]) -> str:
    """The text of the one finding that is bad."""
    (text,) = [finding.text for finding in found if not finding.good]
    return text


# --- the archive ------------------------------------------------------------------------------------------


@pytest.mark.peers
def test_an_archive_that_has_another_ae_title_says_so(tmp_path: Path) -> None:
    with running_orthanc(tmp_path / "orthanc", aet="PACS") as orthanc:

        def check(**archive: Any) -> Iterator[Finding]:
            return archive_findings(settings(tmp_path, archive={"port": orthanc.dicom_port, **archive}))

        said = bad(check(ae_title="ARCHIVE"))
        assert "has another AE title than ARCHIVE" in said and "set archive.ae_title" in said
        assert [finding.level for finding in check(ae_title="PACS")] == ["ok"]


@pytest.mark.peers
def test_an_archive_that_does_not_know_us_says_so(tmp_path: Path) -> None:
    strict = {**UNKNOWN_CALLERS_STAY_OUT, "DicomCheckModalityHost": True}
    with running_orthanc(
        tmp_path / "orthanc",
        aet="PACS",
        modalities={"other": ("OTHER", 1), "mammod": ("MAMMOD", 1)},
        options=strict,
        answers=lambda port, _: listens(port),
    ) as orthanc:

        def check(own: str) -> Iterator[Finding]:
            archive = {"port": orthanc.dicom_port, "ae_title": "PACS"}
            return archive_findings(settings(tmp_path, archive=archive, listener={"ae_title": own}))

        said = bad(check("STRANGER"))
        assert "AE title STRANGER" in said and "there" in said
        assert [finding.level for finding in check("MAMMOD")] == ["ok"]


def test_an_archive_that_takes_no_such_report_says_which(tmp_path: Path) -> None:
    assert KIND_CLASSES.keys() == KINDS.keys() and set(KIND_CLASSES.values()) <= OWN_REPORT_CLASSES
    with archive_stubs.stub() as port:
        archive = {"port": port, "ae_title": "STUB"}
        said = bad(archive_findings(settings(tmp_path, archive=archive, reports={"kinds": ["tid1500", "gsps"]})))
    assert '"gsps"' in said and "1.2.840.10008.5.1.4.1.1.11.1" in said and "[reports] kinds" in said


def test_an_archive_that_is_down_or_has_no_address_is_told_apart(tmp_path: Path) -> None:
    port = free_port()
    assert f"nothing listens on 127.0.0.1:{port}" in bad(archive_findings(settings(tmp_path, archive={"port": port})))
    said = bad(archive_findings(settings(tmp_path, archive={"host": "pacs.invalid"})))
    assert "the name pacs.invalid cannot be resolved" in said and "archive's host name" in said
    assert "archive.host is not set" in bad(archive_findings(settings(tmp_path, archive={"host": None})))


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder / "ours"), Authority(folder / "theirs", "other")


@contextmanager
def tls_storescp(folder: Path, files: Files, ca: Authority) -> Iterator[int]:
    """DCMTK's storescp, which wants a certificate that `ca` signed."""
    port = free_port()
    folder.mkdir()
    options = ["+tls", str(files.key), str(files.certificate), "+cf", str(ca.file), "-od", str(folder)]
    command = [program("storescp"), "-aet", "STORESCP", *options, str(port)]
    with running(command, folder / "storescp.log", lambda: listens(port)):
        yield port


@pytest.mark.peers
def test_what_is_wrong_with_tls_is_named(tmp_path: Path, authorities: tuple[Authority, Authority]) -> None:
    ours, theirs = authorities
    archive, mammod = ours.issue("archive", ends=timedelta(days=60)), ours.issue("mammod", ends=timedelta(days=60))

    def check(port: int, files: Files, ca: Authority) -> list[Finding]:
        tls = files.tls(ca.file).model_dump()
        return list(archive_findings(settings(tmp_path, archive={"port": port, "ae_title": "STORESCP", "tls": tls})))

    with tls_storescp(tmp_path / "good", archive, ours) as port:
        assert [finding.level for finding in check(port, mammod, ours)] == ["ok"]
        said = bad(iter(check(port, mammod, theirs)))
        assert "signed by a CA that is not in archive.tls.ca" in said
        said = bad(iter(check(port, theirs.issue("stranger"), ours)))
        assert "it rejects our certificate" in said and "archive.tls.certificate" in said
        plain = settings(tmp_path, archive={"port": port, "ae_title": "STORESCP"})
        assert "did not answer" in bad(archive_findings(plain)) or "broke" in bad(archive_findings(plain))
    ended = ours.issue("ended", starts=timedelta(days=-9), ends=timedelta(days=-1))
    with tls_storescp(tmp_path / "ended", ended, ours) as port:
        assert "its certificate has expired" in bad(iter(check(port, mammod, ours)))
    early = ours.issue("early", starts=timedelta(days=2), ends=timedelta(days=9))
    with tls_storescp(tmp_path / "early", early, ours) as port:
        said = bad(iter(check(port, mammod, ours)))
        assert "not valid yet" in said and "clock" in said
    with running_storescp(tmp_path / "plain") as scp:
        said = bad(iter(check(scp.dicom_port, mammod, ours)))
        assert "not speak TLS on that port" in said


@pytest.mark.peers
def test_dicomweb_is_asked_with_the_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    theirs, ours = authority.issue("archive"), authority.issue("mammod").tls(authority.file).model_dump()
    (tmp_path / "token").write_text("right.token")
    (tmp_path / "wrong").write_text("wrong.token")
    with (
        running_orthanc(tmp_path / "orthanc", dicomweb=True) as orthanc,
        running_nginx(tmp_path / "nginx", orthanc.url, theirs, authority, "right.token") as url,
    ):

        def check(root: str, token: str | None = "token", **archive: Any) -> list[Finding]:
            web = {"dicomweb_url": root, "tls": ours, "port": orthanc.dicom_port, "ae_title": orthanc.aet, **archive}
            if token:
                web["dicomweb_token_file"] = tmp_path / token
            found = list(archive_findings(settings(tmp_path, archive={"host": None, **web, "stow_url": root})))
            assert ".token" not in str(found), "a token is shown to nobody"
            return found

        assert [finding.level for finding in check(f"{url}/dicom-web")] == ["ok", "ok"]
        for said in [finding.text for finding in check(f"{url}/dicom-web", "wrong")]:
            assert "HTTP 401" in said and "token of archive.dicomweb_token_file" in said
        for said in [finding.text for finding in check(f"{url}/dicom-web", None)]:
            assert "HTTP 401" in said and "dicomweb_token_file is not set" in said
        stow, wado = check(f"{url}/elsewhere")
        assert stow.level == "warning" and "HTTP 404" in stow.text
        assert wado.level == "bad" and "no DICOMweb at that path" in wado.text
        stow, wado = check(f"https://localhost:{free_port()}/dicom-web")
        assert stow.level == wado.level == "bad" and "nothing listens on localhost" in wado.text
        assert "not a URL" in check("pacs.example.org/dicom-web")[0].text


def test_a_clock_that_differs_from_the_archives_is_told(tmp_path: Path) -> None:
    class Late(Quiet):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(int(time.time()) - 600)

    with http_server(Late) as url:
        found = list(archive_findings(settings(tmp_path, archive={"host": None, "stow_url": f"{url}/studies"})))
    assert [finding.level for finding in found] == ["ok", "warning"]
    assert "behind this machine's" in found[1].text
    with dicomweb_stubs.stub(lambda path: dicomweb_stubs.Answer(204)) as (url, _):
        right = archive_findings(settings(tmp_path, archive={"host": None, "stow_url": f"{url}/studies"}))
        assert [finding.level for finding in right] == ["ok"]


# --- certificates of our own ------------------------------------------------------------------------------


def test_our_own_certificates_are_looked_at(tmp_path: Path, authorities: tuple[Authority, Authority]) -> None:
    ours, _ = authorities
    good, other = ours.issue("good", ends=timedelta(days=29)), ours.issue("other")
    ended = ours.issue("late", starts=timedelta(days=-9), ends=timedelta(days=-1))
    text = tmp_path / "text.pem"
    text.write_text("no certificate")

    def check(certificate: Path, key: Path, ca: Path = ours.file) -> list[Finding]:
        tls = {"certificate": certificate, "key": key, "ca": ca}
        return list(certificate_findings(settings(tmp_path, listener={"tls": tls})))

    (soon,) = [finding for finding in check(good.certificate, good.key) if finding.subject.endswith(".certificate")]
    assert (soon.level == "warning" and "in 28 days" in soon.text) or "in 29 days" in soon.text
    assert "the key is not that of the certificate" in bad(iter(check(good.certificate, other.key)))
    assert "expired on" in bad(iter(check(ended.certificate, ended.key)))
    assert "gone.key: No such file" in bad(iter(check(good.certificate, tmp_path / "gone.key")))
    assert "text.pem is no PEM file" in bad(iter(check(text, good.key)))
    assert "listener.tls.ca" in bad(iter(check(good.certificate, good.key, text)))
    locked = tmp_path / "locked.key"
    subprocess.run(
        [program("openssl"), "rsa", "-aes128", "-passout", "pass:secret", "-in", str(good.key), "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    assert "the key has a password" in bad(iter(check(good.certificate, locked)))
    good.key.chmod(0o644)
    assert "chmod o-r" in bad(iter(check(good.certificate, good.key)))


# --- ports, directories, ledger ---------------------------------------------------------------------------


def test_a_port_that_is_taken_is_told_with_who_has_it(tmp_path: Path) -> None:
    port = free_port()
    program_text = f"import socket,time; s=socket.create_server(('127.0.0.1', {port})); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program_text])
    try:
        wait_until(lambda: listens(port), "the port is taken")
        said = bad(port_findings(settings(tmp_path, listener={"port": port})))
        assert f"is in use by process {process.pid} (python" in said and "listener.port" in said
    finally:
        process.kill()
        process.wait()
    assert all(finding.good for finding in port_findings(settings(tmp_path, listener={"port": port})))
    assert "not an address of this machine" in bad(port_findings(settings(tmp_path, listener={"host": "192.0.2.1"})))


def test_the_ports_of_the_running_service_are_no_fault(tmp_path: Path) -> None:
    class Live(Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "16")
            self.end_headers()
            self.wfile.write(b'{"rejected": {}}')

    with http_server(Live) as url, socket.create_server(("127.0.0.1", 0)) as listener:
        ports = {"listener": {"port": listener.getsockname()[1]}, "status": {"port": int(url.rpartition(":")[2])}}
        found = list(port_findings(settings(tmp_path, **ports)))
    assert [finding.good for finding in found] == [True, True]
    assert f"held by the running service (process {os.getpid()}" in found[0].text


AS_ANOTHER = """
from daemon.checks.run import findings
from tests.daemon.checks.test_check_faults import settings
from daemon.checks.storage import storage_findings
from pathlib import Path
import sys
for finding in storage_findings(settings(Path(sys.argv[1]))):
    print(finding.level, finding.subject, finding.text)
"""


def test_a_directory_of_another_user_is_told_with_whose_it_is(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to be a user that may not write")
    for name in ("incoming", "instances", "outbox"):
        (tmp_path / "spool" / name).mkdir(parents=True)
    subprocess.run(["chown", "-R", "nobody", str(tmp_path / "spool")], check=True)
    # Root without what lets root write everywhere and change what is another's.
    without = "-dac_override,-dac_read_search,-fowner"
    done = subprocess.run(
        ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}", sys.executable, "-c", AS_ANOTHER, tmp_path],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "bad spool" in done.stdout, done.stderr
    assert "belongs to nobody, and this runs as root" in done.stdout


def test_a_full_disk_and_a_file_in_the_way_are_told(tmp_path: Path) -> None:
    said = bad(storage_findings(settings(tmp_path, spool={"min_free": "900PB"})))
    assert "min_free" in said and "make room" in said
    (tmp_path / "file").touch()
    said = bad(storage_findings(settings(tmp_path, spool={"directory": tmp_path / "file" / "spool"})))
    assert "cannot be used (Not a directory)" in said and "spool.directory" in said
    said = bad(storage_findings(settings(tmp_path, audit={"file": tmp_path / "none" / "audit.log"})))
    assert "does not exist" in said and "audit.file" in said


def test_postgresql_that_is_not_there_is_told_without_its_password(tmp_path: Path) -> None:
    port = free_port()
    url = f"postgresql+psycopg://mammod:s3cret@127.0.0.1:{port}/mammod"
    said = bad(storage_findings(settings(tmp_path, ledger={"url": url})))
    assert f"is PostgreSQL running at 127.0.0.1:{port}" in said and "user mammod" in said
    assert "s3cret" not in said


def test_retention_says_how_near_it_is_and_a_clock_that_was_set_back_is_told(tmp_path: Path) -> None:
    chosen = settings(tmp_path, retention={"max_bytes": 1000})
    list(storage_findings(chosen))
    ledger = Ledger(chosen.ledger_url)
    with ledger.write() as connection:
        for number in range(95):
            instances.record(connection, stored(f"1.2.{number}", at=time.time()))
    ledger.close()
    found = {finding.subject: finding for finding in storage_findings(chosen)}
    assert found["retention"].level == "warning" and "(950 %)" in found["retention"].text
    roomy = settings(tmp_path, retention={"max_bytes": 95_000})
    found = {finding.subject: finding for finding in storage_findings(roomy)}
    assert found["retention"].level == "ok" and "(10 %)" in found["retention"].text and "clock" not in found
    ledger = Ledger(chosen.ledger_url)
    with ledger.write() as connection:
        instances.record(connection, stored("1.3", at=time.time() + 3600))
    ledger.close()
    said = bad(storage_findings(roomy))
    assert "the newest instance arrived on" in said and "NTP" in said


# --- the machine ------------------------------------------------------------------------------------------


def machine(root: Path, *, card: bool = False, device: bool = False, driver: bool = False) -> list[Finding]:
    files = {
        "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n" if card else "0x8086\n",
        "sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
    }
    if device:
        files["dev/nvidia0"] = ""
    if driver:
        files["proc/driver/nvidia/version"] = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15\nGCC"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return list(gpu_findings(root))


def test_gpus_as_the_kernel_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (none,) = machine(tmp_path / "none")
    assert none.level == "ok" and "runs on the CPU" in none.text
    (card,) = machine(tmp_path / "card", card=True)
    assert card.level == "warning" and "without a working driver" in card.text
    (broken,) = machine(tmp_path / "broken", card=True, device=True)
    assert broken.level == "bad" and "nvidia-smi" in broken.text and "CUDA_VISIBLE_DEVICES=-1" in broken.text
    good = machine(tmp_path / "good", card=True, device=True, driver=True)[0]
    assert good.level == "ok" and "550.54.15" in good.text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    (hidden,) = machine(tmp_path / "hidden", card=True, device=True, driver=True)
    assert hidden.level == "ok" and "hides every GPU" in hidden.text


def test_what_an_extra_installs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(tmp_path, ledger={"url": "postgresql+psycopg://mammod@127.0.0.1:1/mammod"})
    assert all(finding.good for finding in machine_findings(chosen))
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    said = bad(machine_findings(chosen))
    assert "psycopg" in said and "pip install 'mammod[postgresql]'" in said


# --- the bundle, the settings file, the command -----------------------------------------------------------


def test_a_bundle_that_is_missing_damaged_or_untrained_is_told(tmp_path: Path, untrained: Path) -> None:
    def check(bundle: Path, allow: bool = True) -> str:
        chosen = settings(tmp_path, model={"bundle": bundle}, archive={"port": free_port()})
        return next(finding.text for finding in findings(chosen, allow) if finding.subject == "bundle")

    assert "no bundle in" in check(tmp_path / "gone")
    assert "is untrained" in check(untrained, allow=False) and "--allow-untrained" in check(untrained, allow=False)
    damaged = tmp_path / "damaged"
    shutil.copytree(untrained, damaged)
    weights = max(damaged.iterdir(), key=lambda file: file.stat().st_size)
    with weights.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    assert "damaged" in check(damaged) and "copy the bundle again" in check(damaged)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[listener]\nprot = 104", "listener.prot ({file}): there is no such setting, did you mean 'port'?"),
        ("[listner]\nport = 104", "listner ({file}): there is no such setting, did you mean 'listener'?"),
        ("[archive]\nzzz = 1", "archive.zzz ({file}): there is no such setting; allowed here: ae_title"),
    ],
)
def test_a_typo_gets_the_nearest_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "site.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        load_settings(file)
    assert said.format(file=file) in str(error.value)


def test_a_typo_in_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAMMOD_LISTNER__PORT", "104")
    with pytest.raises(ConfigurationError, match="did you mean 'listener'"):
        load_settings()


def test_the_command_in_json_with_its_exit_status(tmp_path: Path, untrained: Path) -> None:
    file = tmp_path / "site.toml"
    with running_storescp(tmp_path / "scp") as scp:
        file.write_text(
            f'[listener]\nhost = "127.0.0.1"\nport = {free_port()}\n[status]\nport = {free_port()}\n'
            f'[archive]\nhost = "127.0.0.1"\nport = {scp.dicom_port}\nae_title = "{scp.aet}"\n'
            f'[spool]\ndirectory = "{tmp_path / "spool"}"\nmin_free = 1\n[model]\nbundle = "{untrained}"\n'
        )
        # With the stand-in: the bundle's own engine would be converted first (tests/daemon/cli/test_app.py).
        stand_in = os.environ | {"MAMMOD_TEST_ENGINE": "stand-in"}
        good = run_forked(launch.main, "check", "--json", "--allow-untrained", "-c", file, environment=stand_in)
        told = json.loads(good.stdout)
        assert (good.returncode, told["good"]) == (0, True), told
        assert {"spool", "ledger", "retention", "bundle", "listener", "archive", "gpu", "clock"} <= {
            finding["subject"] for finding in told["findings"]
        }
        wrong = run_forked(launch.main, "check", "--json", "-c", file, environment=stand_in)
        assert wrong.returncode == 1
        levels = {finding["subject"]: finding["level"] for finding in json.loads(wrong.stdout)["findings"]}
        assert levels["bundle"] == "bad" and levels["archive"] == "ok"
    file.write_text("[archive]\nprot = 1")
    runner = CliRunner()
    typo = runner.invoke(app, ["check", "--json", "-c", str(file)])
    (finding,) = json.loads(typo.stdout)["findings"]
    assert typo.exit_code == 1 and finding["level"] == "bad" and "did you mean 'port'" in finding["text"]
    assert runner.invoke(app, ["check", "--no-such-option"]).exit_code == 2
