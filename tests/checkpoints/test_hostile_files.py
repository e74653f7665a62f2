"""Files made to do harm: each is opened in a process of little memory, with a canary that must not sing."""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
import zipfile
from pathlib import Path
from pickle import (
    ADDITEMS,
    APPEND,
    BINGET,
    BININT1,
    BINPERSID,
    BINPUT,
    BUILD,
    DUP,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    LONG1,
    LONG_BINPUT,
    MARK,
    MEMOIZE,
    NEWOBJ,
    NEWOBJ_EX,
    NONE,
    OBJ,
    POP,
    REDUCE,
    SETITEM,
    SETITEMS,
    SHORT_BINBYTES,
    STACK_GLOBAL,
    TUPLE,
    TUPLE1,
    TUPLE2,
)

import numpy as np
import pytest
import torch

from hostile import (
    CONTAINERS,
    OPERATIONS,
    archive,
    beside,
    called,
    doubled,
    entries,
    named,
    number,
    open_apart,
    pair,
    program,
    storage,
    tensor,
    word,
)
from lightning_traj.checkpoints.formats import stack_machine, unpickling

CANARY = named("canary", "sing")
BIRD = named("canary", "Bird")
NUMPY = "numpy._core.multiarray"
FLOAT = called("numpy", "dtype", word("f8"))


def short_bytes(content: bytes) -> bytes:
    return SHORT_BINBYTES + bytes([len(content)]) + content


def scripted(value: bytes) -> bytes:
    """A module of TorchScript that has itself as a child, under such a name."""
    return named("__torch__", "M") + EMPTY_TUPLE + NEWOBJ + BINPUT + b"\x09" + value + BUILD


