"""Small files in the layouts that recipes/resnet reads, of random pixels."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def write_cifar10(folder: Path, *, images: int = 40, files: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Files in CIFAR-10's binary layout; returns the training images [N, 3, 32, 32] and labels [N]."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (files * images, 3, 32, 32), dtype=np.uint8)
    labels = (np.arange(files * images) % 10).astype(np.uint8)
    records = np.concatenate([labels[:, None], pixels.reshape(len(pixels), -1)], axis=1)
    for i, part in enumerate(np.split(records, files)):
        part.tofile(folder / f"data_batch_{i + 1}.bin")
    records[:20].tofile(folder / "test_batch.bin")
    return pixels, labels


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


def write_idx(folder: Path, *, packed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's four files, of 40 images to train and 20 to validate; returns the first, [40, 28, 28], and labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8)
    parts = (pixels[:40], labels[:40], pixels[40:], labels[40:])
    for name, values in zip(IDX_FILES, parts, strict=True):
        content = idx_bytes(values)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return pixels[:40], labels[:40]


def write_image_folder(folder: Path, *, images: int = 4, size: tuple[int, int] = (40, 32)) -> None:
    """train and val with the classes ant and bee; width and height are given; each image has one colour of its own."""
    for part in ("train", "val"):
        for number, name in enumerate(("ant", "bee")):
            (folder / part / name).mkdir(parents=True)
            for i in range(images):
                image = Image.new("RGB", size, (100 * number, 10 * i, 200))
                image.save(folder / part / name / f"{i}.{'png' if i % 2 else 'JPEG'}", format="PNG")
