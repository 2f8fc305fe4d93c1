"""The garbage collector, where it is paused: it is on again afterwards, and garbage is still found."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from fastdps.runtime.garbage_collection import collection_paused, importing_modules

ROOT = Path(__file__).parents[2]
MAIN = """
import gc, sys
from fastdps.commands.cli import main
assert "torch" not in sys.modules
main(["status", "."])
print(gc.isenabled(), gc.get_freeze_count() > 0)
"""


class Node:
    """An object that refers to itself."""

    def __init__(self):
        self.own = self


@pytest.fixture(autouse=True)
def _enabled():
    yield
    gc.enable()


def test_it_is_paused_inside_and_as_before_afterwards():
    with collection_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    with collection_paused():
        pass
    assert not gc.isenabled()


def test_an_error_ends_the_pause(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ImportError), importing_modules():
        raise ImportError("no such module")
    assert gc.isenabled()


def test_what_is_imported_is_never_visited_and_what_comes_later_is(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with importing_modules():
        frozen = weakref.ref(Node())
    later = weakref.ref(Node())
    gc.collect()
    assert frozen() is not None
    assert later() is None


def test_nothing_is_frozen_in_a_process_with_objects_of_its_own():
    assert "torch" in sys.modules
    with importing_modules():
        assert gc.isenabled()
        garbage = weakref.ref(Node())
    gc.collect()
    assert garbage() is None


def test_the_commands_pause_it_for_their_imports(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", MAIN], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines()[-1] == "True True", result.stderr
