"""Real launches of several processes."""

from __future__ import annotations

import os
import subprocess
import sys

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d"]


TORCHRUN += ["--rdzv_endpoint", "localhost:0"]


def launch(launcher: list[str], arguments: list[str], **more: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, *launcher, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