def bomb() -> bytes:
    """A deflated archive of ten million zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x/data.pkl", bytes(10**8))
    return file.getvalue()


def liar() -> bytes:
    """An archive whose directory says that its pickle is of four gigabytes."""
    content = bytearray(archive(entries({"w": tensor()})))
    directory = content.index(b"PK\x01\x02")
    for at in (directory + 20, directory + 24):
        content[at : at + 4] = (2**32 - 2).to_bytes(4, "little")
    return bytes(content)


READ = {"w": [1.0, 2.0]}
# Beside good weights: they are read, and the rest does nothing.
HARMLESS = {
    "reduce": CANARY + EMPTY_TUPLE + REDUCE,
    "reduce_system": called("os", "system", word("touch marker")),
    "reduce_eval": called("builtins", "eval", word("__import__('canary')")),
    "reduce_exec_by_old_name": called("__builtin__", "execfile", word("x")),
    "reduce_getattr": called("builtins", "getattr", named("canary", "Bird"), word("__new__")),
    "reduce_what_was_reduced": called("functools", "partial", CANARY) + EMPTY_TUPLE + REDUCE,
    "reduce_import": called("importlib", "import_module", word("canary")),
    "reduce_dotted": called("canary", "sing.__call__"),
    "reduce_torch_load": called("torch", "load", word("x.pt")),
    "reduce_jit_load": called("torch.jit", "load", word("x.pt")),
    "reduce_numpy_load": called("numpy", "load", word("x.npy")),
    "reduce_codecs": called("_codecs", "lookup", word("canary")),
    "reduce_copyreg": called("copyreg", "_reconstructor", BIRD, named("builtins", "object"), NONE),
    "type_v2_of_a_function": called("torch._tensor", "_rebuild_from_type_v2", CANARY, BIRD, EMPTY_TUPLE, EMPTY_DICT),
    "newobj": BIRD + EMPTY_TUPLE + NEWOBJ,
    "newobj_ex": BIRD + EMPTY_TUPLE + EMPTY_DICT + NEWOBJ_EX,
    "newobj_ex_keywords": BIRD + EMPTY_TUPLE + entries({"a": NONE}) + NEWOBJ_EX,
    "object": MARK + BIRD + NONE + OBJ,
    "instance": MARK + NONE + b"icanary\nBird\n",
    "build_on_a_placeholder": BIRD + EMPTY_TUPLE + NEWOBJ + entries({"__class__": BIRD, "kind": NONE}) + BUILD,
    "build_with_slots": BIRD + EMPTY_TUPLE + NEWOBJ + NONE + entries({"state": NONE}) + TUPLE2 + BUILD,
    "build_on_a_dict": EMPTY_DICT + entries({"__getitem__": CANARY}) + BUILD,
    "append_to_a_placeholder": BIRD + EMPTY_TUPLE + NEWOBJ + NONE + APPEND,
    "set_in_a_placeholder": BIRD + EMPTY_TUPLE + NEWOBJ + word("a") + NONE + SETITEM,
    "add_to_a_placeholder": BIRD + EMPTY_TUPLE + NEWOBJ + MARK + NONE + ADDITEMS,
    "placeholder_as_a_key": EMPTY_DICT + BIRD + EMPTY_TUPLE + NEWOBJ + NONE + SETITEM,
    "tensor_as_a_key": EMPTY_DICT + tensor() + NONE + SETITEM,
    "a_list_that_holds_itself": EMPTY_LIST + BINPUT + b"\x07" + BINGET + b"\x07" + APPEND,
    "a_dict_that_holds_itself": EMPTY_DICT + BINPUT + b"\x07" + word("a") + BINGET + b"\x07" + SETITEM,
    "deep_lists": EMPTY_LIST * 100_000 + APPEND * 99_999,
    "deep_tuples": NONE + TUPLE1 * 100_000,
    "deep_dicts": (EMPTY_DICT + word("a")) * 100_000 + NONE + SETITEM * 100_000,
    "deep_key": EMPTY_DICT + NONE + TUPLE1 * 100_000 + NONE + SETITEM,
    "endless_tuple_as_key": EMPTY_DICT + doubled(80, TUPLE2, EMPTY_TUPLE) + NONE + SETITEM,
    "endless_tuple_in_a_set": EMPTY_SET + MARK + doubled(80, TUPLE2, EMPTY_TUPLE) + ADDITEMS,
    "endless_dicts": EMPTY_DICT
    + (
        BINPUT
        + b"\x07"
        + POP
        + EMPTY_DICT
        + word("a")
        + BINGET
        + b"\x07"
        + SETITEM
        + word("b")
        + BINGET
        + b"\x07"
        + SETITEM
    )
    * 100,
    "endless_dicts_of_odd_keys": EMPTY_DICT
    + (BINPUT + b"\x07" + POP + EMPTY_DICT + word("a") + BINGET + b"\x07" + SETITEM + BIRD + BINGET + b"\x07" + SETITEM)
    * 100,
    "collisions": EMPTY_DICT
    + MARK
    + b"".join(LONG1 + bytes([len(n := pickle.encode_long(k * (2**61 - 1)))]) + n + NONE for k in range(2, 60_000))
    + SETITEMS,
    "tuples_as_keys": EMPTY_DICT + MARK + b"".join(pair(k, k) + NONE for k in range(50_000)) + SETITEMS,
    "a_memo_of_32_gigabytes": NONE + LONG_BINPUT + (2**31 - 1).to_bytes(4, "little"),
    "array_of_objects": called(NUMPY, "_reconstruct", named("numpy", "ndarray"), MARK + number(0) + TUPLE, NONE)
    + MARK
    + number(1)
    + (MARK + number(1) + TUPLE)
    + called("numpy", "dtype", word("O8"))
    + NONE
    + (EMPTY_LIST + CANARY + APPEND)
    + TUPLE
    + BUILD,
    "scalar_of_objects": called(NUMPY, "scalar", called("numpy", "dtype", word("O8")), CANARY),
    "subclass_of_a_tensor_with_a_state": called(
        "torch._tensor",
        "_rebuild_from_type_v2",
        named("torch._utils", "_rebuild_wrapper_subclass"),
        BIRD,
        EMPTY_TUPLE,
        EMPTY_DICT,
    ),
}
# Beside good weights, each refused, with these words.
REFUSED = {
    "build_on_a_class": (BIRD + entries({"__eq__": NONE}) + BUILD, "changes canary.Bird"),
    "build_on_a_known_function": (named("collections", "OrderedDict") + EMPTY_DICT + BUILD, "changes collections"),
    "reduce_on_a_number": (number(5) + EMPTY_TUPLE + REDUCE, "calls a int"),
    "reduce_on_a_text": (word("os.system") + EMPTY_TUPLE + REDUCE, "calls a str"),
    "reduce_on_a_tensor": (tensor() + EMPTY_TUPLE + REDUCE, "calls a StoredTensor"),
    "reduce_without_a_tuple": (CANARY + EMPTY_LIST + REDUCE, "no tuple of arguments"),
    "newobj_of_a_number": (number(5) + EMPTY_TUPLE + NEWOBJ, "calls a int"),
    "newobj_ex_of_a_number": (number(5) + EMPTY_TUPLE + entries({"a": NONE}) + NEWOBJ_EX, "calls a int"),
    "object_of_nothing": (MARK + OBJ, "calls nothing"),
    "a_name_that_is_none": (number(1) + number(2) + STACK_GLOBAL, "names something that is no name"),
    "a_name_without_an_end": (word("a" * 5000) + word("b") + STACK_GLOBAL, "names something that is no name"),
    "extension_1": (b"\x82\x01", "where an operation of a pickle should be"),
    "extension_2": (b"\x83\x01\x00", "where an operation of a pickle should be"),
    "extension_4": (b"\x84\x01\x00\x00\x00", "where an operation of a pickle should be"),
    "buffers": (b"\x97", "where an operation of a pickle should be"),
    "persistent_number": (number(5) + BINPERSID, "no storage of a tensor"),
    "persistent_text": (b"Pstorage\n", "no storage of a tensor"),
    "persistent_short": (MARK + word("storage") + TUPLE + BINPERSID, "no storage of a tensor"),
    "persistent_function": (storage(kind=CANARY), "storage of unknown type"),
    "persistent_class": (storage(kind=BIRD + EMPTY_TUPLE + NEWOBJ), "storage of unknown type"),
    "persistent_other": (MARK + word("other") + CANARY + NONE * 3 + TUPLE + BINPERSID, "no storage of a tensor"),
    "append_to_a_number": (number(1) + NONE + APPEND, "appends to a int"),
    "add_to_a_list": (EMPTY_LIST + MARK + NONE + ADDITEMS, "adds members to a list"),
    "set_in_a_list": (EMPTY_LIST + NONE + NONE + SETITEM, "sets entries of a list"),
    "set_an_odd_number": (EMPTY_DICT + MARK + NONE + SETITEMS, "sets entries"),
    "an_empty_stack": (POP * 9, "a mark that it has not set"),
    "not_in_the_memo": (BINGET + b"\x63", "recalls a value that it has not kept"),
    "text_of_a_terabyte": (b"\x8d" + (2**40).to_bytes(8, "little"), "truncated"),
    "bytes_of_a_terabyte": (b"\x8e" + (2**40).to_bytes(8, "little"), "truncated"),
    "bytearray_of_a_terabyte": (b"\x96" + (2**40).to_bytes(8, "little"), "truncated"),
    "bytes_of_2_to_the_63": (b"\x8e" + (2**63).to_bytes(8, "little"), "truncated"),
    "number_of_two_gigabytes": (b"\x8b" + (2**31 - 1).to_bytes(4, "little"), "truncated"),
    "number_of_negative_length": (b"\x8b" + b"\xff\xff\xff\xff", "truncated"),
    "number_of_many_digits": (b"L" + b"9" * 10**6 + b"L\n", "damaged"),
    "a_line_without_end": (b"I1", "damaged|truncated"),
    "sets": (EMPTY_SET * CONTAINERS, "containers"),
    "memo": (NONE + MEMOIZE * CONTAINERS, "containers"),
    "marks": (MARK * CONTAINERS, "containers"),
    "copies_of_bytes": (
        word("a" * 10**6) + BINPUT + b"\x07" + called("_codecs", "encode", BINGET + b"\x07", word("latin1")) * 2000,
        "copies",
    ),
    "copies_of_sets": (
        EMPTY_LIST
        + BINPUT
        + b"\x07"
        + MARK
        + number(1) * 10**5
        + b"e"
        + called("builtins", "set", BINGET + b"\x07") * 500,
        "copies",
    ),
    "copies_of_names": (
        b"".join(word(f"{i}{'m' * 500}") + BINPUT + bytes([i]) for i in range(255))
        + b"".join(BINGET + bytes([i]) + BINGET + bytes([j]) + STACK_GLOBAL for i in range(255) for j in range(255)),
        "copies",
    ),
    "set_of_a_number": (called("builtins", "set", number(10)), "made of a int"),
    "bytearray_of_a_terabyte_by_a_call": (
        called("builtins", "bytearray", LONG1 + b"\x06" + bytes(5) + b"\x01"),
        "made of",
    ),
    "array_of_a_terabyte": (
        called("numpy._core.numeric", "_frombuffer", short_bytes(b"12345678"), FLOAT, pair(2**20, 2**20), word("C")),
        "which its shape does not go with",
    ),
    "array_of_negative_shape": (
        called("numpy._core.numeric", "_frombuffer", short_bytes(b"12345678"), FLOAT, pair(-1, -1), word("C")),
        "no known shape",
    ),
    "scalar_of_too_many_bytes": (called(NUMPY, "scalar", FLOAT, short_bytes(b"123456789")), "does not go with"),
    "scalar_of_too_few_bytes": (called(NUMPY, "scalar", FLOAT, short_bytes(b"1")), "does not go with"),
    "tensor_without_a_storage": (tensor(where=NONE), "without a storage"),
    "tensor_of_negative_size": (tensor(size=MARK + number(-2) + TUPLE), "no counts"),
    "tensor_of_too_few_strides": (tensor(stride=EMPTY_TUPLE), "don't go with each other"),
    "subclass_within_a_subclass": (
        called(
            "torch._tensor",
            "_rebuild_from_type_v2",
            named("torch._tensor", "_rebuild_from_type_v2"),
            BIRD,
            EMPTY_TUPLE,
            EMPTY_DICT,
        ),
        "no known class",
    ),
}
# Files as wholes.
WHOLE = {
    "many_operations": (program(NONE + (DUP + POP) * (OPERATIONS // 2)), "operations"),
    "a_tensor_beyond_its_storage": (
        archive(entries({"w": tensor(size=MARK + number(3) + TUPLE)})),
        "fewer are in the file",
    ),
    "an_offset_beyond_its_storage": (archive(entries({"w": tensor(offset=number(2))})), "fewer are in the file"),
    "a_stride_beyond_its_storage": (
        archive(entries({"w": tensor(stride=MARK + number(2**31 - 1) + TUPLE)})),
        "fewer are in the file",
    ),
    "a_storage_that_is_missing": (archive(entries({"w": tensor(where=storage("1"))})), "entries of w are missing"),
    "a_storage_outside": (archive(entries({"w": tensor(where=storage("../../../etc/passwd"))})), "are missing"),
    "a_deflated_bomb": (bomb(), "compressed archive"),
    "a_directory_that_lies": (liar(), "is not where the archive says"),
    "a_module_that_holds_itself": (
        archive(scripted(entries({"w": tensor(), "a": BINGET + b"\x09"}))),
        "nested without an end",
    ),
    "a_module_that_holds_itself_twice": (
        archive(scripted(entries({"w": tensor(), "a": BINGET + b"\x09", "b": BINGET + b"\x09"}))),
        "nested without an end",
    ),
    "a_module_of_long_names": (
        archive(scripted(entries({"w": tensor(), "a" * 10**6: BINGET + b"\x09"}))),
        "nested without an end",
    ),
    "a_bare_call": (program(CANARY + EMPTY_TUPLE + REDUCE), "holds a canary.sing, not a state dict"),
    "a_bare_name": (program(CANARY), "holds a canary.sing, not a state dict"),
}
MORE = {  # in archives that are read
    "x_members_outside": archive(
        entries({"w": tensor()}), more={"../../marker": b"1", "/tmp/marker": b"1", "x/code/a.py": b"!"}
    ),
    "x_code_compressed": archive(
        entries({"w": tensor()}), more={"x/constants.pkl": program(CANARY + EMPTY_TUPLE + REDUCE)}
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What came of each file; files that are refused are written as legacy ones too, where no storage is needed."""
    contents = {f"{name}.pt": beside(value) for name, value in HARMLESS.items()}
    contents |= {f"{name}.pt": beside(value) for name, (value, _) in REFUSED.items()}
    contents |= {f"{name}.pt": content for name, (content, _) in WHOLE.items()}
    contents |= {f"{name}.pt": content for name, content in MORE.items()}
    return open_apart(tmp_path_factory.mktemp("hostile"), contents)


