"""The SLURM script of the docs, run with substitutes for the programs of SLURM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.run_directory import RunDirectory

SCRIPT = Path(__file__).parent.parent / "docs" / "slurm.sbatch"


@pytest.fixture
def slurm(tmp_path, weights_dir):
    """The environment of a SLURM job on one node with two devices; requeued jobs are recorded in a file."""
    programs = {
        "srun": '[[ "$1" == --* ]] && shift; SLURM_NODEID=0 exec "$@"',
        "scontrol": f'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> {tmp_path}/requeued; fi',
        "accelerate": f'[ "$FAIL" ] && exit 1; exec {sys.executable} -m accelerate.commands.accelerate_cli "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "FASTDPS_WEIGHTS": str(weights_dir),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_NODELIST": "node",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_JOB_ID": str(os.getpid()),
    }


@pytest.mark.slow
def test_the_slurm_script_trains_and_requeues_what_was_stopped(tmp_path, slurm):
    pack(DeadLeaves(20, 32, seed=1), tmp_path / "leaves", PackOptions(size=32), workers=1)
    out = tmp_path / "a run"

    def sbatch(*options: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(SCRIPT), "--shards", str(tmp_path / "leaves" / "train"), "--out", str(out), *options]
        command += ["--contexts", "2", "--epochs", "2", "--batch-size", "10"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=slurm)

    result = sbatch()
    assert result.returncode == 0, result.stderr
    assert RunDirectory(out).metric.exists()
    end = RunDirectory(out).read_log()[-1]
    assert (end["event"], end["processes"]) == ("end", 2)
    assert not (tmp_path / "requeued").exists()

    slurm["FAIL"] = "1"
    assert sbatch().returncode != 0
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    slurm["SLURM_RESTART_COUNT"] = "10"
    assert sbatch().returncode != 0
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
