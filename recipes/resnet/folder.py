"""Photographs in folders, one a class, as ImageNet has them. Pillow decodes and cuts, in processes of the loader."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

EXPECTED = (
    "Expected a folder with train and val, and in each of them one folder a class, the same in both, with its images: "
    "for ImageNet unpack ILSVRC2012_img_train.tar, and the tar of each class within it, into train, and sort "
    "ILSVRC2012_img_val.tar by class into val. https://image-net.org gives them to registered users."
)
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

# Of ImageNet's training images, of 0 to 255, as everyone uses them.
MEAN = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
DEVIATION = 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

Box = tuple[int, int, int, int]  # left, top, right, bottom


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images [3, size, size] in uint8 with their labels: the place of their folder in alphabetical order.

    Args:
        folder: holds one folder a class.
        size: of the images given, height and width.
        augment: a random part of each image, as GoogLeNet and He et al.'s successors are trained; else its centre.
    """

    def __init__(self, folder: Path, size: int = 224, augment: bool = False) -> None:
        if size < 1:
            raise ValueError(f"image_size={size}: expected pixels, 1 or more; 224 is customary")
        self.size, self.augment = size, augment
        if not folder.is_dir():
            raise FileNotFoundError(f"data_path: there is no folder {folder}. {EXPECTED}")
        self.classes = sorted(each.name for each in folder.iterdir() if each.is_dir() and not hidden(each))
        if not self.classes:
            raise FileNotFoundError(f"data_path: {folder} has no folders of classes. {EXPECTED}")
        of_class = [images_in(folder / name) for name in self.classes]
        self.files = [file for files in of_class for file in files]
        self.labels = torch.repeat_interleave(torch.tensor([len(files) for files in of_class]))  # [N]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file = self.files[index]
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's for damaged files
            what = "not an image" if isinstance(error, UnidentifiedImageError) else f"cannot be read: {error}"
            raise ValueError(f"{file}: {what}. Replace or remove it. {EXPECTED}") from error
        box = random_part(*image.size) if self.augment else centre(*image.size)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), int(self.labels[index])


def hidden(path: Path) -> bool:
    return path.name.startswith(".")  # such as .DS_Store


def images_in(folder: Path) -> list[Path]:
    """The images of a class, in alphabetical order."""
    files = sorted(file for file in folder.iterdir() if not hidden(file))
    foreign = [file for file in files if file.suffix.lower() not in SUFFIXES]
    if foreign:
        raise ValueError(f"{foreign[0]}: not an image by its name ({', '.join(sorted(SUFFIXES))}). {EXPECTED}")
    if not files:
        raise ValueError(f"{folder}: a class without images. {EXPECTED}")
    return files


def image_folder(data_path: Path, image_size: int = 224) -> tuple[ImageFolder, ImageFolder]:
    """Images in train, of which random parts are shown, and in val, of which the centre is."""
    if not data_path.is_dir():
        raise FileNotFoundError(f"data_path={data_path}: there is no such folder. {EXPECTED}")
    train = ImageFolder(data_path / "train", image_size, augment=True)
    val = ImageFolder(data_path / "val", image_size)
    differing = sorted(set(train.classes) ^ set(val.classes))
    if differing:
        raise ValueError(
            f"data_path={data_path}: train has {len(train.classes)} classes and val {len(val.classes)}; only one of "
            f"them has {differing[0]}. {EXPECTED}"
        )
    return train, val


def random_part(width: int, height: int) -> Box:
    """8 to 100 % of the area, 3:4 to 4:3, anywhere; the centre if ten attempts fail. After Szegedy et al. (2014)."""
    for _ in range(10):
        area = width * height * float(torch.empty(()).uniform_(0.08, 1))
        ratio = math.exp(float(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3))))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(torch.randint(width - w + 1, ())), int(torch.randint(height - h + 1, ()))
            return left, top, left + w, top + h
    side = min(width, height)
    return square(width, height, side)


def centre(width: int, height: int) -> Box:
    """What is left when the shorter side is scaled to 256 and the central 224x224 are cut out."""
    return square(width, height, round(min(width, height) * 224 / 256))


def square(width: int, height: int, side: int) -> Box:
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
