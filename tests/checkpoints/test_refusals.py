"""What is said of files and folders that are no checkpoints, or hold no parameters; and layouts of folders that do."""

from __future__ import annotations

import errno
import gzip
import io
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_traj import from_checkpoints
from lightning_traj.checkpoints.formats.errors import CheckpointError
from lightning_traj.checkpoints.formats.opening import is_checkpoint, open_checkpoint
from lightning_traj.checkpoints.paths import find
from lightning_traj.cli.command import main
from saved import WRITERS, write_all

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, torch.Tensor]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 548105171\n"


def weights(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    return {"fc.weight": torch.randn(3, 4, generator=generator), "fc.bias": torch.randn(3, generator=generator)}


def gram(states: list[State]) -> np.ndarray[Any, Any]:
    theta = np.stack([np.concatenate([tensor.double().numpy().ravel() for tensor in s.values()]) for s in states])
    return theta @ theta.T


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# Name of the file -> its content, and what is said.
FILES: Mapping[str, tuple[bytes, str]] = {
    "step=1.pt": (LFS, "it is a Git LFS pointer, and the file itself was not downloaded: run git lfs pull"),
    "step=1.safetensors": (LFS, "it is a Git LFS pointer.*run git lfs pull"),
    "step=1.ckpt": (LFS, "it is a Git LFS pointer.*run git lfs pull"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "it is a file of Keras or TensorFlow: only weights of PyTorch"),
    "weights.ckpt": (b"\x89HDF\r\n\x1a\n" + bytes(100), "it is a file of Keras or TensorFlow"),
    "model.keras": (zipped(config=b"{}"), "it is a file of Keras or TensorFlow"),
    "model.ckpt-100.index": (b"\x00\x01", "it is a file of Keras or TensorFlow"),
    "model.ckpt-100.data-00000-of-00001": (bytes(100), "it is a file of Keras or TensorFlow"),
    "saved_model.pb": (b"\x08\x01", "it is a file of Keras or TensorFlow"),
    "step=2.pt": (gzip.compress(b"x"), "it is compressed: unpack it"),
    "step=3.pt.tar": (tar(), "it is a tar archive: unpack it"),
    "step=4.pt": (b"<!DOCTYPE html><html>404</html>", "it is a web page: download the file itself"),
    "step=5.pt": (b"<HTML>404</HTML>", "it is a web page"),
    "step=6.pt": (b"\x93NUMPY" + bytes(100), "it is an array of NumPy"),
    "step=7.zip": (zipped(readme=b"x"), "it is a zip archive without data.pkl: neither torch.save nor torch.jit.save"),
    "step=8.pt": (saved(weights(1))[:-100], "it is truncated or damaged: the end of the archive is missing"),
    "step=9.pt": (saved({"args": 1, "lr": 0.1}), "no state dict found.*the file has 'args', 'lr'"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_said_of_a_file(tmp_path: Path, name: str) -> None:
    content, words = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read as a checkpoint: {words}") as caught:
        open_checkpoint(tmp_path / name)
    for jargon in ("header too large", "Unsupported operand", "enforce fail", "weights_only"):
        assert jargon not in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind not in ("distributed",)])
def test_a_truncated_file_is_called_so(tmp_path: Path, kind: str) -> None:
    write_all(kind, tmp_path, {1: weights(1)})
    path = next(tmp_path.iterdir())
    file = (
        path
        if path.is_file()
        else next(path.glob("*model*.*in"))
        if kind == "sharded .bin"
        else next(path.glob("*.safetensors"))
    )
    content = file.read_bytes()
    for left in (len(content) // 2, len(content) - 9):
        file.write_bytes(content[:left])
        with pytest.raises(CheckpointError, match=rf"{path.name} cannot be read as a checkpoint: .*it is truncated"):
            open_checkpoint(path)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model-1.bin"])
def test_a_pointer_within_a_folder_is_named(tmp_path: Path, file: str) -> None:
    kind = "Hugging Face" if file == "model.safetensors" else "sharded .bin"
    path = next(write_all(kind, tmp_path, {1: weights(1)}).iterdir())
    (path / file).write_bytes(LFS)
    with pytest.raises(CheckpointError, match=rf"checkpoint-1 cannot be read .*: in {file}, it is a Git LFS pointer"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "files",
    [
        ("model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001", "checkpoint"),
        ("saved_model.pb", "keras_metadata.pb"),
        ("model_01.h5", "model_02.h5"),
        ("a.keras",),
    ],
)
def test_a_folder_of_tensorflow(tmp_path: Path, files: tuple[str, ...]) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"holds no checkpoint: it holds files of Keras or TensorFlow: only weights of"
    ):
        find(tmp_path)


def _deepspeed(folder: Path, inside: str) -> None:
    (folder / inside).mkdir(parents=True)
    torch.save({"module": {}}, folder / inside / "mp_rank_00_model_states.pt")
    torch.save({}, folder / inside / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (folder / "latest").write_text(inside)


@pytest.mark.parametrize(
    ("inside", "name", "script"),
    [
        ("checkpoint", "epoch=0-step=1.ckpt", True),
        ("global_step1", "checkpoint-1", True),
        ("checkpoint", "a.ckpt", False),
    ],
)
def test_folders_of_deepspeed(tmp_path: Path, inside: str, name: str, script: bool) -> None:
    _deepspeed(tmp_path / name, inside)
    if script:
        (tmp_path / name / "zero_to_fp32.py").touch()
    words = rf"{name} cannot be read as a checkpoint: it is a folder of DeepSpeed.*zero_to_fp32\.py"
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=words):
            from_checkpoints(path)


def test_a_folder_of_deepspeed_with_weights_in_one_file_is_read(tmp_path: Path) -> None:
    for step in (1, 2):
        _deepspeed(tmp_path / f"checkpoint-{step}", f"global_step{step}")
        (tmp_path / f"checkpoint-{step}" / "zero_to_fp32.py").touch()
        save_file(weights(step), tmp_path / f"checkpoint-{step}" / "model.safetensors")
    np.testing.assert_allclose(from_checkpoints(tmp_path).gram("*"), gram([weights(1), weights(2)]), rtol=1e-12)


# Folders that may not be looked into. The tests may run as root, whom nothing is closed to.


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that nothing can be listed, looked at or written in."""
    folder = tmp_path / "closed"
    folder.mkdir()
    listing, stat = Path.iterdir, Path.stat

    def denied(path: Path) -> PermissionError:
        return PermissionError(errno.EACCES, "Permission denied", str(path))

    def iterdir(self: Path) -> Iterator[Path]:
        if self == folder or folder in self.parents:
            raise denied(self)
        return listing(self)

    def look(self: Path, **how: Any) -> Any:
        if folder in self.parents:
            raise denied(self)
        return stat(self, **how)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    monkeypatch.setattr(Path, "stat", look)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != folder)
    yield folder
    monkeypatch.undo()


@pytest.mark.parametrize("given", ["the folder", "a file in it", "the folder above"])
def test_a_closed_folder_is_named(closed: Path, given: str) -> None:
    path = {"the folder": closed, "a file in it": closed / "step=1.pt", "the folder above": closed.parent}[given]
    with pytest.raises(
        PermissionError, match=rf"{closed}\S* may not be looked into \(permission denied\).*chmod u\+rx"
    ):
        find(path)


def test_a_closed_folder_fails_the_command(closed: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["analyze", str(closed), "--out", str(tmp_path / "out")]) == 1
    assert f"error: {closed} may not be looked into" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("closed", "no permission to write to .*closed"),
        ("closed/a", "Permission denied"),
        ("closed/a/b", "Permission denied"),
        ("a" * 300, "File name too long"),
        ("a/" + "b" * 300 + "/c", "File name too long"),
        ("file/a/b", "file is a file"),
    ],
)
@pytest.mark.parametrize("command", ["analyze", "compare"])
def test_a_folder_for_results_that_cannot_be(
    closed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, why: str, command: str, monkeypatch: Any
) -> None:
    """It is said before anything is read, and without a traceback."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("lightning_traj.cli.command._analyze", lambda _: pytest.fail("it has begun"))
    if out == "closed":
        monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))
    with pytest.raises(SystemExit) as stopped:
        main([command, "x", "y", "--out", str(tmp_path / out)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "--out" in error
    assert "name another folder" in error
    assert re.search(why, error)


# Nothing that moves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": torch.ones(2, dtype=torch.int8), "b": torch.ones(2, dtype=torch.int8)}, "2 of int8"),
        ({"a": torch.ones(0, 3)}, "1 without entries"),
        ({"a": torch.ones(2, dtype=torch.uint8), "b": torch.ones(0)}, "1 of uint8 and 1 without entries"),
        ({"bn.running_mean": torch.ones(3)}, "1 called running_mean, as buffers are"),
    ],
)
def test_checkpoints_without_parameters(tmp_path: Path, state: State, words: str) -> None:
    for step in range(2):
        torch.save(state, tmp_path / f"step={step}.pt")
    with pytest.raises(
        ValueError, match=rf"step=0\.pt and the other checkpoints hold no parameters.*tensors are {words}\."
    ):
        from_checkpoints(tmp_path)


