"""What a step costs when BatchNorm alone is trained: forward, backward and optimizer, one step of each side by turns.

python -m recipes.hybrid.step_time
python -m recipes.hybrid.step_time --setting.side=32 --rounds=30
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import nn

from recipes.hybrid.run import Setting
from recipes.markdown import markdown_table
from recipes.resnet.networks import ResNet

SIDES = ("everything", "BatchNorm only")
PARTS = ("forward", "backward", "optimizer", "step")

Seconds = dict[str, dict[str, list[float]]]
"""Of each side and part, [rounds]."""


def measure(setting: Setting, rounds: int) -> Seconds:
    """Time steps of both sides in turn, so that both meet the same machine; CPU time, without waiting for it."""
    torch.manual_seed(0)
    network = ResNet(setting.depth, setting.width)
    images = torch.randn(setting.batch_size, 3, setting.side, setting.side)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (setting.batch_size,))
    norms = {p for module in network.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=setting.weight_decay)
    seconds: Seconds = {side: {part: [] for part in PARTS} for side in SIDES}
    for repeat in range(rounds + 2):
        for side in SIDES:
            for p in network.parameters():
                p.requires_grad_(side == "everything" or p in norms)
                p.grad = None
            times = [time.process_time()]
            loss = F.cross_entropy(network(images), labels)
            times.append(time.process_time())
            loss.backward()
            times.append(time.process_time())
            optimizer.step()
            times.append(time.process_time())
            if repeat >= 2:  # the first ones allocate and tune
                durations = [end - start for start, end in pairwise(times)]
                for part, duration in zip(PARTS, [*durations, sum(durations)], strict=True):
                    seconds[side][part].append(duration)
    return seconds


def step_time_table(seconds: Seconds, parts: Sequence[str] = PARTS) -> str:
    """Milliseconds of each part, the fastest of all rounds: what else the machine does only adds to it."""
    full, norms = fastest = [[min(times[part]) for part in parts] for times in seconds.values()]
    rows = [(f"{side}, ms", [f"{1e3 * t:.1f}" for t in times]) for side, times in zip(seconds, fastest, strict=True)]
    rows.append(("ratio", [f"{ours / theirs:.2f}" for ours, theirs in zip(norms, full, strict=True)]))
    return markdown_table(["", *parts], [[label, *cells] for label, cells in rows])


def step_time(setting: Setting = Setting(), rounds: int = 40, threads: int = 1) -> None:  # noqa: B008 (frozen)
    """Print the table.

    Args:
        setting: batch size, side of the images, depth and width of the network.
        rounds: steps of each side.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    print(step_time_table(measure(setting, rounds)))


if __name__ == "__main__":
    auto_cli(step_time, as_positional=False)
