"""What a decoding process does in these tests, by the name of the file: wait for a file beside it and die, or answer."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def cut(path: Path, *_: Any) -> list[str]:
    if path.name == "poison":
        while not path.with_name("go").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return [path.name]
