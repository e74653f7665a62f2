"""The quantities by the names that ``track=`` takes."""

from __future__ import annotations

from collections.abc import Callable

from lightning_traj.recording.quantities.moments import Moment
from lightning_traj.recording.quantities.quantity import Quantity
from lightning_traj.recording.quantities.step_quantities import Gradient, Update
from lightning_traj.recording.quantities.weights import Average, Weights

_MAKERS: dict[str, Callable[[], Quantity]] = {
    "weights": Weights,
    "average": Average,
    "gradient": Gradient,
    "update": Update,
    "first_moment": lambda: Moment("first_moment", ("exp_avg", "grad_avg", "momentum_buffer")),
    "second_moment": lambda: Moment("second_moment", ("exp_avg_sq", "square_avg", "sum", "variance")),
}
QUANTITIES = tuple(_MAKERS)


def quantity(track: str) -> Quantity:
    """Return a new quantity of this name, one of ``QUANTITIES``."""
    return _MAKERS[track]()
