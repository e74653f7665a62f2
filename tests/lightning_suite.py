"""Run Lightning's own tests with and without a TrajectoryCallback in every Trainer, and list the tests that differ.

Usage, with a checkout of https://github.com/Lightning-AI/pytorch-lightning of the installed version:

    python tests/lightning_suite.py CHECKOUT tests_pytorch/callbacks tests_pytorch/loops -k "not checkpoint"

The arguments after the checkout are passed to pytest, which runs in its folder ``tests``. The callback comes after the
progress bar and before callbacks that save checkpoints. A test that takes more than two minutes fails. Tests that fail
only because the callback has left its files behind are counted, and not listed.
"""

from __future__ import annotations

import json
import os
import re
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

Outcomes = dict[str, tuple[str, str]]  # outcome of each test, and the message of its failure


# A plugin for the process of pytest


def pytest_configure() -> None:
    if not os.environ.get(CALLBACK):
        return
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.trainer.connectors.callback_connector import _CallbackConnector

    from lightning_traj import TrajectoryCallback

    on_trainer_init = _CallbackConnector.on_trainer_init

    def with_ours(self: Any, *args: Any, **kwargs: Any) -> None:
        on_trainer_init(self, *args, **kwargs)
        callbacks = self.trainer.callbacks  # Lightning has moved those that save checkpoints to the end
        first = next((i for i, callback in enumerate(callbacks) if isinstance(callback, Checkpoint)), len(callbacks))
        self.trainer.callbacks = [*callbacks[:first], TrajectoryCallback(), *callbacks[first:]]

    _CallbackConnector.on_trainer_init = with_ours  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"the test took more than {LIMIT} s")

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


# The script


def run(checkout: Path, arguments: list[str], callback: str) -> Outcomes:
    """Run the tests.

    Args:
        checkout: Folder of Lightning's source.
        arguments: What pytest is called with.
        callback: Non-empty where every Trainer gets a TrajectoryCallback.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes"
        file.touch()
        paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths, OUTCOMES: str(file), CALLBACK: callback}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "lightning_suite", "--tb=line", *arguments]
        subprocess.run(command, cwd=checkout / "tests", env=environment)
        outcomes: Outcomes = {}
        for test, outcome, message in map(json.loads, file.read_text().splitlines()):
            if outcomes.get(test, ("passed", ""))[0] == "passed":  # a failing teardown hides no failure
                outcomes[test] = outcome, message
        return outcomes


def left_files_behind(message: str) -> bool:
    """Whether a test has failed only because it left files of the callback behind."""
    found = re.search(r"Test left artifacts behind: \{(.*?)\}", message)
    return found is not None and all(name.strip(" '").startswith("traj") for name in found[1].split(","))


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    checkout, arguments = Path(sys.argv[1]), sys.argv[2:]
    without, having = (run(checkout, arguments, callback) for callback in ("", "1"))
    others = {test: having.get(test, ("not run", "")) for test in without}
    differing = {test: other for test, other in others.items() if other[0] != without[test][0]}
    listed = {test: other for test, other in differing.items() if not left_files_behind(other[1])}
    files = len(differing) - len(listed)
    print(f"\n{len(differing)} of {len(without)} tests differ with a TrajectoryCallback, {files} of them by its files:")
    for test, (outcome, message) in listed.items():
        print(f"{test}: {without[test][0]} -> {outcome}: {' '.join(message.split())[:300]}")


if __name__ == "__main__":
    main()
