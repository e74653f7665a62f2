"""What does a snapshot send between processes? Calls and bytes, counted, and worked out for any model and any ranks.

Sketched it is one all-reduce of the sketches of all blocks, in full one of the new row of each block's Gram matrix and
of what the last updates are to each other: it does not grow with the parameters, nor with the number of ranks.
"""

from __future__ import annotations

import multiprocessing
import socket
import tempfile
from math import prod
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _setting import Shapes, environment, parameters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_traj.distributed.process_group import Ranks
from lightning_traj.recording.recorder import Recorder
from lightning_traj.recording.settings import RecordingSettings
from lightning_traj.sketch.countsketch import DEFAULT_DIM

SHAPES: Shapes = {"embed": (1000, 64), **{f"h.{i}.{k}": (64, 64) for i in range(4) for k in "qkv"}, "norm": (64,)}
SNAPSHOTS = 5
MAX_SNAPSHOTS = 256  # the callback's default
LIMIT = 1e-10  # of the Gram matrix, in norms


def pythia_12b() -> Shapes:
    """The parameters of Pythia-12B, 11.8 billion, after Biderman et al. (2023); q, k and v apart."""
    d, layers, vocabulary = 5120, 36, 50688
    shapes: Shapes = {"embed_in.weight": (vocabulary, d), "embed_out.weight": (vocabulary, d)}
    for layer in range(layers):
        linear = {"attention.dense": (d, d), "mlp.dense_h_to_4h": (4 * d, d), "mlp.dense_4h_to_h": (d, 4 * d)}
        linear |= {f"attention.query_key_value:{part}": (d, d) for part in "qkv"}
        for name, shape in linear.items():
            shapes[f"h.{layer}.{name}.weight"] = shape
            shapes[f"h.{layer}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"h.{layer}.{name}.weight"] = shapes[f"h.{layer}.{name}.bias"] = (d,)
    return shapes | {"final_layer_norm.weight": (d,), "final_layer_norm.bias": (d,)}


def bytes_sent(shapes: Shapes, snapshot: str, n: int = MAX_SNAPSHOTS, sketch_dim: int = DEFAULT_DIM) -> int:
    """Bytes of the one all-reduce of a snapshot: what each rank gives, and gets."""
    if snapshot == "sketch":
        return 8 * sum(min(prod(shape), sketch_dim) for shape in shapes.values())
    return 8 * len(shapes) * (n + 6)


def walk(step: int) -> dict[str, torch.Tensor]:
    return {name: theta * (1 + 0.1 * step) + step for name, theta in parameters(SHAPES).items()}


def rank_of(rank: int, size: int, port: int, results: SimpleQueue[Any]) -> None:
    """One of several processes with sharded parameters: what it sends, and how far its Gram matrix is off."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    sent: list[int] = []
    reduce = dist.all_reduce

    def counting(tensor: torch.Tensor, **group: Any) -> None:
        sent.append(tensor.nbytes)
        reduce(tensor, **group)

    dist.all_reduce = counting
    answers = {}
    for snapshot in ("sketch", "full"):
        with tempfile.TemporaryDirectory() as folder:
            settings = RecordingSettings(snapshot=snapshot)
            alone, ours = (Recorder(settings, Path(folder, f"{rank}{i}")) for i in range(2))
            ours.process.ranks = Ranks.of_world()
            for step in range(SNAPSHOTS):
                theta = walk(step)
                shards = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in theta.items()}
                if not step:
                    ours.prepare(shards)
                alone.record(theta, step, step)
                sent.clear()
                ours.record(shards, step, step)
            gram, expected = (recorder.collect()[0].anchored for recorder in (ours, alone))
            norms = expected.diagonal(axis1=1, axis2=2) ** 0.5
            error = (abs(gram - expected) / (norms[:, :, None] * norms[:, None, :])).max()
            answers[snapshot] = list(sent), float(error)
    results.put((rank, answers))
    dist.barrier()
    dist.destroy_process_group()


def measure(size: int, limit: float = LIMIT) -> None:
    """Count what the last snapshot sends at this world size, and check the answer against one process."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = context.SimpleQueue()
    processes = [context.Process(target=rank_of, args=(rank, size, port, results)) for rank in range(size)]
    for process in processes:
        process.start()
    answers = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    for snapshot in ("sketch", "full"):
        (sent, error), *others = [answers[rank][snapshot] for rank in range(size)]
        expected = bytes_sent(SHAPES, snapshot, SNAPSHOTS)
        if sent != [expected] or any(other != (sent, error) for other in others):
            raise AssertionError(f"{snapshot}: {sent} bytes were sent, and {[expected]} expected, on all ranks alike")
        if not error < limit:
            raise AssertionError(f"{snapshot}: the Gram matrix of {size} ranks is off by {error:.1e}")
        numel = sum(map(prod, SHAPES.values()))
        print(
            f"{size} ranks, {snapshot}, {len(SHAPES)} blocks, {numel:,} parameters, snapshot {SNAPSHOTS}: "
            f"{len(sent)} call, {sent[0]:,} bytes (to gather the parameters would be {4 * numel:,}); "
            f"error of the Gram matrix {error:.1e}"
        )


def table(shapes: Shapes) -> list[str]:
    """What a snapshot costs each of so many ranks, in a ring: sketched, in full, and by gathering the parameters."""
    numel = sum(map(prod, shapes.values()))
    sketched, full = (bytes_sent(shapes, snapshot) for snapshot in ("sketch", "full"))
    columns = ("ranks", "sketched", "full, 256 snapshots", "gathering the parameters, bfloat16", "parameters a rank")
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---'] * len(columns))} |"]
    for ranks in (1, 8, 64, 1024):
        ring = 2 * (ranks - 1) / ranks  # an all-reduce: a sum, and its distribution
        parts = [readable(part) for part in (sketched * ring, full * ring, 2 * numel * (ranks - 1) / ranks)]
        lines.append(f"| {' | '.join([f'{ranks:,}', *parts, f'{numel / ranks / 1e6:,.0f} million'])} |")
    return lines


def readable(count: float) -> str:
    if not count:
        return "nothing"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


if __name__ == "__main__":
    print(environment())
    for size in (2, 4):
        measure(size)
    shapes = pythia_12b()
    print(f"Pythia-12B: {len(shapes)} blocks, {sum(map(prod, shapes.values())) / 1e9:.2f} billion parameters")
    print("\n".join(table(shapes)))
