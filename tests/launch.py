"""Several processes for a test, forked from this one: much faster than starting Python anew."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def launch(target: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call ``target(*args)`` in so many forked processes, set up as torchrun does; what each returned, by rank.

    It has to return what ``torch.load(weights_only=True)`` reads.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _enter, (target, args, world_size, port, folder), nprocs=world_size, start_method="fork"
        )
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(world_size)]


def _enter(rank: int, target: Callable[..., Any], args: Any, world_size: int, port: int, folder: str) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    others = {"GROUP_RANK": 0, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**numbers, **others}.items()}, TORCHELASTIC_RUN_ID="test")
    torch.set_num_threads(1)
    torch.save(target(*args), Path(folder, f"{rank}.pt"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
