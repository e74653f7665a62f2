"""Objects beside the weights, in every way of writing them: the weights are read, and the rest is shown or named."""

from __future__ import annotations

import argparse
import enum
import functools
import io
import pickle
import types
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed.tensor
from omegaconf import OmegaConf
from torch import Tensor, nn

from lightning_traj import from_checkpoints
from lightning_traj.checkpoints.formats.errors import CheckpointError
from lightning_traj.checkpoints.formats.opening import open_checkpoint
from lightning_traj.checkpoints.formats.pickled_values import VALUES, Array
from lightning_traj.checkpoints.formats.torch_files import TorchContents
from lightning_traj.checkpoints.formats.unpickling import Unpickler
from saved import Tree

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, Tensor]


class Colour(enum.Enum):
    RED = "red"


class Settings:
    def __init__(self) -> None:
        self.lr = 0.1


class Box(dict[str, Any]):
    """A kind of dict, of which there are many."""


class Slotted:
    __slots__ = ("lr",)

    def __init__(self) -> None:
        self.lr = 0.1


def anneal(step: int) -> float:
    return 0.1 * step


HERE = __name__
CONFIG = {"model": {"depth": 3, "name": "x"}, "betas": [0.9, 0.99]}
# Content -> the hyperparameters that are shown of it, and what is named as left out.
CONTENTS: Mapping[str, tuple[Callable[[], Any], dict[str, Any], set[str]]] = {
    "np.float64": (lambda: {"loss": np.float64(0.1)}, {"loss": 0.1}, set()),
    "np.float32": (lambda: {"loss": np.float32(0.5)}, {"loss": 0.5}, set()),
    "np.int64": (lambda: {"best": np.int64(7), "flag": np.bool_(True)}, {"best": 7, "flag": True}, set()),
    "np.mean": (lambda: {"loss": np.mean([1.0, 2.0])}, {"loss": 1.5}, set()),
    "np.complex128": (lambda: {"z": np.complex128(1 + 2j)}, {}, set()),
    "arrays": (lambda: {"curve": np.arange(4.0), "flipped": np.asfortranarray(np.eye(3)).astype(">f4")}, {}, set()),
    "array of objects": (lambda: {"odd": np.array([None])}, {}, {"numpy.dtype"}),
    "array of texts": (lambda: {"odd": np.array(["a", "b"])}, {}, {"numpy.dtype"}),
    "Namespace": (
        lambda: argparse.Namespace(lr=0.1, deep=argparse.Namespace(on=True)),
        {"lr": 0.1, "deep/on": True},
        set(),
    ),
    "SimpleNamespace": (lambda: {"args": types.SimpleNamespace(lr=0.1)}, {"args/lr": 0.1}, set()),
    "DictConfig": (lambda: OmegaConf.create(CONFIG), {"model/depth": 3, "model/name": "x"}, set()),
    "DictConfig within": (
        lambda: {"cfg": OmegaConf.create(CONFIG)},
        {"cfg/model/depth": 3, "cfg/model/name": "x"},
        set(),
    ),
    "ListConfig": (lambda: {"betas": OmegaConf.create([0.9, 0.99]), "lr": 1}, {"lr": 1}, set()),
    "Path": (lambda: {"data": Path("/data/x"), "rest": PurePosixPath("a")}, {"data": "/data/x", "rest": "a"}, set()),
    "Path of Windows": (lambda: {"data": PureWindowsPath("C:/x/y")}, {"data": "C:\\x\\y"}, set()),
    "partial": (
        lambda: {"f": functools.partial(anneal, 3), "lr": 1},
        {"lr": 1},
        {"functools.partial", f"{HERE}.anneal"},
    ),
    "Enum": (lambda: {"colour": Colour.RED, "lr": 1}, {"lr": 1}, {f"{HERE}.Colour"}),
    "class": (lambda: {"act": nn.ReLU, "lr": 1}, {"lr": 1}, {"torch.nn.modules.activation.ReLU"}),
    "function": (lambda: {"f": anneal, "g": nn.functional.relu}, {}, {f"{HERE}.anneal", "torch.nn.functional.relu"}),
    "module": (lambda: {"loss": nn.CrossEntropyLoss(weight=torch.ones(2)), "lr": 1}, {"lr": 1}, set()),
    "object": (lambda: {"settings": Settings(), "lr": 1}, {"lr": 1}, {f"{HERE}.Settings"}),
    "slots": (lambda: {"settings": Slotted(), "lr": 1}, {"lr": 1}, {f"{HERE}.Slotted"}),
    "kind of dict": (lambda: Box(lr=0.1, deep=Box(on=True)), {"lr": 0.1, "deep/on": True}, set()),
    "fraction": (lambda: {"share": Fraction(1, 3)}, {}, {"fractions.Fraction"}),
    "containers": (
        lambda: {
            "set": {1, 2},
            "frozen": frozenset("a"),
            "deque": deque([1]),
            "counter": Counter("aab"),
            "default": defaultdict(list, a=[1]),
            "ordered": OrderedDict(b=2),
            "bytes": b"\xff\x00",
            "bytearray": bytearray(b"\x80"),
            "complex": 1j,
            (1, "a"): None,
            ((1, 2), 3): None,
            None: 1.5,
        },
        {"counter/a": 2, "counter/b": 1, "ordered/b": 2},
        {"tuple"},
    ),
    "torch": (
        lambda: {
            "dtype": torch.bfloat16,
            "device": torch.device("cuda", 1),
            "size": torch.Size([2]),
            "layout": torch.strided,
        },
        {"device": "cuda:1", "layout": "torch.strided"},
        set(),
    ),
    "sparse": (lambda: {"s": torch.eye(2).to_sparse(), "lr": 1}, {"lr": 1}, {"torch._utils._rebuild_sparse_tensor"}),
    "tensors": (
        lambda: {"t": torch.ones(3), "p": nn.Parameter(torch.ones(2)), "conj": torch.ones(2).to(torch.cfloat).conj()},
        {},
        set(),
    ),
}


