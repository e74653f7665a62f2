"""Files are replaced in one step, or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from lightning_traj.files.atomic import replace_atomically


def test_a_file_is_written_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "new" / "folder" / "trajectory.safetensors"
    with replace_atomically(path) as temporary:
        assert temporary.parent == path.parent  # the same file system
        assert temporary.suffix == path.suffix
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == [path.name]


def test_readers_of_the_old_file_keep_it(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with path.open() as reader:
        with replace_atomically(str(path)) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert reader.read() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail():
        with replace_atomically(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    ordinary, replaced = tmp_path / "ordinary", tmp_path / "replaced"
    ordinary.write_text("")
    with replace_atomically(replaced) as temporary:
        temporary.write_text("")
    assert stat.S_IMODE(replaced.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "file.txt"
    with replace_atomically(path) as one, replace_atomically(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"  # the last to finish
    assert os.listdir(tmp_path) == ["file.txt"]
