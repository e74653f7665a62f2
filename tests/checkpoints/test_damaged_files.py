"""Damaged and malicious files: always an error that names the file, never a crash, and nothing in them is run."""

from __future__ import annotations

import copyreg
import io
import json
import os
import pickle
import shutil
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.distributed.checkpoint import metadata as dcp_metadata

from lightning_traj import from_checkpoints
from lightning_traj.checkpoints.formats.dcp import Chunk, _overlap, read_metadata
from lightning_traj.checkpoints.formats.errors import CheckpointError
from lightning_traj.checkpoints.formats.opening import open_checkpoint
from lightning_traj.checkpoints.parameters import _at_most, network
from saved import WRITERS, Malicious, write_all

pytestmark = pytest.mark.usefixtures("one_thread")


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"fc.weight": (3, 4), "fc.bias": (3,), "head.weight": (2, 3), "head.bias": (2,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that malicious pickles would make."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "code in a file was run"


# Malicious --------------------------------------------------------------------------------------------------


def test_the_malicious_pickle_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "made")))
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", [".pt", ".pth", ".bin", ".ckpt", "legacy", "nested", "key"])
def test_malicious_files(tmp_path: Path, marker: Path, kind: str) -> None:
    """The weights are read, and nothing is run."""
    path = tmp_path / f"step1{kind if kind.startswith('.') else '.pt'}"
    evil = {"state_dict": weights(0), "x": Malicious(marker)}
    if kind == "key":
        torch.save({Malicious(marker): 1, **weights(0)}, path)
    elif kind == "nested":
        torch.save({"model": {"w": [Malicious(marker)], **weights(0)}}, path)
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=kind != "legacy")
    checkpoint = open_checkpoint(path)
    assert {name: checkpoint.read(name).tolist() for name in checkpoint.shapes} == {
        name: tensor.tolist() for name, tensor in weights(0).items()
    }
    assert checkpoint.objects == {"posix.system": 1}


def test_a_malicious_bare_pickle(tmp_path: Path, marker: Path) -> None:
    (tmp_path / "step1.pt").write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(
        CheckpointError, match=r"step1\.pt cannot be read.*holds a posix\.system, not a state dict"
    ) as caught:
        open_checkpoint(tmp_path / "step1.pt")
    assert caught.value.path == tmp_path / "step1.pt"


@pytest.mark.parametrize("file", [".metadata", "pytorch_model-2.bin", "model.safetensors"])
def test_malicious_files_in_folders(tmp_path: Path, marker: Path, file: str) -> None:
    kind = {"pytorch_model-2.bin": "sharded .bin", "model.safetensors": "Hugging Face"}.get(file, "distributed")
    folder = next(write_all(kind, tmp_path / "x", {1: weights(0)}).iterdir())
    (folder / file).write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(CheckpointError, match=folder.name) as caught:
        open_checkpoint(folder)
    assert file in str(caught.value) or file == "model.safetensors"


def test_what_lightning_writes_beside_shards_may_be_malicious(distributed: Path, marker: Path) -> None:
    torch.save({"x": Malicious(marker), "global_step": 7}, distributed / "meta.pt")
    checkpoint = open_checkpoint(distributed)
    assert (checkpoint.step, checkpoint.objects) == (7, {"posix.system": 1})
    (distributed / "meta.pt").write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(CheckpointError, match=r"in meta\.pt, there is a posix\.system, not what Lightning writes"):
        open_checkpoint(distributed)


def metadata_of(folder: Path) -> Any:
    return pickle.loads((folder / ".metadata").read_bytes())


@pytest.fixture
def distributed(tmp_path: Path) -> Path:
    return next(write_all("distributed", tmp_path / "x", {1: weights(0)}).iterdir())


def test_malicious_entries_of_a_distributed_folder(distributed: Path, marker: Path) -> None:
    """Bytes in it are pickles that torch would load; chunks are what torch.save wrote."""
    metadata = metadata_of(distributed)
    evil = io.BytesIO()
    torch.save(Malicious(marker), evil)
    file = distributed / "evil.distcp"
    file.write_bytes(evil.getvalue())
    for index, info in metadata.storage_data.items():
        if index.fqn in ("state_dict.fc.bias", "optimizer_0.lr"):
            info.relative_path, info.offset, info.length = file.name, 0, len(evil.getvalue())
    (distributed / ".metadata").write_bytes(pickle.dumps(metadata))
    checkpoint = open_checkpoint(distributed)
    assert "fc.bias" in checkpoint.shapes
    torch.testing.assert_close(checkpoint.read("fc.weight"), weights(0)["fc.weight"])
    with pytest.raises(CheckpointError, match=r"run-1\.ckpt.*evil\.distcp does not hold what \.metadata says"):
        checkpoint.read("fc.bias")


