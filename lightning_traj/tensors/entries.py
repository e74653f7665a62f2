"""Real entries of a tensor, in C order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def has_entries(parameter: Tensor) -> bool:
    """Whether a parameter can be part of a block: integer, empty and uninitialised (lazy) parameters cannot."""
    if is_lazy(parameter) or not parameter.numel():
        return False
    return parameter.is_floating_point() or parameter.is_complex() or parameter.is_quantized


def real_entries(tensor: Tensor) -> Tensor:
    """Return a view of a tensor as real entries: a complex entry becomes a pair of real ones."""
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def flat_range(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Return the entries `start:stop` of a tensor in C order, 1-D: a view if possible, otherwise a copy of them."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    row = tensor[0].numel()
    first, last = start // row, (stop - 1) // row
    if last > first + 1:
        head = flat_range(tensor[first], start - first * row, row)
        tail = flat_range(tensor[last], 0, stop - last * row)
        return torch.cat([head, tensor[first + 1 : last].reshape(-1), tail])
    ends = [(i, max(start - i * row, 0), min(stop - i * row, row)) for i in range(first, last + 1)]
    parts = [flat_range(tensor[i], begin, end) for i, begin, end in ends]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