def _legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _dumped(protocol: int) -> Callable[[Any, Path], None]:
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol))


WRITERS: Mapping[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": _legacy,
    **{f"protocol {n}": (lambda content, path, n=n: torch.save(content, path, pickle_protocol=n)) for n in (3, 5)},
    **{f"pickle.dump {n}": _dumped(n) for n in (0, 1, 2, 4, 5)},
}


@pytest.fixture(scope="module")
def states() -> list[State]:
    generator = torch.Generator().manual_seed(0)
    return [{"fc.weight": torch.randn(4, 3, generator=generator), "fc.bias": torch.ones(4) * t} for t in range(3)]


def gram(states: list[State]) -> np.ndarray[Any, Any]:
    """Of the parameters, stacked in float64."""
    theta = np.stack([np.concatenate([tensor.double().numpy().ravel() for tensor in s.values()]) for s in states])
    return theta @ theta.T


@pytest.mark.filterwarnings("ignore:.*pickle protocol.*:UserWarning")
@pytest.mark.parametrize(
    ("writer", "content"),
    # Before protocol 2 pickle refuses objects with slots.
    [(w, c) for w in WRITERS for c in CONTENTS if c != "slots" or w not in ("pickle.dump 0", "pickle.dump 1")],
)
def test_objects_beside_the_weights(tmp_path: Path, states: list[State], writer: str, content: str) -> None:
    make, shown, left_out = CONTENTS[content]
    for step, state in enumerate(states):
        said = {"state_dict": state, "global_step": step, "epoch": 0, "hyper_parameters": make()}
        WRITERS[writer](said, tmp_path / f"{step}.ckpt")
    checkpoint = open_checkpoint(tmp_path / "2.ckpt")
    assert (checkpoint.step, checkpoint.hyperparameters, set(checkpoint.objects)) == (2, shown, left_out)
    for name, tensor in states[2].items():
        assert torch.equal(checkpoint.read(name), tensor)
    if writer not in ("zip", "legacy"):  # the rest is the same
        return
    trajectory = from_checkpoints(tmp_path)
    np.testing.assert_allclose(trajectory.gram("*"), gram(states), rtol=1e-12)
    assert trajectory.steps.tolist() == [0, 1, 2]
    assert trajectory.settings["hyperparameters"] == shown
    named = [finding for finding in trajectory.settings["findings"] if "left out" in finding]
    assert len(named) == (1 if left_out else 0)
    assert all(kind in named[0] for kind in left_out)


