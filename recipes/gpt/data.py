"""Text for the recipe: the topics of Python's own help, or your files, as bytes, characters or tokens.

All of it is kept in memory as integers, and read in windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

EXPECTED = (
    "Expected a text file, or a folder with .txt files, in UTF-8. Without data_path the recipe trains on the topics of "
    "Python's help(), which come with Python."
)
Tokens = NDArray[np.integer[Any]]


def python_topics() -> str:
    """What ``help()`` tells of Python's topics: about 460,000 characters of English, a little else in each version."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data_path=None: this Python comes without pydoc_data, whose English text the recipe trains on by default; "
            "name a text file, or install the whole of Python's standard library"
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))


def texts(data_path: Path | None) -> Iterator[str]:
    """The text, file by file, in the order of their names."""
    if data_path is None:
        yield python_topics()
        return
    if not data_path.exists():
        raise FileNotFoundError(f"data_path={data_path}: there is no such file or folder. {EXPECTED}")
    files = sorted(data_path.rglob("*.txt")) if data_path.is_dir() else [data_path]
    if not files:
        raise FileNotFoundError(f"data_path={data_path}: it holds no .txt file. {EXPECTED}")
    for file in files:
        try:
            text = file.read_bytes().decode("utf-8")  # line ends as they are
        except UnicodeDecodeError as error:
            raise ValueError(
                f"data_path={file}: byte {error.start:,} is not UTF-8: convert the file. {EXPECTED}"
            ) from error
        if not text:
            raise ValueError(f"data_path={file}: it is empty. {EXPECTED}")
        yield text


def load_tokenizer(name: str, download: bool) -> Any:
    """A tokenizer of transformers: from a folder, or one that was downloaded before; code of its own is never run."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=not download, trust_remote_code=False)
    except Exception as error:  # of any kind, where its files are damaged
        remedy = "" if download else "; download=True fetches it from the Hugging Face Hub by this name"
        raise ValueError(
            f"tokenizer={name}: neither 'bytes' nor 'characters', nor a folder with a tokenizer (tokenizer.json and "
            f"tokenizer_config.json), nor the name of one that is on this machine{remedy}. ({error})"
        ) from error


def pieces(text: str, size: int = 2**20) -> Iterator[str]:
    """A long text, cut at ends of lines: a tokenizer keeps some hundred bytes for each token that it makes at once."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + size)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end


class Windows(Dataset[Tensor]):
    """Neighbouring stretches of ``context`` tokens, each with the one that follows: int64 [context + 1]."""

    def __init__(self, tokens: Tokens, context: int) -> None:
        self.tokens, self.context = tokens, context

    def __len__(self) -> int:
        return max(0, len(self.tokens) - 1) // self.context

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.context
        return torch.from_numpy(self.tokens[start : start + self.context + 1].astype(np.int64))


class TextData(L.LightningDataModule):
    """Windows of a text, shuffled in each epoch; the end of the text is kept for validation.

    An epoch goes through the whole text, or has as many steps as the Trainer's ``limit_train_batches`` says; either
    way, the next one is shuffled anew.

    Args:
        data_path: a text file, or a folder with .txt files, in UTF-8. None: the topics of Python's help().
        tokenizer: "bytes"; "characters", those that are in the text; or the folder or name of one of transformers.
        context: tokens in a window.
        batch_size: windows a step (on each device).
        val_share: of the text, for validation.
        download: whether a tokenizer may be fetched from the Hugging Face Hub. Nothing else ever is.
        num_workers: processes that load; the text is in memory, so none is usually best.

    Attributes:
        vocabulary: number of tokens.
    """

    def __init__(
        self,
        data_path: Path | None = None,
        tokenizer: str = "bytes",
        context: int = 128,
        batch_size: int = 16,
        val_share: float = 0.1,
        download: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("context", context), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value}: pass a positive number")
        if not 0 < val_share < 1:
            raise ValueError(f"val_share={val_share}: pass a number between 0 and 1, such as 0.1")
        self.data_path = Path(data_path).expanduser() if data_path else None
        self.tokenizer = tokenizer
        self.context = context
        self.batch_size = batch_size
        self.val_share = val_share
        self.download = download
        self.num_workers = num_workers
        self.save_hyperparameters("tokenizer", "batch_size")

    @property
    def vocabulary(self) -> int:
        if self.tokenizer == "bytes":
            return 256
        return len(self._characters if self.tokenizer == "characters" else self._tokenizer)

    def setup(self, stage: str) -> None:
        tokens = self.encode()
        kept = int(len(tokens) * (1 - self.val_share))
        self.train, self.val = Windows(tokens[:kept], self.context), Windows(tokens[kept:], self.context)
        if len(self.train) < self.batch_size or not len(self.val):
            raise ValueError(
                f"data_path={self.data_path}: {len(tokens):,} tokens, of which val_share={self.val_share} are for "
                f"validation, make {len(self.train)} windows of context={self.context} to train on, and "
                f"{len(self.val)} to validate on; batch_size={self.batch_size} are needed to train, and one to "
                "validate: take a longer text, a shorter context or smaller batches"
            )

    def encode(self) -> Tokens:
        """The whole text as numbers below ``vocabulary``, [tokens]."""
        if self.tokenizer == "bytes":
            return np.concatenate([np.frombuffer(text.encode(), dtype=np.uint8) for text in texts(self.data_path)])
        if self.tokenizer == "characters":
            codes = np.concatenate([code_points(text) for text in texts(self.data_path)])
            return np.searchsorted(self._characters, codes).astype(np.int32)
        encoded = [
            np.array(self._tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)
            for text in texts(self.data_path)
            for piece in pieces(text)
        ]
        return np.concatenate(encoded)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, self.batch_size, num_workers=self.num_workers)

    @cached_property
    def _characters(self) -> NDArray[np.uint32]:
        """The code points that are in the text, in order."""
        return np.unique(np.concatenate([np.unique(code_points(text)) for text in texts(self.data_path)]))

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.tokenizer, self.download)


def code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
