"""`tools/make_shards.py` and `tools/check_shards.py`, started as by a user."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.packed import encoded, noise, read_images, write_noise_folder

ROOT = Path(__file__).parents[2]


def start(tool: str, *arguments: object, **options) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(tool: str, *arguments: object) -> tuple[int, str, str]:
    process = start(tool, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_packing_and_checking_from_the_command_line(tmp_path):
    write_noise_folder(tmp_path / "in", 10)
    (tmp_path / "in/bad.jpg").write_bytes(b"")
    options = ["--holdout", 0.2, "--size", 16, "--workers", 2, "--max-rejects", 0.1]
    status, out, err = run("make_shards.py", "folder", "--source", tmp_path / "in", "--out", tmp_path / "out", *options)
    assert status == 0, err
    assert "samples in 1 shard," in out
    assert "1 item was rejected: see" in out
    assert "packing 11/11" in err
    assert "images/s" in err
    status, out, err = run("check_shards.py", tmp_path / "out")
    assert (status, out) == (0, f"{tmp_path / 'out/train'}: sound\n{tmp_path / 'out/val'}: sound\n")
    assert re.fullmatch(r"(checking \S+ 1/1  [\d,.]+ shards/s  0 s left\n){2}", err)


def test_a_damaged_set_fails_the_check(tmp_path):
    status, _, err = run("make_shards.py", "deadleaves", "--count", 4, "--out", tmp_path, "--size", 16, "--workers", 1)
    assert status == 0, err
    with (tmp_path / "train/shard-000000.tar").open("r+b") as tar:
        tar.seek(1000)
        tar.write(b"\xff\x00\xff")
    status, out, err = run("check_shards.py", tmp_path)
    assert status == 1
    assert "shard-000000.tar: does not have the checksum" in out
    assert "\nerror: 1 problem in" in err
    assert run("check_shards.py", tmp_path, "--quick", "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["folder"], 1, "error: folder needs --source PATH."),
        (["folder", "--source", "nowhere"], 1, "error: the source nowhere is not a directory"),
        (["imagenet", "--source", "nowhere.tar"], 1, "error: the source nowhere.tar is not a directory"),
        (["triplets", "--source", "nowhere.csv"], 1, "error: the source nowhere.csv cannot be read: No such file"),
        (["bapps", "--source", "."], 1, "error: . is not BAPPS"),
        (["deadleaves", "--source", "x"], 1, "error: deadleaves takes no --source."),
        (["folder", "--source", ".", "--count", "3"], 1, "error: folder takes no --count."),
        (["folder", "--source", ".", "--download"], 1, "error: folder takes no --download."),
        (["deadleaves", "--workers", "0"], 1, "error: --workers must be at least 1"),
        (["deadleaves", "--size", "0"], 1, "error: size must be at least 1"),
        (["deadleaves", "--count", "0"], 1, "error: dead leaves need a count of 1"),
        (["deadleaves", "--splits", "val"], 1, "error: the source has no split val; it has train."),
        (["deadleaves", "--encoding", "keep", "--size", "64"], 1, "error: --encoding keep leaves images as they are"),
        (["deadleaves", "--encoding", "gif"], 2, "invalid choice: 'gif'"),
        (["paintings"], 2, "invalid choice: 'paintings'"),
    ],
)
def test_errors_are_plain_and_change_nothing(tmp_path, arguments, status, message):
    out = tmp_path / "out"
    found, _, err = run("make_shards.py", *arguments, "--out", out)
    assert found == status
    assert message in err
    assert "Traceback" not in err
    assert not list(out.rglob("*.tar"))


def processes_of(session: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, IndexError):
            continue
        if entry.name.isdigit() and fields and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def wait_until(holds, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_signals_end_all_processes(tmp_path, number, status, whole_group):
    """Ctrl-C reaches the whole process group; a job manager often signals only the first process."""
    process = start(
        "make_shards.py", "deadleaves", "--count", 100_000, "--size", 16, "--samples-per-shard", 40, "--workers", 3,
        "--out", tmp_path, start_new_session=True,
    )  # fmt: skip
    ledger = tmp_path / "train/progress.jsonl"
    wait_until(lambda: ledger.exists() and ledger.read_text().count("\n") > 3, "no shard was finished")
    assert len(processes_of(process.pid)) >= 4
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    wait_until(lambda: not processes_of(process.pid), "orphans are left", seconds=10)
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert ("interrupted" if number == signal.SIGINT else "terminated") in err
        assert not list(tmp_path.rglob("*.partial"))
    tars = {path.name for path in (tmp_path / "train").glob("*.tar")}
    listed = {f"shard-{line:06d}.tar" for line in range(ledger.read_text().count("\n") - 1)}
    assert len(tars - listed) <= 1  # at most the one that was finished but not yet listed


def test_worker_processes_import_nothing_of_the_command_line(tmp_path):
    """Importing it would cost each worker a quarter of a second."""
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / f"in/{number}.png").write_bytes(encoded(noise(8, 8, 3, seed=number), "PNG"))
    code = (
        "import sys; from fastdps.packing.executor import _begin_worker;"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'rich', 'argparse', 'torch', 'torchvision'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "[]\n"
    tool = (ROOT / "tools/make_shards.py").read_text()
    names = {"__name__": "__mp_main__"}
    exec(tool, names)  # what a worker does with the main module
    assert "make_shards" not in names
    status, _, err = run(
        "make_shards.py", "folder", "--source", tmp_path / "in", "--out", tmp_path / "out", "--size", 8, "--workers", 2
    )
    assert status == 0, err
    assert len(read_images(tmp_path / "out/train", 8)) == 40
