"""The peak of memory that a process reports is its own, and grows with what it takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.peak import CASES, peak_MiB
from bench.stages.memory import IMPORTS, PACK, PROMISED

MIB = 2**20


def peak_of_child(code: str) -> float:
    code = f"{code}\nfrom bench.peak import peak_MiB\nprint(peak_MiB())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(result.stdout)


def test_the_peak_is_what_was_taken_though_it_was_given_back():
    small = peak_of_child("")
    large = peak_of_child(f"block = bytearray(b'x') * (300 * {MIB}); del block")
    assert large - small == pytest.approx(300, rel=0.1)


def test_the_peak_of_a_large_parent_is_not_its_childs():
    block = bytearray(b"x") * (300 * MIB)
    assert peak_MiB() > 300
    assert peak_of_child("") < 150
    del block


def test_the_cases_that_the_stage_names_are_there():
    assert {IMPORTS, PACK, PROMISED} <= set(CASES)
    assert (IMPORTS, PACK, PROMISED) == ("imports alone", "pack, one process", "train, 720 contexts, batches of 128")
