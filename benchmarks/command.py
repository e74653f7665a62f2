"""How long does the command take to reach the first file, in multiples of importing torch?

Both are timed as fresh processes. ``analyze`` ends when it opens a checkpoint, ``compare`` when it opens a trajectory:
what comes before that is the same for every folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from _setting import environment, in_turns, ratio

from lightning_traj import from_checkpoints

TARGET = 1.3  # 2.5 s where importing torch takes 1.9 s
STOPPED = 77  # exit code of a command that has come to its first file
SLOW = ("lightning", "torchmetrics", "transformers", "scipy", "matplotlib")

# A file is opened by Python, which tells its audit hooks, or by safetensors, which does not.
PROGRAM = f"""
import json, os, sys
import safetensors

def stop(*_, **__):
    loaded = [name for name in {SLOW} if name in sys.modules]
    print(json.dumps(loaded), flush=True)
    os._exit({STOPPED})

def hook(event, arguments):
    if event == "open" and str(arguments[0]).startswith(sys.argv[1]):
        stop()

sys.addaudithook(hook)
safetensors.safe_open = stop
from lightning_traj.cli.command import main
main(sys.argv[2:])
"""


def first_file(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Run a command up to the first file that it opens in a folder; returns the slow modules that it has loaded."""
    run = [sys.executable, "-c", PROGRAM, str(folder), *arguments]
    result = subprocess.run(run, capture_output=True, text=True)
    if result.returncode != STOPPED:
        raise AssertionError(f"{arguments[0]} ended without opening a file: {result.stderr or result.stdout}")
    loaded: list[str] = json.loads(result.stdout)
    return loaded


def commands(folder: Path) -> dict[str, list[str]]:
    """Both commands on small files, which are written into the folder."""
    for run in ("a", "b"):
        (folder / run).mkdir()
        for step in range(3):
            torch.save({"weight": torch.ones(10) * (1 + step)}, folder / run / f"step={step}.pt")
        from_checkpoints(folder / run).save(folder / f"{run}.safetensors")
    out = ["--out", str(folder / "out")]
    return {
        "analyze": ["analyze", str(folder / "a"), *out],
        "compare": ["compare", str(folder / "a.safetensors"), str(folder / "b.safetensors"), *out],
    }


def check(folder: Path, arguments: Sequence[str]) -> None:
    """A command comes to its first file, and has loaded nothing slow until then."""
    if loaded := first_file(folder, arguments):
        raise AssertionError(f"{arguments[0]} has loaded {', '.join(loaded)} before its first file")


def import_torch() -> None:
    """Import torch in a fresh process, and leave it as the commands do: at once."""
    subprocess.run([sys.executable, "-c", "import os, torch; os._exit(0)"], check=True)


def measure(repeats: int = 5) -> list[float]:
    """Time to the first file as a multiple of importing torch, for each command."""
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for command, arguments in commands(folder).items():
            check(folder, arguments)
            sides = {command: lambda arguments=arguments: first_file(folder, arguments), "import torch": import_torch}
            ratios.append(ratio(f"{command} up to its first file / import torch", in_turns(sides, repeats), TARGET))
    return ratios


if __name__ == "__main__":
    print(environment())
    measure()
