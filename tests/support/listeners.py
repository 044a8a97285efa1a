"""Fixtures of a running listener: where it receives, what it accepted, and the listener itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.receiving.listener import Listener
from tests.support.scu import Accepted, listener_settings, listening


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """The folder of what is being received."""
    return tmp_path / "incoming"


@pytest.fixture
def accepted(tmp_path: Path) -> Accepted:
    """What the listener accepted."""
    return Accepted(tmp_path / "accepted")


@pytest.fixture
def listener(incoming: Path, accepted: Accepted) -> Iterator[Listener]:
    """A listener with default settings on a free port."""
    with listening(Listener(listener_settings(), incoming, accepted)) as running:
        yield running
