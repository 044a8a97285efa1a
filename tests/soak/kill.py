"""SIGKILL of the service and of its processes, 30 times at random moments of a run of 500 objects; the
archive is Orthanc.

Nothing accepted is lost, each lesion object has exactly one report in the archive, and `mammod check
--deep` has no complaint.
"""

from __future__ import annotations

from typing import Any

from model.bundle import untrained_bundle
from tests.soak.bounds import Bounds
from tests.support.kills import kill_run
from tests.support.peers.archives import running_orthanc
from tests.support.services import service

OBJECTS = 500
KILLS = 30


def run(bounds: Bounds) -> dict[str, Any]:
    bundle = bounds.folder / "bundle"
    untrained_bundle(bundle)
    with (
        running_orthanc(bounds.folder / "orthanc") as orthanc,
        service(bounds.folder / "service", bundle, (orthanc.aet, orthanc.dicom_port)) as tested,
    ):
        return kill_run(tested, orthanc, bounds.folder, OBJECTS, KILLS, bounds.seed, bounds.left)
