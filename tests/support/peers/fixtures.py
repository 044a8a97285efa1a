"""Fixtures that start a real peer for one test and stop it; `tests.support.peers.archives` has the same
with more choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.peers.archives import (
    Orthanc,
    QueryRetrieveSCP,
    StoreSCP,
    running_dcmqrscp,
    running_orthanc,
    running_storescp,
)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """A fresh Orthanc; `add_modality` and `auto_route` make it send to us."""
    with running_orthanc(tmp_path / "orthanc") as peer:
        yield peer


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[StoreSCP]:
    """DCMTK's storescp, which keeps what it gets as files."""
    with running_storescp(tmp_path / "storescp") as peer:
        yield peer


@pytest.fixture
def dcmqrscp(tmp_path: Path) -> Iterator[QueryRetrieveSCP]:
    """DCMTK's dcmqrscp without C-MOVE destinations (use `running_dcmqrscp` to name them)."""
    with running_dcmqrscp(tmp_path / "dcmqrscp") as peer:
        yield peer
