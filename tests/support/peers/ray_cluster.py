"""A Ray cluster of two nodes on this machine, in a process of its own that ends with whoever started it.

As a program: `python -m tests.support.peers.ray_cluster PORT FOLDER` does what its standard input says, one
word a line: "up" starts both nodes, "kill-second" kills one as a power cut would, "down" kills both. It
answers each with "ok" on standard output.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.peers.programs import free_port
from tests.support.repository import ROOT

UP_LIMIT_S = 150
STORE = 80 << 20  # bytes; Ray wants 75 MiB at least
NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": STORE}  # the GPU is a number to Ray, nothing looks for it


@dataclass
class RayCluster:
    """The cluster whose head listens on 127.0.0.1:`port`; `folder` is where Ray and its processes write."""

    port: int
    folder: Path
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def workers(self) -> dict[str, Any]:
        """The [workers] section for it: two actors, so that each node has one."""
        return {"backend": "ray", "ray_address": self.address, "count": 2, "ray_gpus": 0.5, "ray_cpus": 1}

    def do(self, what: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        readable, _, _ = select.select([self.process.stdout], [], [], UP_LIMIT_S)
        answer = self.process.stdout.readline().strip() if readable else "no answer"
        assert answer == "ok", f"{what}: {answer!r}; {(self.folder / 'cluster.log').read_text()[-2000:]}"

    def logs(self) -> Iterator[Path]:
        """Every file that Ray and the actors wrote."""
        return (path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())


@contextmanager
def running_ray() -> Iterator[RayCluster]:
    """Both nodes up until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="mr", dir="/tmp"))  # short: sockets lie below it
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAMMOD_", "RAY_"))}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_raylet_start_wait_time_s"] = f"{UP_LIMIT_S}"  # of a machine that is busy
    with (folder / "cluster.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.peers.ray_cluster", str(port), str(folder)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    cluster = RayCluster(port, folder, process)
    try:
        cluster.do("up")
        yield cluster
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()  # at its end the nodes go
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait(10)
            process.stdout.close()
            shutil.rmtree(folder, ignore_errors=True)


class _Nodes:
    def __init__(self, port: int, folder: str) -> None:
        self._port, self._folder = port, f"{folder}/ray"  # where Ray looks, by TMPDIR
        self._nodes: list[Any] = []

    def up(self) -> None:
        from ray.cluster_utils import Cluster

        Path(self._folder).mkdir(exist_ok=True)
        head = NODE | {
            "gcs_server_port": self._port, "include_dashboard": False, "temp_dir": self._folder,
        }  # fmt: skip
        cluster = Cluster(initialize_head=True, head_node_args=head)
        second = cluster.add_node(**NODE)
        self._nodes = [cluster.head_node, second]

    def kill_second(self) -> None:
        self._kill(self._nodes.pop())

    def down(self) -> None:
        while self._nodes:
            self._kill(self._nodes.pop())

    @staticmethod
    def _kill(node: Any) -> None:
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer
    nodes = _Nodes(int(sys.argv[1]), sys.argv[2])
    try:
        for line in sys.stdin:
            getattr(nodes, line.strip().replace("-", "_"))()
            print("ok", file=answers, flush=True)
    finally:
        nodes.down()


if __name__ == "__main__":
    main()
