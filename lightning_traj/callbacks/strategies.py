"""Under which of Lightning's strategies parameters can be recorded."""

from __future__ import annotations

SUPPORTED = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy")

# By the name of a class of either Lightning package, the strategy's own or one that it inherits from.
REFUSED = {
    "FSDPStrategy": (
        "FSDP1 flattens parameters and shares them out in a way of its own: use ModelParallelStrategy, and "
        "torch.distributed.fsdp.fully_shard (FSDP2) in configure_model"
    ),
    "DeepSpeedStrategy": (
        "DeepSpeed keeps parameters and steps to itself, and none of its stages has been tried: use DDP where the "
        "model fits on a device, and ModelParallelStrategy with torch.distributed.fsdp.fully_shard (FSDP2) where it "
        "does not"
    ),
    "XLAStrategy": "TPUs have not been tried: use GPUs or CPUs",
    "SingleDeviceXLAStrategy": "TPUs have not been tried: use GPUs or CPUs",
    "XLAFSDPStrategy": "TPUs have not been tried: use GPUs or CPUs",
}

UNKNOWN = "it is not known how it shares parameters out: use DDPStrategy or ModelParallelStrategy"


def check_strategy(strategy: object, world_size: int) -> None:
    """Raise ValueError for a strategy under which parameters cannot be recorded; the message says what to use."""
    classes = [cls.__name__ for cls in type(strategy).__mro__]
    why = next((REFUSED[name] for name in classes if name in REFUSED), None)
    if why is None and world_size > 1 and not any(name in SUPPORTED for name in classes):
        why = UNKNOWN
    if why is not None:
        raise ValueError(f"strategy={type(strategy).__name__} is not supported by TrajectoryCallback. {why}.")
