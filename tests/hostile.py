"""Pickles and archives put together operation by operation, and what opens them where it can do no harm."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import (
    BINGET,
    BININT,
    BINPERSID,
    BINPUT,
    BINUNICODE,
    EMPTY_DICT,
    EMPTY_LIST,
    MARK,
    NEWFALSE,
    PROTO,
    REDUCE,
    SETITEMS,
    STACK_GLOBAL,
    TUPLE,
)
from typing import Any

MEMORY = 2**29  # bytes that opening hostile files may take, besides what the process has at its start
PATIENCE = 300  # seconds until the process is taken to hang
# Limits that are smaller than the package's, which take half a minute to reach.
CONTAINERS, OPERATIONS = 2**17, 2**20

# Opens files one after the other, and says before each which one it is, so that a crash has a name. The audit hook
# hears of every import, call of the system, and file that is opened for writing.
CHILD = """
import json, resource, sys
from pathlib import Path
from lightning_traj.checkpoints.formats.errors import CheckpointError
from lightning_traj.checkpoints.formats.opening import open_checkpoint
folder, allowed = Path(sys.argv[1]), int(sys.argv[2])
sys.path.insert(0, str(folder / "modules"))
import encodings.cp437, torch
from lightning_traj.checkpoints.formats import stack_machine
from lightning_traj.checkpoints.formats import unpickling
stack_machine.CONTAINERS, unpickling.OPERATIONS = (int(limit) for limit in sys.argv[3:])
torch.save({"w": torch.ones(2)}, folder / "warm.pt")
open_checkpoint(folder / "warm.pt").hyperparameters
(folder / "warm.pt").write_bytes(b"nothing")
try:
    open_checkpoint(folder / "warm.pt")  # what is imported for the first time is heard, too
except CheckpointError:
    pass
heard = []
SUSPECT = ("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "subprocess", "socket", "exec", "compile",
           "pickle.find_class")
def hear(event, arguments):
    if event.startswith(SUSPECT):
        heard.append((event, str(arguments)[:100]))
    if event == "import" and str(arguments[0]).startswith("canary"):
        heard.append(f"import {arguments[0]}")
sys.addaudithook(hear)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + allowed, size + allowed))
for path in sorted((folder / "files").iterdir()):
    print("opening", path.name, flush=True)
    del heard[:]
    try:
        checkpoint = open_checkpoint(path)
        values = {name: checkpoint.read(name).flatten()[:2].tolist() for name in checkpoint.shapes
                  if checkpoint.shapes[name].numel() < 100}
        outcome = {"read": values, "hyperparameters": len(checkpoint.hyperparameters)}
    except CheckpointError as error:
        outcome = {"refused": str(error)}
    print("done", json.dumps(outcome | {"heard": list(heard)}), flush=True)
"""


def open_apart(folder: Path, contents: Mapping[str, bytes], memory: int = MEMORY) -> dict[str, dict[str, Any]]:
    """Write these files, and open each in a process of little memory: what came of each, or that the process died.

    A process that dies is replaced for the files that are left.
    """
    (folder / "modules").mkdir(parents=True)
    (folder / "files").mkdir()
    marker = folder / "marker"
    (folder / "modules" / "canary.py").write_text(
        f"from pathlib import Path\ndef sing(*_): Path({str(marker)!r}).touch()\nclass Bird:\n"
        "    def __new__(cls, *_): sing(); return object.__new__(cls)\n    __setstate__ = sing\nsing()\n"
    )
    for name, content in contents.items():
        (folder / "files" / name).write_bytes(content)
    outcomes: dict[str, dict[str, Any]] = {}
    while len(outcomes) < len(contents):
        command = [sys.executable, "-c", CHILD, *map(str, (folder, memory, CONTAINERS, OPERATIONS))]
        died = ""
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            lines, died = child.stdout.splitlines(), f"died with {child.returncode}: {child.stderr[-300:]}"
        except subprocess.TimeoutExpired as error:
            lines, died = (error.stdout or b"").decode().splitlines(), "hung"
        opened = ""
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "opening":
                opened = rest
            else:
                outcomes[opened] = json.loads(rest)
                (folder / "files" / opened).unlink()
                opened = ""
        if not opened and len(outcomes) < len(contents):
            raise AssertionError(died)
        if opened:
            outcomes[opened] = {"died": died}
            (folder / "files" / opened).unlink()
    assert not marker.exists(), "code that a file names was run"
    return outcomes


def word(text: str) -> bytes:
    return BINUNICODE + len(text.encode()).to_bytes(4, "little") + text.encode()


def named(module: str, name: str) -> bytes:
    return word(module) + word(name) + STACK_GLOBAL


def number(value: int) -> bytes:
    return BININT + value.to_bytes(4, "little", signed=True)


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + MARK + b"".join(arguments) + TUPLE + REDUCE


def entries(values: Mapping[str, bytes]) -> bytes:
    return EMPTY_DICT + MARK + b"".join(word(name) + value for name, value in values.items()) + SETITEMS


def pair(first: int, second: int) -> bytes:
    return MARK + number(first) + number(second) + TUPLE


def storage(key: str = "0", kind: bytes | None = None) -> bytes:
    kind = named("torch", "FloatStorage") if kind is None else kind
    return MARK + word("storage") + kind + word(key) + word("cpu") + number(2) + TUPLE + BINPERSID


def tensor(
    size: bytes | None = None, stride: bytes | None = None, offset: bytes | None = None, where: bytes | None = None
) -> bytes:
    """A tensor of two entries, unless told otherwise."""
    one = MARK + number(1) + TUPLE
    return called(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage() if where is None else where,
        number(0) if offset is None else offset,
        MARK + number(2) + TUPLE if size is None else size,
        one if stride is None else stride,
        NEWFALSE,
        called("collections", "OrderedDict"),
    )


def program(value: bytes) -> bytes:
    return PROTO + b"\x04" + value + b"."


def archive(value: bytes, compression: int = zipfile.ZIP_STORED, more: Mapping[str, bytes] | None = None) -> bytes:
    """An archive as ``torch.save`` writes it, with one storage, of the numbers 1 and 2."""
    file = io.BytesIO()
    storage = b"\x00\x00\x80?\x00\x00\x00@"
    records = {"x/data.pkl": program(value), "x/data/0": storage, "x/version": b"3", **(more or {})}
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in records.items():
            made.writestr(name, content)
    return file.getvalue()


def beside(value: bytes, where: str = "hyper_parameters") -> bytes:
    """An archive with good weights, and something else beside them."""
    return archive(entries({"state_dict": entries({"w": tensor()}), where: value}))


def doubled(times: int, pack: bytes, start: bytes = EMPTY_LIST) -> bytes:
    """A value of two references to the one before, so many times: small in memory, endless if it is walked."""
    return start + (BINPUT + b"\x07" + BINGET + b"\x07" + pack) * times
