"""What a SLURM job sees, without SLURM."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lightning.pytorch.plugins.environments import SLURMEnvironment


def slurm(root: Path, rank: int = 0, tasks: int = 1) -> SLURMEnvironment:
    """As if this process were one of so many tasks of a job, whose requeueing is noted in a file."""
    if not rank:
        (root / "bin").mkdir(exist_ok=True)
        (root / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {root}/scontrol\n')
        (root / "bin" / "scontrol").chmod(0o755)
    os.environ |= {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "42",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
    }
    return SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGTERM)
