"""Several processes that train together, forked from the test: about a second for each launch."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

TIMEOUT = 60.0  # seconds, on a machine that has other things to do


def launch(target: Callable[..., Any], world_size: int, *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """Call ``target(*args)`` in so many processes with a gloo group; what each of them returned, by rank.

    Raises:
        AssertionError: one of them failed; the message has its traceback.
        TimeoutError: they did not end in time, and were killed. Where each of them was is printed to stderr.
    """
    context = multiprocessing.get_context("fork")
    port = _free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
    processes = [
        context.Process(target=_run, args=(pipe, rank, world_size, port, timeout, target, args))
        for rank, (_, pipe) in enumerate(pipes)
    ]
    deadline = time.monotonic() + timeout
    for process in processes:
        process.start()
    for _, pipe in pipes:
        pipe.close()
    try:
        waiting: dict[Any, int] = {pipe: rank for rank, (pipe, _) in enumerate(pipes)}
        results: dict[int, Any] = {}
        failures: list[str] = []
        while waiting:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = waiting.pop(pipe)
                try:
                    failed, result = pipe.recv()
                except EOFError:
                    failed, result = True, "it died without a word"
                if failed:  # the others may be waiting for it
                    deadline = min(deadline, time.monotonic() + 2.0)
                    failures.append(f"rank {rank} of {world_size}:\n{result}")
                results[rank] = result
        if failures:
            raise AssertionError("\n".join(failures))
        if waiting:
            raise TimeoutError(f"ranks {sorted(waiting.values())} of {world_size} did not end in {timeout} s")
        return [results[rank] for rank in range(world_size)]
    finally:
        for process in processes:
            process.join(0.0 if waiting else 10.0)
            if process.is_alive():
                process.kill()
                process.join()


def _run(
    pipe: Connection, rank: int, size: int, port: int, timeout: float, target: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(0.95 * timeout)
    torch.set_num_threads(1)
    # What torchrun sets: Lightning then starts no processes of its own.
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "NODE_RANK": "0",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",  # or Lightning asks for more, which a forked process waits for in vain
    }
    try:
        torch.distributed.init_process_group("gloo")
        result = (False, target(*args))
    except BaseException:
        result = (True, traceback.format_exc())
    pipe.send(result)
    pipe.close()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