# Buffers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["attn.mask", "tril", "h.0.tril", "attn.causal_mask", "text.attn_mask", "h.0.attn.bias", "a.masked_bias"]
)
def test_causal_masks_are_left_out_by_name(tmp_path: Path, name: str) -> None:
    mask = torch.ones(5, 5).tril() if not name.endswith("bias") else torch.ones(1, 1, 5, 5).tril()
    states = [weights(step) for step in range(3)]
    for step, state in enumerate(states):
        more = {name: mask, f"second.{name}": mask.clone(), "rotary.inv_freq": torch.ones(4)}
        torch.save({**more, **state}, tmp_path / f"step={step}.pt")
    trajectory = from_checkpoints(tmp_path)
    assert [block.name for block in trajectory.blocks] == ["fc.weight", "fc.bias"]
    assert trajectory.settings["left_out"] == f"2 {name.rpartition('.')[2]}, 1 inv_freq"
    assert trajectory.settings["findings"] == []
    np.testing.assert_allclose(trajectory.gram("*"), gram(states), rtol=1e-12)


def test_parameters_that_are_only_called_like_masks_are_kept(tmp_path: Path) -> None:
    for step in range(2):
        state = {"mask": torch.randn(5), "mask_token": torch.randn(1, 1, 4), "net.mask": torch.randn(2, 3)}
        torch.save(state, tmp_path / f"step={step}.pt")
    assert {block.name for block in from_checkpoints(tmp_path).blocks} == {"mask", "mask_token", "net.mask"}