class _Reduced:
    def __init__(self, *how: Any) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return self.how


class _Global:
    """Pickled as the name of something, dotted or not."""

    def __init__(self, module: str, name: str) -> None:
        self.code = pickle.PROTO + b"\x04" + self._word(module) + self._word(name) + pickle.STACK_GLOBAL + b"."

    @staticmethod
    def _word(text: str) -> bytes:
        return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "nn.Module"),
        ("torch", "hub.load"),
        ("torch", "load"),
        ("torch", "float32.__class__"),
        ("torch", "__builtins__"),
        ("torch.serialization", "_get_layout.__globals__"),
        ("torch.serialization", "os.system"),
        ("pathlib", "os.system"),
        ("pathlib", "Path.unlink"),
        ("collections", "OrderedDict.__init__"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "FileSystemWriter"),
        ("copyreg", "_reconstructor"),
    ],
)
def test_the_metadata_are_plain_values_whatever_they_name(distributed: Path, module: str, name: str) -> None:
    (distributed / ".metadata").write_bytes(_Global(module, name).code)
    with pytest.raises(CheckpointError, match=r"\.metadata, .*holds no metadata of torch"):
        open_checkpoint(distributed)


def test_the_metadata_change_nothing_in_the_process(distributed: Path, marker: Path) -> None:
    """BUILD sets attributes: of classes, too, if they are what it is applied to."""
    word = _Global._word
    module = "torch.distributed.checkpoint.metadata"
    classes = [(module, "Metadata"), (module, "MetadataIndex"), ("pathlib", "PosixPath")]
    classes += [("torch.serialization", "_get_layout"), ("collections", "OrderedDict"), ("torch", "Size")]
    for owner, name in classes:
        load = word(owner) + word(name) + pickle.STACK_GLOBAL
        # cls.__dict__.update(None), setattr(cls, "__eq__", cls) …
        state = pickle.NONE + pickle.EMPTY_DICT + word("__eq__") + load + pickle.SETITEM + pickle.TUPLE2
        before = vars(dcp_metadata.Metadata).copy(), vars(Path).copy(), OrderedDict.__eq__, hash(torch.Size([1]))
        (distributed / ".metadata").write_bytes(pickle.PROTO + b"\x04" + load + state + pickle.BUILD + b".")
        with pytest.raises(CheckpointError, match=r"\.metadata"):
            open_checkpoint(distributed)
        assert (
            vars(dcp_metadata.Metadata).copy(),
            vars(Path).copy(),
            OrderedDict.__eq__,
            hash(torch.Size([1])),
        ) == before
    assert Path("a") == Path("a")


def test_the_metadata_use_no_extension_codes(distributed: Path, marker: Path) -> None:
    copyreg.add_extension("os", "system", 201)
    try:
        evil = pickle.PROTO + b"\x02" + pickle.EXT1 + bytes([201])
        evil += pickle.BINUNICODE + len(command := f"touch {marker}".encode()).to_bytes(4, "little") + command
        (distributed / ".metadata").write_bytes(evil + pickle.TUPLE1 + pickle.REDUCE + b".")
        copyreg._extension_cache[201] = os.system  # as if something had been loaded with it before
        with pytest.raises(CheckpointError, match=r"\.metadata"):
            open_checkpoint(distributed)
    finally:
        copyreg.remove_extension("os", "system", 201)


