"""A record of all collectives that this process issues: on which group, by whom, and in which hook."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.trainer.connectors.logger_connector import result
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_traj

PACKAGE = str(Path(lightning_traj.__file__).parent)
HOOKS = {"_call_callback_hooks", "_call_lightning_module_hook", "_call_callbacks_on_save_checkpoint"}


class Collective(NamedTuple):
    """One collective.

    Args:
        op: Name of the operator.
        group: Name of the process group, the same on all ranks.
        shape: Shape of the first tensor; one rank may give more of them, to gather or scatter.
        issuer: Who issues it: ``"metrics"``, Lightning for a logged metric; ``"ours"``, this package; ``"others"``.
        hook: Name of the hook in which it is issued; for hooks of callbacks, with the index of the callback.
    """

    op: str
    group: str
    shape: tuple[int, ...]
    issuer: str
    hook: tuple[str, int | None]

    def match(self) -> tuple[Any, ...]:
        """Return what has to be the same on all ranks; the first reader of a metric may be anybody."""
        return self[:4]


class Collectives(TorchDispatchMode):
    """Records the collectives issued while it is active, through whatever interface of torch.distributed."""

    def __init__(self) -> None:
        super().__init__()
        self.record: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = func.__name__
        functional = func.namespace == "_c10d_functional" and not op.startswith(("wait", "_wrap"))
        if func.namespace == "c10d" or functional:
            tensor = next(value for value in _flat(args) if isinstance(value, Tensor))
            self.record.append(Collective(op, _group(args), tuple(tensor.shape), *_caller()))
        return func(*args, **kwargs or {})


def _flat(value: Any) -> list[Any]:
    return [item for member in value for item in _flat(member)] if isinstance(value, list | tuple) else [value]


def _group(args: Any) -> str:
    for arg in reversed(args):  # the operator that reduces is an object or a string, too, and comes before
        if isinstance(arg, str):
            return arg
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
            return str(ProcessGroup.unbox(arg).group_name)
    raise AssertionError(f"no group among {args}")


def _caller() -> tuple[str, tuple[str, int | None]]:
    issuer, hook = "others", ("", None)
    frame = sys._getframe(2)
    while frame is not None:
        code, names = frame.f_code, frame.f_locals
        if issuer == "others" and code.co_filename == result.__file__:
            issuer = "metrics"
        elif issuer == "others" and code.co_filename.startswith(PACKAGE):
            issuer = "ours"
        if not hook[0] and code.co_name in HOOKS:
            at = names["trainer"].callbacks.index(names["callback"]) if "callback" in names else None
            hook = names.get("hook_name", "on_save_checkpoint"), at
        frame = frame.f_back
    return issuer, hook
