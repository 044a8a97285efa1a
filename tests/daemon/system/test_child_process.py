"""Processes beside the service's own: they end when it ends, however it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.peers.programs import wait_until

ROOT = Path(__file__).parents[3]
# A program with a child that ignores SIGTERM, as ours do; it prints the child's id and ends as asked.
PROGRAM = """
import os, signal, sys
from daemon.system.child_process import ChildProcess, initialise_child

def work(pipe):
    initialise_child("mammod-test")
    pipe.send(os.getpid())
    pipe.recv()

if __name__ == "__main__":
    child = ChildProcess("test", work)
    print(child.pipe.recv(), flush=True)
    os.kill(child.pid, signal.SIGTERM)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "ended":
        child.close()
    if sys.argv[1] == "raised":
        raise SystemExit(3)
"""


@pytest.mark.parametrize(("how", "status"), [("returned", 0), ("raised", 3), ("ended", 0), ("killed", -signal.SIGKILL)])
def test_a_process_ends_with_the_program(how: str, status: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, how],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    process = Path(f"/proc/{int(done.stdout)}")
    wait_until(lambda: not process.exists() or " Z " in (process / "stat").read_text(), "it has ended")
