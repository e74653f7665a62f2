"""Values of parameter tensors, ordinary or compressed, and the reasons why some cannot be read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_traj.blocks.block import has_entries

_ORDINARY = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_ORDINARY |= {torch.complex32, torch.complex64, torch.complex128}


class UnreadableError(RuntimeError):
    """The values of some parameters cannot be read.

    Args:
        reasons: Reason for each parameter, by its name.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("; ".join(f"parameter {name!r} cannot be read: {reason}" for name, reason in reasons.items()))
        self.reasons = reasons


def is_ordinary(tensor: Tensor) -> bool:
    """Whether a tensor is local, dense and of a dtype that all operations support, as nearly all tensors are."""
    return (
        (type(tensor) is Tensor or type(tensor) is nn.Parameter)
        and tensor.dtype in _ORDINARY
        and tensor.layout is torch.strided
    )


def read(tensor: Tensor) -> Tensor:
    """Return the values of a tensor as an ordinary tensor without gradient.

    The result is a view of an ordinary tensor, and a copy of any other. Quantised tensors are dequantised, sparse ones
    are made dense, and floating-point numbers of one byte are converted to bfloat16, which holds all of them exactly.

    Raises:
        RuntimeError, TypeError, ValueError, …: the tensor's class does not support these conversions.
    """
    if is_ordinary(tensor):
        return tensor.detach()
    found = tensor.dequantize() if tensor.is_quantized or _dequantises(tensor) else tensor
    found = found.detach()
    if found.layout is not torch.strided:
        found = found.to_dense()
    if found.is_floating_point() and found.element_size() == 1:
        found = found.to(torch.bfloat16)
    if type(found) is not Tensor:  # a subclass may change what views and sums do
        plain = torch.empty(found.shape, dtype=found.dtype, device=found.device)
        plain.copy_(found)
        found = plain
    if not is_ordinary(found) or found.shape != tensor.shape:
        raise TypeError(f"its values come as {found.dtype} of shape {tuple(found.shape)}")
    return found


def unreadable_reason(tensor: Tensor, meta: bool = False) -> str:
    """Return the reason why the values of a tensor cannot be read; empty where they can, or where it has no entries.

    Args:
        tensor: Parameter, or the local shard of one.
        meta: Whether the whole model is on the meta device, where no tensor has values.
    """
    try:
        if not has_entries(tensor):
            return ""
        if tensor.is_meta and not meta:
            return "it has no values (it is on the meta device)"
        if is_ordinary(tensor) and not tensor.is_nested:
            return ""
        read(tensor).reshape(-1)[:1].to(torch.float64)
    except (MemoryError, torch.OutOfMemoryError):
        return ""  # the values may fit into memory at another time
    except Exception as error:
        return describe(tensor, error)
    return ""


def describe(tensor: Tensor, error: Exception) -> str:
    """Describe in one line which kind of tensor could not be read, and why."""
    kind = type(tensor).__name__ if type(tensor) not in (Tensor, nn.Parameter) else str(tensor.dtype)
    reason = str(error).strip().partition("\n")[0]
    return f"{kind}: {reason[:160] or type(error).__name__}"


def _dequantises(tensor: Tensor) -> bool:
    """Whether the tensor's class defines its own ``dequantize``; the method that all tensors inherit does not count."""
    return type(tensor).dequantize is not Tensor.dequantize