def test_what_is_left_out_is_said_in_one_line(tmp_path: Path, states: list[State]) -> None:
    for step, state in enumerate(states):
        more = {"a": Settings(), "b": Settings(), "c": Colour.RED, "d": Fraction(1, 3)}
        torch.save({"model": state, "extra": more}, tmp_path / f"step={step}.pt")
    (finding,) = (f for f in from_checkpoints(tmp_path).settings["findings"] if "left out" in f)
    assert finding == (
        "12 objects of 3 classes beside the tensors were left out: "
        f"{HERE}.Settings, {HERE}.Colour and fractions.Fraction."
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_tensors_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        state = {"w": torch.randn(4, 4), "q.weight": quantised, "s.weight": torch.eye(3).to_sparse()}
        torch.save({"state_dict": {**state, "n.weight": np.ones(3)}, "x": Path("a")}, tmp_path / f"step={step}.pt")
    source = from_checkpoints(tmp_path).provenance.source
    assert source is not None
    found = [finding.text for finding in source.findings if finding.kind == "parameters"]
    assert found == [
        "q.weight, s.weight and n.weight are left out: tensors of numpy.ndarray, torch._utils._rebuild_qtensor and "
        "torch._utils._rebuild_sparse_tensor cannot be read."
    ]
    assert not any("_rebuild" in finding.text for finding in source.findings if finding.kind == "objects")


@pytest.mark.parametrize("name", ["args", "cfg", "config", "hparams"])
def test_hyperparameters_where_others_than_lightning_keep_them(tmp_path: Path, name: str) -> None:
    torch.save({"model": {"w": torch.ones(2)}, name: argparse.Namespace(lr=0.1)}, tmp_path / "step=1.pt")
    assert open_checkpoint(tmp_path / "step=1.pt").hyperparameters == {"lr": 0.1}


@pytest.mark.parametrize("value", [torch.tensor(7), np.int64(7), np.array(7), torch.tensor([7])])
def test_a_step_that_is_a_number_of_torch_or_numpy(tmp_path: Path, value: Any) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "global_step": value}, tmp_path / "a.pt")
    assert open_checkpoint(tmp_path / "a.pt").step == 7


class Odd(pl.LightningModule):
    """It saves all that ``save_hyperparameters()`` is known to put into checkpoints."""

    def __init__(self, **hyperparameters: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.fc = nn.Linear(3, 2)


@pytest.mark.filterwarnings("ignore:Attribute 'loss' is an instance of `nn.Module`")
def test_a_checkpoint_of_lightning_with_all_of_them(tmp_path: Path) -> None:
    module = Odd(
        lr=np.float64(0.1),
        args=argparse.Namespace(a=1),
        cfg=OmegaConf.create(CONFIG),
        folder=Path("/x"),
        schedule=functools.partial(anneal, 1),
        colour=Colour.RED,
        act=nn.ReLU,
        loss=nn.CrossEntropyLoss(),
    )
    trainer = pl.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = open_checkpoint(tmp_path / "a.ckpt")
    assert checkpoint.hyperparameters == {
        "lr": 0.1,
        "args/a": 1,
        "cfg/model/depth": 3,
        "cfg/model/name": "x",
        "folder": "/x",
    }
    assert {"functools.partial", f"{HERE}.Colour", "torch.nn.modules.activation.ReLU"} <= set(checkpoint.objects)
    torch.testing.assert_close(checkpoint.read("fc.weight"), module.fc.weight.detach())


# Values are those that pickle gives -------------------------------------------------------------------------

PLAIN = [
    None,
    True,
    -1,
    255,
    65_536,
    -(2**31),
    2**40,
    -(2**70),
    10**400,
    0.1,
    float("inf"),
    "",
    "größe \u20ac \U0001f600\n\\'",
    b"",
    b"\x00\xff",
    bytearray(b"\x80"),
    1 + 2j,
    (),
    (1,),
    (1, (2, "a")),
    [1, [2, [3]]],
    {"a": {1: 2.5}, (1, 2): None},
    {1, 2},
    frozenset({"a"}),
    OrderedDict(a=1, b=2),
    Counter("aab"),
    defaultdict(int, a=1),
    np.float64(0.1),
    np.float32(0.1),
    np.float16(0.1),
    np.int8(-3),
    np.uint64(2**63),
    np.bool_(True),
    np.complex64(1j),
    "x" * 300,
    list(range(2000)),
    {str(i): i for i in range(2000)},
]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_pickle_gives(protocol: int) -> None:
    for value in PLAIN:
        assert Unpickler(pickle.dumps(value, protocol), table=VALUES).load() == value
    shared = [1]
    one, other = Unpickler(pickle.dumps([shared, shared], protocol), table=VALUES).load()
    assert one is other
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    again = Unpickler(pickle.dumps(cyclic, protocol), table=VALUES).load()
    assert again[0] is again


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "dtype", ["?", "i1", "<i2", ">i4", "i8", "u1", "u2", "u4", "u8", "f2", ">f4", "f8", "c8", "c16"]
)
def test_arrays_are_what_numpy_gives(protocol: int, dtype: str) -> None:
    for shape in ((), (0,), (3,), (2, 3), (2, 0, 3)):
        for order in ("C", "F"):
            array = np.arange(np.prod(shape)).reshape(shape).astype(dtype, order=order)
            read = Unpickler(pickle.dumps(array, protocol), table=VALUES).load()
            assert isinstance(read, Array)
            assert read.values is not None
            assert read.values.dtype == array.dtype
            np.testing.assert_array_equal(read.values, array)