@pytest.mark.parametrize("name", [*HARMLESS, *MORE])
def test_weights_are_read_and_nothing_is_run(outcomes: dict[str, dict[str, object]], name: str) -> None:
    outcome = outcomes[f"{name}.pt"]
    assert outcome.get("read") == READ, outcome
    assert outcome["heard"] == []


@pytest.mark.parametrize("name", [*REFUSED, *WHOLE])
def test_the_rest_is_refused_and_nothing_is_run(outcomes: dict[str, dict[str, object]], name: str) -> None:
    words = {**REFUSED, **WHOLE}[name][1]
    outcome = outcomes[f"{name}.pt"]
    assert "refused" in outcome, outcome
    assert any(each in str(outcome["refused"]) for each in words.split("|")), outcome
    assert outcome["heard"] == []


def test_the_canary_sings_where_python_reads_the_file(tmp_path: Path) -> None:
    """So that its silence means something; and the process that opens files reports what dies in it."""
    from hostile import CHILD

    reads = CHILD.replace("checkpoint = open_checkpoint(path)", "import pickle; pickle.loads(path.read_bytes())")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hostile.CHILD", reads.replace("except CheckpointError", "except Exception"))
        with pytest.raises(AssertionError, match="was run"):
            open_apart(tmp_path, {"a.pt": program(CANARY + EMPTY_TUPLE + REDUCE)})
    eats = CHILD.replace("checkpoint = open_checkpoint(path)", "checkpoint = bytes(path.stat().st_size << 50)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hostile.CHILD", eats)
        outcome = open_apart(tmp_path / "x", {"a.pt": b"1"})
    assert "MemoryError" in outcome["a.pt"]["died"]


def test_the_limits_of_the_package_bound_its_memory() -> None:
    assert CONTAINERS < stack_machine.CONTAINERS
    assert stack_machine.CONTAINERS * sys.getsizeof(set()) < 2**30
    assert stack_machine.COPIES < 2**24
    assert OPERATIONS < unpickling.OPERATIONS <= 2**24


def test_the_pickles_are_well_formed() -> None:
    """Python's own reader of operations understands what is put together here, but for what is meant to be broken."""
    for value in HARMLESS.values():
        for operation, _, _ in pickletools.genops(program(value)):
            assert operation.name
    made = pickle.loads(program(called("builtins", "complex", BININT1 + b"\x01", BININT1 + b"\x02")))
    assert made == 1 + 2j


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_the_archive_is_one_that_torch_reads(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(archive(entries({"w": tensor()})))
    np.testing.assert_array_equal(torch.load(tmp_path / "a.pt", weights_only=False)["w"].numpy(), [1.0, 2.0])
