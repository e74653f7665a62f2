"""Changes of basis of the recorded Gram matrices, for NumPy arrays and torch tensors alike.

Recorded is H = Gram(θ_0, d_1, …, d_T) with the displacements d_t = θ_t − θ_0, since late updates are 1e-3 to 1e-6 of θ
and inner products of θ alone would lose them. The functions here add entries of H and never subtract them.

A local Gram matrix [4, 4] holds the inner products of θ_t, d_t, u_t and u_{t−1} at one snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Matrix = TypeVar("Matrix", "Tensor", NDArray[np.float64])

THETA, DISPLACEMENT, UPDATE, PREVIOUS_UPDATE = range(4)  # rows and columns of a local Gram matrix


def snapshot_gram(anchored: Matrix) -> Matrix:
    """Return G_ij = ⟨θ_i, θ_j⟩, shape [..., n, n], from H; θ_i = θ_0 + d_i, so each entry adds at most four of H."""
    cross = anchored[..., :1, :] * 1.0
    cross[..., 0] = 0.0
    return displacement_gram(anchored) + cross + cross.swapaxes(-1, -2) + anchored[..., :1, :1]


def displacement_gram(anchored: Matrix) -> Matrix:
    """Return the Gram matrix about θ_0, ⟨d_i, d_j⟩, shape [..., n, n], from H; row and column 0 are zero."""
    relative = anchored * 1.0
    relative[..., 0, :] = 0.0
    relative[..., :, 0] = 0.0
    return relative
