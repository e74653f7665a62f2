"""Values of quantities, whatever tensors they come in."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_traj.tensors import is_ordinary, is_sharded, read


def values_of(tensor: Tensor) -> Tensor:
    """Return the values of a tensor, without gradient: as a sharded tensor where it is one, else as an ordinary one."""
    return tensor.detach() if is_sharded(tensor) else read(tensor)


def zeros_like(tensor: Tensor) -> Tensor:
    """Return zeros of a tensor's shape and placement. For plain tensors they take no memory."""
    if is_sharded(tensor):
        return torch.zeros_like(tensor, requires_grad=False)
    dtype = tensor.dtype if is_ordinary(tensor) else torch.float32
    return torch.zeros((), dtype=dtype, device=tensor.device).expand(tensor.shape)
