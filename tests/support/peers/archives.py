"""Real archives as context managers: Orthanc, DCMTK's storescp and dcmqrscp, on free loopback ports."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread

from tests.support.peers.programs import answers_echo, free_port, missing, program, running

DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
WEB_VIEWER_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancWebViewer.so")


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc that takes anything from anyone on loopback."""

    aet: str
    dicom_port: int
    http_port: int
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    def rest(self, path: str, method: str = "GET", body: bytes | None = None) -> bytes:
        """One call of Orthanc's REST interface; urllib.error.HTTPError where it answers 4xx or 5xx."""
        request = urllib.request.Request(self.url + path, data=body, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return bytes(response.read())

    def instances(self) -> list[str]:
        """The SOP Instance UIDs it holds."""
        return [found["MainDicomTags"]["SOPInstanceUID"] for found in json.loads(self.rest("/instances?expand"))]

    def instance_file(self, sop_uid: str) -> bytes:
        """The Part 10 file of one instance as Orthanc gives it back; KeyError where it does not hold it."""
        return self.rest(f"/instances/{self._id(sop_uid)}/file")

    def upload(self, file: bytes) -> None:
        """Put one Part 10 file into the archive over HTTP."""
        self.rest("/instances", "POST", file)

    def delete(self, sop_uid: str) -> None:
        """Delete one instance; KeyError where it does not hold it."""
        self.rest(f"/instances/{self._id(sop_uid)}", "DELETE")

    def add_modality(self, name: str, aet: str, port: int) -> None:
        """Make a node on loopback known: a C-MOVE destination, and a target of Lua's SendToModality(id,
        name).
        """
        self.rest(f"/modalities/{name}", "PUT", json.dumps([aet, self.host, port]).encode())

    def send(self, sop_uid: str, modality: str) -> None:
        """C-STORE one instance to a known modality; urllib.error.HTTPError where that fails."""
        self.rest(f"/modalities/{modality}/store", "POST", self._id(sop_uid).encode())

    def lua(self, script: str) -> str:
        """Run a Lua script now; functions such as OnStoredInstance stay defined (auto-routing)."""
        return self.rest("/tools/execute-script", "POST", script.encode()).decode()

    def auto_route(self, modality: str) -> None:
        """Send everything that is stored from now on to a known modality."""
        self.lua(f"function OnStoredInstance(id, tags, metadata, origin) SendToModality(id, '{modality}') end")

    def jobs(self) -> list[dict[str, Any]]:
        """Orthanc's jobs (auto-routing and C-MOVE sends among them), expanded."""
        return list(json.loads(self.rest("/jobs?expand")))

    def _id(self, sop_uid: str) -> str:
        for found in json.loads(self.rest("/tools/lookup", "POST", sop_uid.encode())):
            if found["Type"] == "Instance":
                return str(found["ID"])
        raise KeyError(f"Orthanc does not hold {sop_uid}")


@contextmanager
def running_orthanc(
    folder: Path,
    *,
    aet: str = "ORTHANC",
    modalities: Mapping[str, tuple[str, int]] | None = None,
    overwrite: bool = True,
    dicomweb: bool = False,
    web_viewer: bool = False,
    options: Mapping[str, Any] | None = None,
    answers: Callable[[int, str], bool] = answers_echo,
) -> Iterator[Orthanc]:
    """Orthanc in an empty `folder`; `modalities` maps a name to (AE title, port on loopback), `options` are
    its own.

    `answers` says whether its DICOM port and AE title answer (by TLS, say). `dicomweb` loads the DICOMweb
    plugin under /dicom-web/, `web_viewer` Orthanc's own viewer (both skip the test where they are not
    installed).
    """
    executable = program("Orthanc")
    if dicomweb and not DICOMWEB_PLUGIN.exists():
        missing("Orthanc's DICOMweb plugin", "orthanc-dicomweb")
    if web_viewer and not WEB_VIEWER_PLUGIN.exists():
        missing("Orthanc's web viewer", "orthanc-webviewer")
    plugins = [str(DICOMWEB_PLUGIN)] * dicomweb + [str(WEB_VIEWER_PLUGIN)] * web_viewer
    orthanc = Orthanc(aet, free_port(), free_port())
    (folder / "storage").mkdir(parents=True)
    configuration = {
        "Name": "tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": plugins,
        "WebViewer": {"CachePath": str(folder / "web-viewer")},
        "DicomWeb": {"Enable": dicomweb, "Root": "/dicom-web/", "EnableWado": False},
        "DicomAet": aet,
        "DicomPort": orthanc.dicom_port,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomScuTimeout": 20,
        "HttpPort": orthanc.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "ExecuteLuaEnabled": True,
        "OverwriteInstances": overwrite,
        "SynchronousCMove": True,
        "SaveJobs": False,
        "StableAge": 1,
        "DicomModalities": {name: [title, orthanc.host, port] for name, (title, port) in (modalities or {}).items()},
        **(options or {}),
    }
    settings = folder / "orthanc.json"
    settings.write_text(json.dumps(configuration, indent=2))

    def ready() -> bool:
        try:
            orthanc.rest("/system")
        except (urllib.error.URLError, ConnectionError):
            return False
        return answers(orthanc.dicom_port, aet)

    with running([executable, str(settings)], folder / "orthanc.log", ready):
        yield orthanc


@dataclass(frozen=True)
class StoreSCP:
    """A running storescp that writes what it gets into `folder`."""

    aet: str
    dicom_port: int
    folder: Path
    host: str = "127.0.0.1"

    def files(self) -> dict[str, Path]:
        """SOP Instance UID -> file received."""
        received = {}
        for path in self.folder.iterdir():
            # storescp writes under the final name: what cannot be read yet is still on its way.
            try:
                received[str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)] = path
            except Exception:
                continue
        return received


