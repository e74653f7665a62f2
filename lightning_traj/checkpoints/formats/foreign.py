"""Files and folders that are no checkpoints of torch, or incomplete, told by their names and first bytes.

Messages about them name the remedy. A reader of the file itself could only say that the format is another one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

DEEPSPEED_SCRIPT = "zero_to_fp32.py"
_START = 512  # bytes that are looked at
_LONGEST_HEADER = 10**8  # of safetensors
_KERAS = "it is a file of Keras or TensorFlow: only weights of PyTorch are read"
_COMPRESSED = "it is compressed: unpack it"
# Beginning of a file -> its kind, and the remedy.
_BEGINNINGS = (
    (
        b"version https://git-lfs",
        "it is a Git LFS pointer, and the file itself was not downloaded: run git lfs pull in its repository",
    ),
    (b"\x89HDF\r\n\x1a\n", _KERAS),
    (b"\x1f\x8b", _COMPRESSED),
    (b"\xfd7zXZ", _COMPRESSED),
    (b"\x28\xb5\x2f\xfd", _COMPRESSED),
    (b"7z\xbc\xaf", _COMPRESSED),
    (b"BZh", _COMPRESSED),
    (b"<!DOCTYPE", "it is a web page: download the file itself"),
    (b"<html", "it is a web page: download the file itself"),
    (b"\x93NUMPY", "it is an array of NumPy: only weights of PyTorch are read"),
    (b"GGUF", "it is a GGUF file, whose weights are quantised as a rule: pass the checkpoints that it was made from"),
)
_TAR, _TAR_AT = b"ustar", 257
_TENSORFLOW = re.compile(r"\.data-\d{5}-of-\d{5}$|\.index$|\.meta$|\.h5$|\.hdf5$|\.keras$|^saved_model\.pb$")


def foreign_file(path: Path) -> str:
    """Return the kind of a file that neither torch nor safetensors wrote, with the remedy; empty for other files."""
    with path.open("rb") as file:
        start = file.read(_START)
    for beginning, words in _BEGINNINGS:
        if start.lower().startswith(beginning.lower()):
            return words
    if start[_TAR_AT:].startswith(_TAR):
        return "it is a tar archive: unpack it, and pass the files in it"
    if _is_tensorflow(path.name):
        return _KERAS
    return ""


def foreign_folder(path: Path) -> str:
    """Return the kind of a folder without a readable checkpoint, with the remedy; empty if it is not known."""
    if is_deepspeed(path):
        return (
            "it is a folder of DeepSpeed, in which each process has its share of the weights: put them together with "
            f"python {DEEPSPEED_SCRIPT}, which DeepSpeed leaves there, and pass the results"
        )
    if any(_is_tensorflow(child.name) for child in path.iterdir()):
        return "it holds files of Keras or TensorFlow: only weights of PyTorch are read"
    return ""


def is_deepspeed(path: Path) -> bool:
    """Return whether DeepSpeed wrote a folder: it has its script, or the states of its processes."""
    return (path / DEEPSPEED_SCRIPT).is_file() or any(
        next(path.glob(f"{inside}*_{kind}_states.pt"), None) is not None
        for inside in ("", "checkpoint/")
        for kind in ("model", "optim")
    )


def _is_tensorflow(name: str) -> bool:
    return _TENSORFLOW.search(name) is not None


def truncation(path: Path) -> str:
    """Return how a safetensors file is cut off or misnamed, as its header tells; empty if it is neither."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            return "it is truncated or damaged: it has no header"
        if length + 8 > size and file.read(1) == b"{":
            return "it is truncated: it ends within its header; download or copy it again"
        if length > _LONGEST_HEADER:
            return "it is no safetensors file, whatever its name: pass the file that torch.save or save_file wrote"
        try:
            header = json.loads(file.read(length)) if length <= _LONGEST_HEADER else {}
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            wanted = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return ""
    return (
        f"it is truncated: {size:,} of {wanted:,} bytes are there; download or copy it again" if wanted > size else ""
    )