@pytest.mark.parametrize("how", ["plain", "lightning", "legacy"])
def test_expanded_buffers_are_left_out(tmp_path: Path, how: str) -> None:
    states = [weights(step) for step in range(3)]
    for step, state in enumerate(states):
        whole = {"positions": torch.arange(4.0).expand(3, 4), "scale": torch.ones(1).expand(7), **state}
        content = {"state_dict": whole, "global_step": step} if how == "lightning" else whole
        torch.save(content, tmp_path / f"step={step}.ckpt", _use_new_zipfile_serialization=how != "legacy")
    trajectory = from_checkpoints(tmp_path)
    assert trajectory.settings["left_out"] == "1 positions, 1 scale"
    np.testing.assert_allclose(trajectory.gram("*"), gram(states), rtol=1e-12)
    tensor = open_checkpoint(tmp_path / "step=1.ckpt").read("positions")
    assert torch.equal(tensor, torch.arange(4.0).expand(3, 4))


# Folders of folders -----------------------------------------------------------------------------------------


def _with_config(folder: Path, name: str, state: State) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    save_file(state, folder / name)


def test_checkpoints_of_diffusers(tmp_path: Path) -> None:
    """Several networks in each, averages beside them, and the finished pipeline beside the checkpoints."""
    trained = {step: {"unet": weights(step), "text_encoder": weights(10 + step)} for step in (10, 20, 100)}
    for step, networks in trained.items():
        folder = tmp_path / f"checkpoint-{step}"
        _with_config(folder / "unet", "diffusion_pytorch_model.safetensors", networks["unet"])
        _with_config(folder / "unet_ema", "diffusion_pytorch_model.safetensors", weights(1000 + step))
        _with_config(folder / "text_encoder", "model.safetensors", networks["text_encoder"])
        torch.save({}, folder / "optimizer.bin")
        torch.save({}, folder / "scheduler.bin")
    shutil.copytree(tmp_path / "checkpoint-100" / "unet", tmp_path / "unet")
    shutil.copytree(tmp_path / "checkpoint-100" / "text_encoder", tmp_path / "text_encoder")
    (tmp_path / "model_index.json").write_text("{}")
    trajectory = from_checkpoints(tmp_path)
    assert trajectory.steps.tolist() == [10, 20, 100]
    assert {block.name for block in trajectory.blocks} == {
        f"{network}.{name}" for network in ("unet", "text_encoder") for name in weights(0)
    }
    states = [{f"{n}.{name}": t for n, state in both.items() for name, t in state.items()} for both in trained.values()]
    np.testing.assert_allclose(trajectory.gram("*"), gram(states), rtol=1e-12)
    averaged = from_checkpoints(tmp_path, weights="average")
    np.testing.assert_allclose(averaged.gram("*"), gram([weights(1000 + step) for step in trained]), rtol=1e-12)