# Tensors are those that torch gives -------------------------------------------------------------------------


def tensors() -> dict[str, Tensor]:
    base = torch.arange(24.0)
    shared = torch.randn(4, 5)
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int32,
        torch.int64,
        torch.bool,
        torch.uint8,
        torch.cfloat,
    )
    return {
        **{str(dtype): torch.arange(6).to(dtype).reshape(2, 3) for dtype in kinds},
        "float8": torch.arange(6.0).to(torch.float8_e4m3fn),
        "uint16": torch.arange(6).to(torch.uint16),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "view": base[5:17:2],
        "transposed": base.view(4, 6).t(),
        "expanded": torch.arange(3.0).expand(5, 3),
        "one": shared,
        "tied": shared,
        "part": shared[1:3, 2:],
        "parameter": nn.Parameter(torch.ones(2)),
        "buffer": nn.Buffer(torch.ones(2)),
        "conjugate": torch.randn(3, dtype=torch.cfloat).conj(),
        "negative": torch.randn(3, dtype=torch.cfloat).conj().imag,
        "attribute": _with_attribute(torch.ones(2)),
    }


def _with_attribute(tensor: Tensor) -> Tensor:
    tensor.note = {"a": 1}  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle.dump 2", "pickle.dump 5"])
def test_tensors_are_what_torch_gives(tmp_path: Path, writer: str) -> None:
    expected = tensors()
    WRITERS[writer](expected, tmp_path / "a.pt")
    contents = TorchContents(tmp_path / "a.pt")
    found = contents.tensors(contents.value)
    assert list(found) == list(expected)
    for _ in range(2):
        for name, tensor in expected.items():
            read = contents.read(found[name])
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            assert torch.equal(read.to(wide), tensor.detach().to(wide))
        contents.release()
    if writer == "zip":
        assert contents.read(found["one"]).data_ptr() == contents.read(found["tied"]).data_ptr()


def test_a_tensor_of_a_subclass_is_the_plain_one(tmp_path: Path) -> None:
    class Sub(Tensor):
        pass

    globals()["Sub"], Sub.__qualname__ = Sub, "Sub"
    torch.save({"w": torch.ones(2).as_subclass(Sub)}, tmp_path / "step=1.pt")
    del globals()["Sub"]
    checkpoint = open_checkpoint(tmp_path / "step=1.pt")
    assert type(checkpoint.read("w")) is Tensor
    assert checkpoint.read("w").tolist() == [1.0, 1.0]