@pytest.mark.parametrize(
    "code",
    [
        pickle.NONE + pickle.LONG_BINPUT + (2**31 - 1).to_bytes(4, "little") + b".",  # a memo of 32 GB in C
        pickle.BYTEARRAY8 + (2**40).to_bytes(8, "little") + b".",
        pickle.BINBYTES8 + (2**40).to_bytes(8, "little") + b".",
        pickle.FRAME + (2**40).to_bytes(8, "little") + b".",
        pickle.LONG4 + (2**31 - 1).to_bytes(4, "little") + b".",
    ],
)
def test_absurd_sizes_in_the_metadata_take_no_memory(distributed: Path, code: bytes) -> None:
    (distributed / ".metadata").write_bytes(pickle.PROTO + b"\x05" + code)
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        open_checkpoint(distributed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry, info: setattr(info, "relative_path", "../secret.distcp"), "outside of the folder"),
        (lambda entry, info: setattr(info, "relative_path", "/etc/passwd"), "outside of the folder"),
        (lambda entry, info: setattr(info, "relative_path", "none.distcp"), "missing or too short"),
        (lambda entry, info: setattr(info, "offset", 10**9), "missing or too short"),
        (lambda entry, info: setattr(info, "length", 4), "missing or too short"),
        (lambda entry, info: setattr(info, "offset", -1), "sizes that are none"),
        (lambda entry, info: setattr(info, "transform_descriptors", ["zstandard"]), "zstandard"),
        (lambda entry, info: setattr(entry, "size", torch.Size([10**15])), "do not make up"),
        (lambda entry, info: setattr(entry.chunks[0], "offsets", torch.Size([1])), "KeyError|outside of it"),
        (lambda entry, info: setattr(entry, "chunks", []), "do not make up"),
        (
            lambda entry, info: (setattr(entry, "size", torch.Size([6])), setattr(entry, "chunks", entry.chunks * 2)),
            "chunks of state_dict.fc.bias overlap",
        ),
        (lambda entry, info: setattr(entry, "properties", 5), "no metadata of torch"),
    ],
)
def test_metadata_that_do_not_go_with_the_files(distributed: Path, change: Any, message: str) -> None:
    shutil.copy(distributed / "__0_0.distcp", distributed.parent / "secret.distcp")
    metadata = metadata_of(distributed)
    info = next(info for index, info in metadata.storage_data.items() if index.fqn == "state_dict.fc.bias")
    change(metadata.state_dict_metadata["state_dict.fc.bias"], info)
    (distributed / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(distributed)


def test_the_metadata_are_read_as_torch_reads_them(distributed: Path) -> None:
    entries, theirs = read_metadata(distributed), metadata_of(distributed).state_dict_metadata
    tensors = {name for name, entry in theirs.items() if hasattr(entry, "chunks")}
    assert set(entries) == tensors
    assert len(tensors) > len(weights(0))
    for name in tensors:
        assert (entries[name].size, entries[name].dtype) == (tuple(theirs[name].size), theirs[name].properties.dtype)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "..", "", 5, ["x"], "none.bin"])