def test_a_sharded_network_of_diffusers(tmp_path: Path) -> None:
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}" / "transformer"
        folder.mkdir(parents=True)
        for name, tensor in weights(step).items():
            save_file({name: tensor}, folder / f"{name}.safetensors")
        index = {"weight_map": {name: f"{name}.safetensors" for name in weights(step)}}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_allclose(from_checkpoints(tmp_path).gram("*"), gram([weights(1), weights(2)]), rtol=1e-12)


@pytest.mark.parametrize("with_last", [True, False])
def test_a_root_of_the_trainer_of_transformers(tmp_path: Path, with_last: bool) -> None:
    """With what it leaves beside the weights, and in each checkpoint."""

    class Arguments:
        """As of transformers.TrainingArguments."""

    globals()["Arguments"], Arguments.__qualname__ = Arguments, "Arguments"
    for folder in [tmp_path, *(tmp_path / f"checkpoint-{step}" for step in (5, 10))]:
        folder.mkdir(exist_ok=True)
        torch.save(Arguments(), folder / "training_args.bin")
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        save_file(weights(step), folder / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"):
            torch.save({"state": {}}, folder / name)
    if with_last:
        save_file(weights(10), tmp_path / "model.safetensors")
    trajectory = from_checkpoints(tmp_path)
    assert trajectory.steps.tolist() == [5, 10]
    np.testing.assert_allclose(trajectory.gram("*"), gram([weights(5), weights(10)]), rtol=1e-12)
    with pytest.raises(CheckpointError, match=rf"training_args\.bin .*holds a {__name__}\.Arguments, not a state dict"):
        open_checkpoint(tmp_path / "training_args.bin")


def test_archives_that_are_no_checkpoints_are_not_taken_for_some(tmp_path: Path) -> None:
    write_all("Stable-Baselines3", tmp_path, {step: weights(step) for step in (1000, 2000)})
    (tmp_path / "images.zip").write_bytes(zipped(a=b"1"))
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04")
    assert [path.name for path in find(tmp_path)] == ["rl_model_1000_steps.zip", "rl_model_2000_steps.zip"]
    trajectory = from_checkpoints(tmp_path)
    assert trajectory.steps.tolist() == [1000, 2000]
    truncated = tmp_path / "rl_model_3000_steps.zip"
    truncated.write_bytes((tmp_path / "rl_model_1000_steps.zip").read_bytes()[:1500])
    with pytest.raises(CheckpointError, match=r"rl_model_3000_steps\.zip .*it is truncated"):
        from_checkpoints(tmp_path)
    np.testing.assert_allclose(trajectory.gram("*"), gram([weights(1000), weights(2000)]), rtol=1e-12)


BESIDE: Mapping[str, object] = {
    "optimizer.pt": {"state": {}, "param_groups": []},
    "training_args.bin": Fraction(1, 3),
    "rng_state_0.pth": {},
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_beside_checkpoints_is_left_out_by_name(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        torch.save({"w": torch.full((3,), float(step))}, tmp_path / f"step={step}.pt")
    torch.save(BESIDE[name], tmp_path / name)
    trajectory = from_checkpoints(tmp_path)
    assert trajectory.steps.tolist() == [1, 2]
    assert sum(finding.startswith(f"{name} is left out: ") for finding in trajectory.settings["findings"]) == 1


CASES: Mapping[str, Callable[[Path], object]] = {
    ".hidden.pt": lambda path: torch.save({}, path),
    "notes.txt": lambda path: path.touch(),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_beside_checkpoints_is_none(tmp_path: Path, name: str) -> None:
    CASES[name](tmp_path / name)
    assert not is_checkpoint(tmp_path / name)
