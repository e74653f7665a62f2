"""Every example that a docstring prints is run."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import lightning_traj

MODULES = [
    "lightning_traj",
    *(module.name for module in pkgutil.walk_packages(lightning_traj.__path__, "lightning_traj.")),
]


def examples(name):
    tests = doctest.DocTestFinder(exclude_empty=True).find(import_module(name))
    return [test for test in tests if test.examples]


def failures(test):
    said = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    return "".join(said) if failed else ""


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for test in examples(name):
        said = failures(test)
        assert not said, said


def test_examples_are_found_where_they_are():
    having = {name.rpartition(".")[2] for name in MODULES if examples(name)}
    assert {"countsketch", "running_gram", "trajectory"} <= having


def test_an_example_that_is_wrong_is_noticed():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert "Expected:\n    3\nGot:\n    2" in failures(wrong)
