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
        (0, {"least": 1}, ValueError, "n=0: pass a positive int."),
        (-1, {"least": 0}, ValueError, "n=-1: pass an int of 0 or more."),
        (3, {"least": 4, "example": 64}, ValueError, "n=3: pass an int of at least 4, such as 64."),
        (0, {"least": 1, "owner": "EveryNSteps"}, ValueError, "EveryNSteps(n=0): pass a positive int."),
        (2.0, {"least": 1}, TypeError, "n=2.0: pass a positive int."),
        (True, {"least": 1}, TypeError, "n=True: pass a positive int."),
        ("2", {}, TypeError, "n='2': pass an int."),
        (None, {}, TypeError, "n=None: pass an int."),
        (np.float64(2), {}, TypeError, "n=np.float64(2.0): pass an int."),
    ],
)
def test_wrong_integers_are_named(value, settings, error, message):
    with pytest.raises(error) as caught:
        check_int("n", value, **settings)
    assert str(caught.value) == message


def test_wrong_choices_are_named():
    with pytest.raises(ValueError, match=r"^by='unit': pass one of 'layer', 'role'\.$"):
        check_choice("by", "unit", ("layer", "role"))
    with pytest.raises(ValueError, match=r"^Search\(by=\['layer'\]\): pass one of"):
        check_choice("by", ["layer"], ("layer", "role"), owner="Search")