@contextmanager
def running_storescp(
    folder: Path,
    *,
    aet: str = "STORESCP",
    options: tuple[str, ...] = ("+B", "+xa"),
    port: int | None = None,
    no_delay: bool = True,
) -> Iterator[StoreSCP]:
    """storescp in an empty `folder`; by default every class and syntax is taken and written exactly as
    read.
    """
    received = folder / "received"
    received.mkdir(parents=True)
    scp = StoreSCP(aet, port or free_port(), received)
    command = [program("storescp"), "-aet", aet, "-pm", *options, "-od", str(received), str(scp.dicom_port)]
    with running(command, folder / "storescp.log", lambda: answers_echo(scp.dicom_port, aet), no_delay=no_delay):
        yield scp


@dataclass(frozen=True)
class QueryRetrieveSCP:
    """A running dcmqrscp; fill it with `programs.dcmsend` or `storescu`."""

    aet: str
    dicom_port: int
    host: str = "127.0.0.1"


@contextmanager
def running_dcmqrscp(
    folder: Path,
    *,
    aet: str = "QRSCP",
    destinations: Mapping[str, int] | None = None,
    options: tuple[str, ...] = (),
) -> Iterator[QueryRetrieveSCP]:
    """dcmqrscp in an empty `folder`; `destinations` maps the AE titles it may C-MOVE to onto loopback ports.

    It takes uncompressed syntaxes only.
    """
    (folder / "storage").mkdir(parents=True)
    scp = QueryRetrieveSCP(aet, free_port())
    hosts = [
        f"host{number} = ({title}, {scp.host}, {port})"
        for number, (title, port) in enumerate((destinations or {}).items())
    ]
    settings = folder / "dcmqrscp.cfg"
    settings.write_text(
        "\n".join(
            [
                f"NetworkTCPPort = {scp.dicom_port}",
                "MaxPDUSize = 131072",
                "MaxAssociations = 16",
                "HostTable BEGIN",
                *hosts,
                "HostTable END",
                "VendorTable BEGIN",
                "VendorTable END",
                "AETable BEGIN",
                f"{aet} {folder / 'storage'} RW (100, 4096mb) ANY",
                "AETable END",
                "",
            ]
        )
    )
    command = [program("dcmqrscp"), *options, "-c", str(settings)]
    with running(command, folder / "dcmqrscp.log", lambda: answers_echo(scp.dicom_port, aet)):
        yield scp
