"""Run Lightning's own tests with and without a TrajectoryCallback in every Trainer, and list the tests that differ.

Usage, with a checkout of https://github.com/Lightning-AI/pytorch-lightning of the installed version:

    python tests/lightning_suite.py CHECKOUT tests_pytorch/callbacks tests_pytorch/loops -k "not checkpoint"

What follows the checkout goes to pytest, which runs in the folder ``tests`` of the checkout. The callback comes after
the progress bar and before callbacks that save checkpoints. A test that takes more than two minutes fails.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
OUTCOMES, CALLBACK = "LIGHTNING_SUITE_OUTCOMES", "LIGHTNING_SUITE_CALLBACK"
LIMIT = 120  # seconds

Outcomes = dict[str, tuple[str, str]]  # by test: its outcome, and the last line of what failed


# In the process of pytest, as a plugin


def pytest_configure() -> None:
    if not os.environ.get(CALLBACK):
        return
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.trainer.connectors.callback_connector import _CallbackConnector

    from lightning_traj import TrajectoryCallback

    on_trainer_init = _CallbackConnector.on_trainer_init

    def with_ours(self: Any, *args: Any, **kwargs: Any) -> None:
        on_trainer_init(self, *args, **kwargs)
        callbacks = self.trainer.callbacks  # where those that save checkpoints come last
        first = next((i for i, callback in enumerate(callbacks) if isinstance(callback, Checkpoint)), len(callbacks))
        self.trainer.callbacks = [*callbacks[:first], TrajectoryCallback(), *callbacks[first:]]

    _CallbackConnector.on_trainer_init = with_ours  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"it took more than {LIMIT} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        return (yield)
    finally:
        signal.alarm(0)


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        with Path(os.environ[OUTCOMES]).open("a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, crash.message if crash else ""]) + "\n")


# As a script


def outcomes(checkout: Path, arguments: list[str], callback: str) -> Outcomes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes"
        file.touch()
        paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths, OUTCOMES: str(file), CALLBACK: callback}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "lightning_suite", "--tb=line", *arguments]
        subprocess.run(command, cwd=checkout / "tests", env=environment)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return {test: (outcome, message) for test, outcome, message in lines}


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    checkout, arguments = Path(sys.argv[1]), sys.argv[2:]
    without, having = (outcomes(checkout, arguments, callback) for callback in ("", "1"))
    differing = [test for test in without if without[test][0] != having.get(test, ("not run", ""))[0]]
    print(f"\n{len(differing)} of {len(without)} tests differ with a TrajectoryCallback:")
    for test in differing:
        outcome, message = having.get(test, ("not run", ""))
        print(f"{test}: {without[test][0]} -> {outcome}: {' '.join(message.split())[:300]}")


if __name__ == "__main__":
    main()
