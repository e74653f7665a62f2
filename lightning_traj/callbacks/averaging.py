"""The average of the weights that Lightning's WeightAveraging keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim.swa_utils import AveragedModel


def averaged_model(callbacks: Sequence[Any]) -> AveragedModel | None:
    """Return the average of the LightningModule that one of the callbacks keeps, if there is one."""
    return next((averaged for callback in callbacks if (averaged := _averaged_by(callback)) is not None), None)


def check_order(callbacks: Sequence[Any]) -> None:
    """Check that averages are recorded after they were updated.

    Raises:
        ValueError: a callback that records the average comes before the one that updates it.
    """
    averaging = [i for i, callback in enumerate(callbacks) if _averaged_by(callback) is not None]
    if any(getattr(callback, "track", "") == "average" for callback in callbacks[: max(averaging, default=0)]):
        raise ValueError(
            'track="average" reads the average before it is updated: list the TrajectoryCallback after '
            f"{type(callbacks[averaging[-1]]).__name__} in callbacks=."
        )


def _averaged_by(callback: Any) -> AveragedModel | None:
    """Return the averaged model of Lightning's WeightAveraging, of either package."""
    averaged = getattr(callback, "_average_model", None)
    return averaged if isinstance(averaged, AveragedModel) else None
