"""The image recipe's data: read as they were written, augmented as it says, and refused with a reason."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from image_files import IDX_FILES, idx_bytes, write_cifar10, write_idx, write_image_folder
from recipes.resnet.data import ImageData, random_crop, random_flip
from recipes.resnet.folder import ImageFolder, centre, image_folder, random_part
from recipes.resnet.sources import cifar10, digits, idx, mnist, stratified_order


@pytest.mark.parametrize(
    ("source", "train_images", "val_images", "size"), [(mnist, 4000, 1000, 32), (digits, 1437, 360, 8)]
)
def test_images_of_packages_come_from_them_alone(
    source: Callable[[], tuple[torch.utils.data.TensorDataset, ...]],
    train_images: int,
    val_images: int,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    train, val = source()
    for dataset, count in ((train, train_images), (val, val_images)):
        images, labels = dataset.tensors
        assert images.shape == (count, 3, size, size)
        assert images.dtype == torch.uint8
        assert images.max() == 255
        counts = labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= 0.005 * count + 1  # as in the whole: digits has 174 to 183 of each
    shared = {row.numpy().tobytes() for row in train.tensors[0]} & {row.numpy().tobytes() for row in val.tensors[0]}
    assert not shared


def test_digits_are_those_of_the_package() -> None:
    from sklearn.datasets import load_digits

    train, val = digits()
    images = torch.cat([train.tensors[0], val.tensors[0]])
    labels = torch.cat([train.tensors[1], val.tensors[1]])
    given = load_digits()
    ours = sorted((int(label), *row) for label, row in zip(labels, images[:, 2].flatten(1).tolist(), strict=True))
    theirs = sorted((int(label), *row) for label, row in zip(given.target, given.data.tolist(), strict=True))
    assert [label for label, *_ in ours] == [label for label, *_ in theirs]
    np.testing.assert_allclose(np.array(ours)[:, 1:] * 16 / 255, np.array(theirs)[:, 1:], atol=16 / 255 / 2 + 1e-9)


def test_every_stretch_of_the_stratified_order_has_the_classes_in_proportion() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = stratified_order(labels)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, stratified_order(labels))
    assert not torch.equal(order, stratified_order(labels, seed=1))
    for start in range(0, 100, 20):
        counts = labels[order[start : start + 20]].bincount(minlength=3)
        assert (counts - torch.tensor([12, 6, 2])).abs().max() <= 1


def test_cifar10_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    pixels, labels = write_cifar10(tmp_path)
    train, val = cifar10(tmp_path)
    assert np.array_equal(train.tensors[0].numpy(), pixels)
    assert np.array_equal(train.tensors[1].numpy(), labels)
    assert np.array_equal(val.tensors[0].numpy(), pixels[:20])


def test_real_cifar10_files(real_data: Path) -> None:
    folder = real_data / "cifar-10-batches-bin"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with CIFAR-10's binary files")
    train, _ = cifar10(folder)
    images, labels = train.tensors
    assert labels.bincount(minlength=10).min() > len(labels) / 20
    neighbours = (images[:, :, :, 1:].int() - images[:, :, :, :-1].int()).abs().float().mean()
    assert neighbours < 20  # in photographs neighbours are alike; pixels in another order would differ by 60 or so


def test_missing_and_foreign_cifar10_files_are_explained(tmp_path: Path) -> None:
    expected = "cifar-10-batches-bin.*CIFAR-10 binary version"
    with pytest.raises(FileNotFoundError, match=f"nowhere: there is no such folder.*{expected}"):
        ImageData(source="cifar10", data_path=tmp_path / "nowhere").setup("fit")
    (tmp_path / "data_batch_1").write_bytes(b"the Python version")
    with pytest.raises(FileNotFoundError, match=rf"no data_batch_\*\.bin.*{expected}"):
        cifar10(tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no test_batch\.bin.*{expected}"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", bytes(3072), bytes(3074) * 2, bytes([10]) + bytes(3072)],
    ids=["empty", "cut off", "CIFAR-100", "label 10"],
)
def test_damaged_cifar10_files_are_refused(tmp_path: Path, content: bytes) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_2\.bin: not a CIFAR-10 binary file"):
        cifar10(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_as_they_were_written(tmp_path: Path, packed: bool) -> None:
    pixels, labels = write_idx(tmp_path, packed=packed)
    train, val = idx(tmp_path)
    images = train.tensors[0].numpy()
    assert images.shape == (40, 3, 32, 32)
    assert (images[:, :, 2:30, 2:30] == pixels[:, None]).all()
    assert images.sum(dtype=int) == 3 * pixels.sum(dtype=int)  # the border is black
    assert np.array_equal(train.tensors[1].numpy(), labels)
    assert len(val) == 20


IMAGES, LABELS = IDX_FILES[:2]
PIXELS = np.zeros((40, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (IMAGES, b"", "begins with nothing"),
        (IMAGES, b"<html>not found", "begins with 3c 68 74 6d"),
        (IMAGES, idx_bytes(PIXELS.astype(">i4")), r"holds \[40, 28, 28\] bytes, and holds 125440"),
        (IMAGES, idx_bytes(PIXELS)[:10], "begins with 00 00 08 03"),
        (IMAGES, idx_bytes(PIXELS)[:-1], r"holds \[40, 28, 28\] bytes, and holds 31359"),
        (IMAGES, idx_bytes(PIXELS) + b"0", r"holds \[40, 28, 28\] bytes, and holds 31361"),
        (IMAGES, idx_bytes(PIXELS[:39]), "39 images of 28x28 and 40 labels"),
        (IMAGES, idx_bytes(PIXELS[:, :27]), "40 images of 27x28"),
        (LABELS, idx_bytes(PIXELS), "begins with 00 00 08 03.*begins with 00 00 08 01"),
        (LABELS, idx_bytes(np.full(40, 10, np.uint8)), "labels, up to 10"),
    ],
    ids=["empty", "page", "integers", "header", "short", "long", "count", "27x28", "swapped", "label 10"],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{reason}.*Expected a folder with train-images-idx3-ubyte"):
        idx(tmp_path)


def test_missing_and_damaged_packed_idx_files_are_explained(tmp_path: Path) -> None:
    expected = "Expected a folder with train-images-idx3-ubyte.*github.com/zalandoresearch/fashion-mnist"
    with pytest.raises(FileNotFoundError, match=f"nowhere: there is no such folder.*{expected}"):
        idx(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"no train-images-idx3-ubyte.*{expected}"):
        idx(tmp_path)
    write_idx(tmp_path, packed=True)
    file = tmp_path / f"{LABELS}.gz"
    whole = file.read_bytes()
    for content in (b"", whole[:-5], whole[:20] + bytes(9) + whole[29:], b"not gzip"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz: "):
            idx(tmp_path)


def test_folders_are_classes_in_alphabetical_order(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "train" / "ant" / ".DS_Store").write_bytes(b"left by a file manager")
    Image.new("L", (1, 300), 7).save(tmp_path / "train" / "bee" / "grey.png")  # of one channel, and a sliver
    train, val = image_folder(tmp_path, image_size=24)
    assert train.classes == ["ant", "bee"]
    assert train.labels.tolist() == [0] * 4 + [1] * 5
    assert len(val) == 8
    for i in range(4):
        for images in (train, val):
            image, label = images[4 + i]
            assert image.shape == (3, 24, 24)
            assert image.dtype == torch.uint8
            assert image.amin(dim=(1, 2)).tolist() == image.amax(dim=(1, 2)).tolist() == [100, 10 * i, 200]
            assert label == 1
    grey, _ = train[8]
    assert (grey == 7).all()


def test_validation_shows_the_centre_and_training_any_part(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    columns = np.broadcast_to(np.arange(128, dtype=np.uint8), (64, 128))  # the value tells the place
    Image.fromarray(np.stack([columns] * 3, axis=-1)).save(tmp_path / "ant" / "ramp.png")
    image, _ = ImageFolder(tmp_path, size=56)[0]
    assert torch.equal(image[0], torch.arange(36, 92, dtype=torch.uint8).expand(56, 56))  # 56 = 64 * 224 / 256
    torch.manual_seed(0)
    parts = [ImageFolder(tmp_path, size=56, augment=True)[0][0] for _ in range(20)]
    assert len({part.numpy().tobytes() for part in parts}) == 20


@pytest.mark.parametrize(("width", "height"), [(500, 375), (40, 32), (1, 300)])
def test_random_parts_have_the_sizes_that_they_say(width: int, height: int) -> None:
    torch.manual_seed(0)
    shares, ratios = [], []
    for _ in range(300):
        left, top, right, bottom = random_part(width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shares.append((right - left) * (bottom - top) / (width * height))
        ratios.append((right - left) / (bottom - top))
    if min(width, height) > 100:  # else rounding to pixels shows
        assert 0.075 < min(shares) < 0.12
        assert 0.9 < max(shares) <= 1
        assert 0.74 < min(ratios) < 0.8
        assert 1.25 < max(ratios) < 1.35
        assert abs(np.mean(np.log(ratios))) < 0.05
    left, top, right, bottom = centre(width, height)
    assert right - left == bottom - top == max(1, round(0.875 * min(width, height)))
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1


def test_foreign_and_damaged_image_folders_are_explained(tmp_path: Path) -> None:
    expected = "Expected a folder with train and val.*ILSVRC2012_img_train.tar"
    with pytest.raises(FileNotFoundError, match=f"nowhere: there is no such folder.*{expected}"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"there is no folder .*train.*{expected}"):
        image_folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=f"train has no folders of classes.*{expected}"):
        image_folder(tmp_path)
    write_image_folder(tmp_path)
    with pytest.raises(ValueError, match="image_size=0: "):
        image_folder(tmp_path, image_size=0)
    (tmp_path / "val" / "cat").mkdir()
    with pytest.raises(ValueError, match=f"val.cat: a class without images.*{expected}"):
        image_folder(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "val" / "cat" / "1.png")
    with pytest.raises(ValueError, match=f"train has 2 classes and val 3; only one of them has cat.*{expected}"):
        image_folder(tmp_path)
    (tmp_path / "val" / "cat" / "1.png").rename(tmp_path / "train" / "ant" / "1.txt")
    with pytest.raises(ValueError, match=f"1.txt: not an image by its name .*{expected}"):
        image_folder(tmp_path)


@pytest.mark.parametrize("damage", ["text", "empty", "cut off"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "ant").mkdir()
    file = tmp_path / "ant" / "1.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(file)
    file.write_bytes({"text": b"not an image", "empty": b"", "cut off": file.read_bytes()[:2000]}[damage])
    reason = "cannot be read: image file is truncated" if damage == "cut off" else "not an image"
    with pytest.raises(ValueError, match=rf"ant.1\.jpg: {reason}.*Replace or remove it"):
        ImageFolder(tmp_path)[0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"data_path": "x"}, "data_path=x: source=mnist has no use for it"),
        ({"source": "digits", "image_size": 8}, "image_size=8: source=digits has no use for it"),
        ({"source": "cifar10", "data_path": "x", "val_images": 5}, "val_images=5: source=cifar10 has no use for it"),
        ({"source": "folder", "data_path": "x", "crop_padding": 4}, "crop_padding=4: source=folder has no use for it"),
        ({"source": "cifar10"}, "data_path=None: source=cifar10 reads your files.*CIFAR-10 binary version"),
        ({"source": "idx"}, "data_path=None: source=idx reads your files.*train-images-idx3-ubyte"),
        ({"source": "folder"}, "data_path=None: source=folder reads your files.*one folder a class"),
    ],
)
def test_what_a_source_cannot_use_or_lacks_is_refused_at_once(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ImageData(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("val_images", [0, 1797, -1])
def test_all_images_to_validate_on_or_none_is_refused(val_images: int) -> None:
    with pytest.raises(ValueError, match=rf"val_images={val_images}: there are 1797"):
        ImageData("digits", val_images=val_images).setup("fit")


@pytest.mark.parametrize("settings", [{"train_images": 81}, {"train_images": 0}, {"batch_size": 81}])
def test_more_images_than_there_are_is_refused(tmp_path: Path, settings: dict[str, int]) -> None:
    write_cifar10(tmp_path)
    with pytest.raises(ValueError, match="there are 80 images to train on"):
        ImageData(source="cifar10", data_path=tmp_path, **{"batch_size": 8, **settings}).setup("fit")


def test_a_part_of_the_training_images_has_the_classes_in_proportion(tmp_path: Path) -> None:
    write_image_folder(tmp_path, images=6)
    data = ImageData("folder", tmp_path, batch_size=4, train_images=4, image_size=8)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert sorted(batch[1].tolist()) == [0, 0, 1, 1]
    assert data.classes == 2


def test_random_crops_are_windows_of_the_padded_images() -> None:
    images = torch.arange(1, 1 + 4 * 3 * 6 * 5).reshape(4, 3, 6, 5)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    for image, cut in zip(padded, random_crop(images, padding=2), strict=True):
        windows = [image[:, i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
        assert sum(torch.equal(cut, window) for window in windows) == 1
    assert not torch.equal(random_crop(images, padding=2), random_crop(images, padding=2))


def test_random_flips_mirror_about_half() -> None:
    images = torch.arange(200 * 3 * 2 * 2).reshape(200, 3, 2, 2)
    flipped = random_flip(images)
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    assert ((flipped == images).all(dim=(1, 2, 3)) ^ mirrored).all()
    assert 60 < mirrored.sum() < 140


def test_training_images_are_normalised_by_channel(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    data = ImageData(source="cifar10", data_path=tmp_path, batch_size=80)
    data.setup("fit")
    batch: list[Tensor] = next(iter(data.train_dataloader()))
    images, _ = data.on_after_batch_transfer(batch, 0)
    deviation, mean = torch.std_mean(images, dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(deviation, torch.ones(3), atol=1e-4, rtol=0)
