"""Stand-ins for tensors that say they are ordinary and are not, as quantisation libraries have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")


class Quantized(Tensor):
    """As torchao's int8 weights: the dtype says bfloat16, and hardly any operation is there.

    ``dequantize`` is a way of its own in ``Dequantizable``, and missing here.
    """

    integers: Tensor
    scale: float

    @staticmethod
    def __new__(cls, integers: Tensor, scale: float, dtype: torch.dtype = torch.bfloat16) -> Any:
        return Tensor._make_wrapper_subclass(cls, integers.shape, dtype=dtype, device=integers.device)

    def __init__(self, integers: Tensor, scale: float, dtype: torch.dtype = torch.bfloat16) -> None:
        self.integers, self.scale = integers, scale

    @classmethod
    def of(cls, values: Tensor, dtype: torch.dtype = torch.bfloat16) -> Any:
        scale = float(values.abs().max() / 127)
        return cls((values / scale).round().to(torch.int8), scale, dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{type(self).__name__}({self.integers})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            (self,) = args
            return cls(func(self.integers), self.scale, self.dtype)
        raise NotImplementedError(f"{cls.__name__} dispatch: no {func}\nand more of it")


class Dequantizable(Quantized):
    def dequantize(self) -> Tensor:
        return (self.integers.float() * self.scale).to(self.dtype)


class Flaky(Dequantizable):
    """Cannot be read while ``fails`` says so."""

    fails: Callable[[], bool] = staticmethod(lambda: False)

    def dequantize(self) -> Tensor:
        if type(self).fails():
            raise RuntimeError("the file of its scales is gone")
        return super().dequantize()


class Plain(Tensor):
    """A subclass that does nothing, as many libraries have one."""


def packed() -> Tensor:
    """Two numbers in each entry, and no conversion."""
    return torch.zeros(3, 4, dtype=torch.float4_e2m1fn_x2)
