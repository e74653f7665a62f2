"""What the benchmarks share: the setting they print, sides timed in turns, and the shapes of two known models."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median

import lightning
import numpy as np
import torch

Shapes = dict[str, tuple[int, ...]]


def environment() -> str:
    """Processor, cores, threads and versions, in one line; and how busy the machine is already."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(": ")[2] for line in info.read_text().splitlines() if line.startswith("model name")]
    parts = [
        models[0] if models else platform.processor() or platform.machine(),
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads",
        f"load {os.getloadavg()[0]:.1f} before it began",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}, lightning {lightning.__version__}, numpy {np.__version__}",
    ]
    return "; ".join(parts)


def in_turns(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, [repeats]: one warm-up, then one of each in turn, so that all meet the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            result = side()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
            del result  # outside of the time: freeing is nobody's question
    return seconds


def ratio(what: str, seconds: Mapping[str, list[float]], target: float) -> float:
    """Print and return the first side as a multiple of the second, by the fastest of each: others were disturbed."""
    (ours, mine), (theirs, other) = seconds.items()
    value = min(mine) / min(other)
    print(
        f"{what}: {value:.2f} (at most {target:g} is wanted); "
        f"{ours} {1e3 * min(mine):.1f} ms, {theirs} {1e3 * min(other):.1f} ms; "
        f"by medians {median(mine) / median(other):.2f}"
    )
    return value


def resnet50() -> Shapes:
    """The parameters of a ResNet-50 for 1,000 classes, 25.6 million, after He et al. (2015)."""

    def layers() -> Iterator[tuple[str, int, int, int]]:  # name, inputs, outputs, width of the kernel
        yield "conv1", 3, 64, 7
        inputs = 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            width = 64 * 2**stage
            for block in range(blocks):
                name = f"layer{stage + 1}.{block}"
                yield f"{name}.conv1", inputs, width, 1
                yield f"{name}.conv2", width, width, 3
                yield f"{name}.conv3", width, 4 * width, 1
                if block == 0:
                    yield f"{name}.downsample", inputs, 4 * width, 1
                inputs = 4 * width

    shapes: Shapes = {}
    for name, inputs, outputs, kernel in layers():
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        shapes[f"{name}.bn.weight"] = shapes[f"{name}.bn.bias"] = (outputs,)
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def gpt2() -> Shapes:
    """The parameters of the smallest GPT-2, 124.4 million, the output layer being tied; after Radford et al. (2019)."""
    d = 768
    shapes: Shapes = {"wte.weight": (50257, d), "wpe.weight": (1024, d)}
    linear = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
    for layer in range(12):
        for name in ("ln_1", "ln_2"):
            shapes[f"h.{layer}.{name}.weight"] = shapes[f"h.{layer}.{name}.bias"] = (d,)
        for name, (inputs, outputs) in linear.items():
            shapes[f"h.{layer}.{name}.weight"] = (inputs, outputs)
            shapes[f"h.{layer}.{name}.bias"] = (outputs,)
    return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def parameters(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values of these shapes, float32."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