def test_an_index_names_files_of_its_folder_alone(tmp_path: Path, name: Any) -> None:
    folder = next(write_all("sharded .bin", tmp_path / "x", {1: weights(0)}).iterdir())
    shutil.copy(folder / "pytorch_model-1.bin", folder.parent / "secret.bin")
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": name}}))
    with pytest.raises(CheckpointError, match="checkpoint-1 cannot be read"):
        open_checkpoint(folder)


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "step1.pt")
    with (
        zipfile.ZipFile(tmp_path / "step1.pt") as archive,
        zipfile.ZipFile(tmp_path / "step2.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    assert (tmp_path / "step2.pt").stat().st_size < 10**4
    with pytest.raises(CheckpointError, match=r"step2\.pt.*compressed archive"):
        open_checkpoint(tmp_path / "step2.pt")


def test_a_tensor_without_its_entries(tmp_path: Path) -> None:
    torch.save({"w": torch.empty(10**9, 10**6, device="meta")}, tmp_path / "step1.pt")
    with pytest.raises(CheckpointError, match="without its entries"):
        open_checkpoint(tmp_path / "step1.pt")


def test_a_tensor_of_a_single_entry_that_claims_to_have_many(tmp_path: Path) -> None:
    """It is left out as an expanded buffer, whether or not a model has a parameter of its name, and never read."""
    huge = torch.zeros(1).expand(10**6, 10**6)
    for step in range(2):
        torch.save({"w": huge, "weight": weights(step)["fc.weight"]}, tmp_path / f"step{step}.pt")
    assert open_checkpoint(tmp_path / "step1.pt").shapes["w"].shape == huge.shape
    with torch.device("meta"):
        model = torch.nn.Linear(4, 3, bias=False)
        model.w = torch.nn.Parameter(torch.empty(10**6, 10**6))
    for trajectory in (from_checkpoints(tmp_path), from_checkpoints(tmp_path, model=model)):
        assert [block.name for block in trajectory.blocks] == ["weight"]
        assert trajectory.settings["left_out"] == "1 w"


@pytest.mark.parametrize(
    ("offsets", "sizes", "overlap"),
    [
        ([(0, 0), (0, 2), (1, 0), (1, 2)], [(1, 2)] * 4, False),
        ([(0, 0), (0, 1), (1, 0), (1, 2)], [(1, 2)] * 4, True),
        ([(0, 0), (0, 2)], [(3, 2), (3, 1)], False),
        ([(0, 0), (2, 0), (1, 1)], [(2, 3), (1, 3), (1, 0)], False),
        ([()], [()], False),
    ],
)
def test_chunks_that_overlap(offsets: Any, sizes: Any, overlap: bool) -> None:
    chunks = [Chunk(offset, size, Path("x"), 0, 0) for offset, size in zip(offsets, sizes, strict=True)]
    assert _overlap(chunks) == _overlap(chunks[::-1]) == overlap


def test_an_absurd_header_of_safetensors(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "step1.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "step2.safetensors").write_bytes((2**62).to_bytes(8, "little") + header)
    for step in (1, 2):
        with pytest.raises(CheckpointError, match=rf"step{step}\.safetensors"):
            open_checkpoint(tmp_path / f"step{step}.safetensors")
    (tmp_path / "notes.safetensors").write_text("Dear reader, this is no file of weights.")
    with pytest.raises(CheckpointError, match="it is no safetensors file, whatever its name"):
        open_checkpoint(tmp_path / "notes.safetensors")


def test_lists_that_are_shared_are_looked_through_once(tmp_path: Path) -> None:
    shared: list[Any] = []
    for _ in range(6):
        shared = [shared] * 200
    torch.save({"a": shared}, tmp_path / "step1.pt")
    with pytest.raises(CheckpointError, match="no state dict found, nor any tensor"):
        open_checkpoint(tmp_path / "step1.pt")


HUGE = 10**8
TINY_SWIN = {"embed_dim": 8, "num_heads": [1, 1], "depths": [1, 1]}
TINY_SWITCH = {"d_model": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 1, "num_experts": 2}


@pytest.mark.parametrize(
    ("kind", "model_type", "change"),
    [
        ("SwinModel", "swin", TINY_SWIN | {"depths": [HUGE]}),
        ("SwinModel", "swin", TINY_SWIN | {"depths": [20, HUGE], "num_heads": [1, 1]}),
        ("SwitchTransformersModel", "switch_transformers", TINY_SWITCH | {"num_experts": HUGE}),
        ("BertModel", "bert", {"num_labels": HUGE}),
        ("BertModel", "bert", {"nested": {"num_hidden_layers": HUGE}, "num_hidden_layers": HUGE}),
    ],
)
def test_a_small_config_of_a_huge_model(tmp_path: Path, kind: str, model_type: str, change: dict[str, Any]) -> None:
    """It is not made, and takes no memory."""
    folder = next(write_all("Hugging Face", tmp_path / "x", {1: weights(0)}).iterdir())
    (folder / "config.json").write_text(json.dumps({"architectures": [kind], "model_type": model_type, **change}))
    checkpoint = open_checkpoint(folder)
    tracemalloc.start()
    try:
        assert network(checkpoint, checkpoint.shapes) is None
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_layers_times_experts_are_bounded() -> None:
    def make() -> torch.nn.Module:
        return torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Tanh()) for _ in range(4)])

    with _at_most(8):
        make()
    with pytest.raises(ValueError, match="more than 7 modules"), _at_most(7):
        make()
    make()


@pytest.mark.parametrize(("kind", "model_type", "config"), [("SwinModel", "swin", TINY_SWIN)])
def test_a_small_config_of_a_small_model(tmp_path: Path, kind: str, model_type: str, config: dict[str, Any]) -> None:
    """The same are made where they are believable."""
    import transformers

    model = getattr(transformers, kind)(transformers.AutoConfig.for_model(model_type, **config))
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert type(network(checkpoint, checkpoint.shapes)).__name__ == kind


def test_a_malicious_resume_file_is_ignored(tmp_path: Path, marker: Path) -> None:
    write_all(".pt", tmp_path / "x", {step: weights(step) for step in range(3)})
    expected = from_checkpoints(tmp_path / "x").gram()
    for content in (pickle.dumps(Malicious(marker)), b"", b"x" * 100):
        (tmp_path / "resume").write_bytes(content)
        assert (from_checkpoints(tmp_path / "x", resume=tmp_path / "resume").gram() == expected).all()
        assert (tmp_path / "resume").read_bytes() != content  # replaced by what has been done
    for evil in ({"done": Malicious(marker)}, Malicious(marker)):
        torch.save(evil, tmp_path / "resume")
        assert (from_checkpoints(tmp_path / "x", resume=tmp_path / "resume").gram() == expected).all()


