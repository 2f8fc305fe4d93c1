"""The reported peak memory of a process is its own, and grows with its allocations."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.harness.peak import CASES, main
from bench.stages.memory import IMPORTS, PACK, PROMISED
from fastdps.runtime.machine import peak_memory_MiB

MIB = 2**20


def peak_of_child(code: str) -> float:
    code = f"{code}\nfrom fastdps.runtime.machine import peak_memory_MiB\nprint(peak_memory_MiB())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(result.stdout)


def test_the_peak_is_what_was_taken_though_it_was_given_back():
    small = peak_of_child("")
    large = peak_of_child(f"block = bytearray(b'x') * (300 * {MIB}); del block")
    assert large - small == pytest.approx(300, rel=0.1)


def test_the_peak_of_a_large_parent_is_not_its_childs():
    block = bytearray(b"x") * (300 * MIB)
    assert peak_memory_MiB() > 300
    assert peak_of_child("") < 150
    del block


@pytest.mark.parametrize("case", CASES)
def test_every_case_does_its_work(case, imagenet_sample, weights_dir, monkeypatch, tmp_path, capsys):
    """Run all cases in one process with small inputs, where the peaks are meaningless."""
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    monkeypatch.setenv("FASTDPS_TEST_DATA", str(imagenet_sample.parent))
    photographs = min(path for path in imagenet_sample.iterdir() if path.is_dir())
    options = ["--shards", str(tmp_path), "--photographs", str(photographs), "--images", "12"]
    monkeypatch.setattr(sys, "argv", ["peak", case, *options])
    main()
    found = json.loads(capsys.readouterr().out)
    assert found["peak_MiB"] > 10


def test_the_cases_that_the_stage_names_exist():
    assert {IMPORTS, PACK, PROMISED} <= set(CASES)
    assert (IMPORTS, PACK, PROMISED) == ("imports alone", "pack, one process", "train, 720 contexts, batches of 128")
