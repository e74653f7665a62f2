"""Messages of argument checks: the argument, the value and the remedy."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_traj.checks import check_choice, check_int


def test_right_values_pass():
    check_int("n", 1, least=1)
    check_int("n", 0, least=0)
    check_int("n", -5)
    check_choice("by", "layer", ("layer", "role"))


@pytest.mark.parametrize(
    ("value", "settings", "error", "message"),
    [
        (0, {"least": 1}, ValueError, "n must be a positive int, got 0. Pass an int such as 1."),
        (-1, {"least": 0}, ValueError, "n must be an int of 0 or more, got -1. Pass an int such as 0."),
        (3, {"least": 4, "example": 64}, ValueError, "n must be an int of at least 4, got 3. Pass an int such as 64."),
        (2.0, {"least": 1}, TypeError, "n must be a positive int, got 2.0. Pass an int such as 1."),
        (True, {"least": 1}, TypeError, "n must be a positive int, got True. Pass an int such as 1."),
        ("2", {}, TypeError, "n must be an int, got '2'. Pass an int such as 0."),
        (None, {}, TypeError, "n must be an int, got None. Pass an int such as 0."),
        (np.float64(2), {}, TypeError, "n must be an int, got np.float64(2.0). Pass an int such as 0."),
    ],
)
def test_wrong_integers_are_named(value, settings, error, message):
    with pytest.raises(error) as caught:
        check_int("n", value, **settings)
    assert str(caught.value) == message


def test_wrong_choices_are_named():
    with pytest.raises(ValueError, match="by must be 'layer', 'role' or 'block', got 'unit'. Pass one of these."):
        check_choice("by", "unit", ("layer", "role", "block"))
    with pytest.raises(ValueError, match="got \\['layer'\\]"):
        check_choice("by", ["layer"], ("layer", "role"))