# Plainly wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("step1.pt", b"", "it is empty"),
        ("step1.ckpt", b"garbage", "damaged"),
        ("step1.safetensors", b"garbage", "damaged"),
        ("step1.pt", {"a": 1}, "no state dict found.*the file has 'a'"),
        ("step1.pt", [torch.ones(2)], "holds a list, not a state dict"),
        ("step1.pt", torch.ones(2), "holds a Tensor, not a state dict"),
        ("step1.pt", {}, "no state dict found"),
        ("step1.pt", {"w": torch.ones(2).to_sparse()}, "no state dict found"),
        ("step1.safetensors", {}, "holds no tensors"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read as a checkpoint: .*{message}"):
        open_checkpoint(path)


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all("safetensors", tmp_path, {1: weights(1)})

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error")

    checkpoint = open_checkpoint(tmp_path / "step000001.safetensors")
    monkeypatch.setattr(checkpoint.source, "read", fail)
    with pytest.raises(CheckpointError, match=r"step000001.*Input/output error"):
        checkpoint.read("fc.bias")
    monkeypatch.setattr("safetensors.safe_open", fail)
    with pytest.raises(CheckpointError, match=r"step000001.*Input/output error"):
        open_checkpoint(tmp_path / "step000001.safetensors")


# Fuzzing ----------------------------------------------------------------------------------------------------

EXAMPLES = 600
TARGETS = [*WRITERS]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three checkpoints of each format."""
    states = {step: weights(step) for step in (1, 2, 3)}
    folders = {kind: tmp_path_factory.mktemp("good") / "x" for kind in TARGETS}
    return {kind: write_all(kind, folder, states) for kind, folder in folders.items()}


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    kind = draw(
        st.sampled_from(["flip", "flip", "flip", "cut", "cut front", "insert", "empty", "zeros", "other", "JSON"])
    )
    where, count = draw(st.floats(0, 1)), draw(st.integers(1, 8))
    more = draw(st.binary(min_size=1, max_size=20))
    near_the_ends = draw(st.booleans())

    def apply(content: bytes) -> bytes:
        at = int(where * max(len(content) - 1, 0))
        if near_the_ends:  # where headers and directories are
            at = min(at, 300) if where < 0.5 else max(at, len(content) - 300)
        changed = bytearray(content)
        if kind == "flip":
            for i in range(count):
                changed[(at + 37 * i) % len(changed)] ^= 1 << (more[i % len(more)] % 8)
        return {
            "flip": bytes(changed),
            "cut": content[:at],
            "cut front": content[at:],
            "insert": content[:at] + more + content[at:],
            "empty": b"",
            "zeros": content[:at] + bytes(len(content) - at),
            "other": more,
            "JSON": b'{"weight_map": ' + more.hex().encode() + b"}",
        }[kind]

    return apply


seen = {"refused": 0, "read": 0}


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(kind=st.sampled_from(TARGETS), which=st.integers(0, 9), change=damage(), whole=st.integers(0, 9))
def test_damaged_files(good: dict[str, Path], kind: str, which: int, change: Any, whole: int) -> None:
    """An error that names the checkpoint, or a result; with skip_bad the rest in any case."""
    paths = sorted(good[kind].iterdir())
    bad = paths[1]
    file = bad if bad.is_file() else (files := sorted(bad.iterdir()))[which % len(files)]
    content = file.read_bytes()
    arguments: dict[str, Any] = {"snapshot": "sketch" if whole else "full", "order": "given", "sketch_dim": 4}
    file.write_bytes(change(content))
    try:
        error = refused(bad)
        seen["read" if error is None else "refused"] += 1
        if whole < 2:
            # A changed byte may rename a tensor, and half of the parameters with it.
            trajectory = from_checkpoints(paths, skip_bad=True, partial=True, **arguments)
            skipped = [f for f in trajectory.settings["findings"] if f.startswith("skipped")]
            assert skipped == ([] if error is None else [f"skipped: {error}"])
            assert len(trajectory) == 2 or (error is None and len(trajectory) == 3)  # entries may be non-finite
    finally:
        file.write_bytes(content)


def refused(path: Path) -> CheckpointError | None:
    """Why a checkpoint cannot be opened, or one of its tensors not be read."""
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.shapes:
            checkpoint.read(name).clone()
    except CheckpointError as error:
        named = error
    else:
        return None
    assert str(path) in str(named)
    assert named.path == path
    return named


def test_enough_files_were_damaged() -> None:
    assert seen["refused"] + seen["read"] >= 500
    assert seen["refused"] >= 150  # others were hit where nothing but a number changed
