"""Lightning's strategies: under which of them parameters can be recorded and frozen."""

from __future__ import annotations

from dataclasses import dataclass

_TPU = "TPUs have not been tried: use GPUs or CPUs"
_NOT_MIDWAY = (
    'which cannot be frozen midway: use ModelParallelStrategy (FSDP2) or strategy="ddp_find_unused_parameters_true"'
)


@dataclass(frozen=True)
class Strategy:
    """One of Lightning's strategies, and what stands against using callbacks under it.

    Attributes:
        name: Name of its class, which is the same in both of Lightning's packages.
        recording: Why parameters cannot be recorded, and what to use instead; empty if they can be.
        freezing: Why parameters cannot be frozen while a run goes on, likewise.
        is_sharded: Whether torch.distributed.checkpoint loads its checkpoints, and expects the optimizer's state of
            every parameter that is trained.
    """

    name: str
    recording: str = ""
    freezing: str = ""
    is_sharded: bool = False


STRATEGIES = (
    Strategy("SingleDeviceStrategy"),
    Strategy("DDPStrategy"),
    Strategy("ModelParallelStrategy", is_sharded=True),
    Strategy(
        "FSDPStrategy",
        recording=(
            "FSDP1 flattens parameters and shares them out in a way of its own: use ModelParallelStrategy, and "
            "torch.distributed.fsdp.fully_shard (FSDP2) in configure_model"
        ),
        freezing=f"FSDPStrategy flattens parameters, {_NOT_MIDWAY}",
    ),
    Strategy(
        "DeepSpeedStrategy",
        recording=(
            "DeepSpeed keeps parameters and steps to itself, and none of its stages has been tried: use DDP where the "
            "model fits on a device, and ModelParallelStrategy with torch.distributed.fsdp.fully_shard (FSDP2) where "
            "it does not"
        ),
        freezing=f"DeepSpeedStrategy keeps parameters of its own, {_NOT_MIDWAY}",
    ),
    Strategy("SingleDeviceXLAStrategy", recording=_TPU),
    Strategy("XLAStrategy", recording=_TPU),
    Strategy("XLAFSDPStrategy", recording=_TPU),
)

UNKNOWN = "it is not known how it shares parameters out: use DDPStrategy or ModelParallelStrategy"


def find_strategy(strategy: object) -> Strategy | None:
    """Return the entry of a strategy: that of its own class, or of the nearest that it inherits from and is refused.

    A strategy for TPUs may inherit from one that is supported.
    """
    entries = {entry.name: entry for entry in STRATEGIES}
    found = [entries[cls.__name__] for cls in type(strategy).__mro__ if cls.__name__ in entries]
    return next((entry for entry in found if entry.recording), found[0] if found else None)


def check_recording(strategy: object, world_size: int) -> None:
    """Raise ValueError for a strategy under which parameters cannot be recorded; the message says what to use."""
    found = find_strategy(strategy)
    why = found.recording if found is not None else UNKNOWN if world_size > 1 else ""
    if why:
        raise ValueError(f"strategy={type(strategy).__name__} is not supported by TrajectoryCallback. {why}.")


def check_freezing(strategy: object) -> None:
    """Raise ValueError for a strategy under which parameters cannot be frozen midway; the message says what to use."""
    found = find_strategy(strategy)
    if found is not None and found.freezing:
        raise ValueError(f"{found.freezing}.")


def is_sharded(strategy: object) -> bool:
    """Return whether checkpoints need the optimizer's state of every parameter that is trained."""
    found = find_strategy(strategy)
    return found is not None and found.is_sharded