def test_shards_of_a_distributed_tensor_are_not_taken_for_the_whole(tmp_path: Path) -> None:
    """As each process of FSDP2 has them. They are reduced as torch does it, without a process group."""

    class Shard:
        def __init__(self, local: Tensor) -> None:
            self.local = local

        def __reduce__(self) -> Any:
            made = torch.distributed.tensor.DTensor, torch.float32, (4, 2), (2, 1), 0, torch.strided, "cpu", False
            kind, state = torch.distributed.tensor.DTensor, {"_local_tensor": self.local}
            return torch._tensor._rebuild_from_type_v2, (torch._utils._rebuild_wrapper_subclass, kind, made, state)

    torch.save({"w": Shard(torch.ones(2, 2))}, tmp_path / "step=1.pt")
    with pytest.raises(
        CheckpointError, match=r"no state dict found.*objects that are not read.*torch\.distributed.*DTensor"
    ):
        open_checkpoint(tmp_path / "step=1.pt")
    torch.save({"w": Shard(torch.ones(2, 2)), "b": torch.ones(2)}, tmp_path / "step=2.pt")
    checkpoint = open_checkpoint(tmp_path / "step=2.pt")
    assert set(checkpoint.shapes) == {"b"}
    assert any(kind.endswith("DTensor") for kind in checkpoint.objects)


def test_what_is_shown_of_names_is_printable(tmp_path: Path) -> None:
    evil = pickle.dumps({"model": 0, "x": 1}, 0).replace(b"I1\n", b"c\x1b[31mred\nx\n")
    (tmp_path / "step=1.pt").write_bytes(evil)
    with pytest.raises(CheckpointError, match=r"\?\[31mred\.x") as caught:
        open_checkpoint(tmp_path / "step=1.pt")
    assert "\x1b" not in str(caught.value)


def test_tensors_of_devices_that_torch_saves_as_arrays(tmp_path: Path) -> None:
    """As of TPUs."""

    class Device:
        def __reduce__(self) -> Any:
            array = np.arange(6, dtype=np.float32).reshape(2, 3)
            return torch._utils._rebuild_device_tensor_from_numpy, (array, torch.bfloat16, "xla:0", False)

    torch.save({"w": Device()}, tmp_path / "step=1.pt")
    checkpoint = open_checkpoint(tmp_path / "step=1.pt")
    assert checkpoint.read("w").dtype == torch.bfloat16
    assert checkpoint.read("w").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_a_network_that_was_saved_as_a_whole_has_its_state_dict(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 1)))
    network.register_buffer("kept", torch.ones(1))
    network.register_buffer("transient", torch.ones(1), persistent=False)
    network.register_forward_hook(print)
    torch.save({"model": network, "epoch": 1}, tmp_path / "epoch=1.pt")
    checkpoint = open_checkpoint(tmp_path / "epoch=1.pt")
    expected = network.state_dict()
    assert list(checkpoint.shapes) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor)
    nested = Tree({f"a.b.c{i}.w": torch.full((2,), float(i)) for i in range(3)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(nested, torch.ones(1)), tmp_path / "step=2.pt")
    checkpoint = open_checkpoint(tmp_path / "step=2.pt")
    assert {name: checkpoint.read(name).tolist() for name in checkpoint.shapes} == {
        f"a.b.c{i}.w": [float(i)] * 2 for i in range(3)
    }


def test_nothing_of_torch_or_pickle_that_could_run_code_is_called(
    tmp_path: Path, states: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("was called")

    for writer in WRITERS:
        (tmp_path / writer).mkdir()
        for step, state in enumerate(states):
            WRITERS[writer]({"model": state, "step": step, "x": np.float64(1)}, tmp_path / writer / f"{step}.pt")
    for owner, name in (
        (torch, "load"),
        (torch.jit, "load"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    for writer in WRITERS:
        np.testing.assert_allclose(from_checkpoints(tmp_path / writer).gram("*"), gram(states), rtol=1e-12)


def test_a_file_in_memory_is_read_as_one_on_disk() -> None:
    file = io.BytesIO()
    torch.save(torch.arange(3.0), file)
    contents = TorchContents(file.getvalue())
    assert contents.read(contents.value).tolist() == [0.0, 1.0, 2.0]
