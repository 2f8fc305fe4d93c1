"""A test program: pack on a Ray cluster of two nodes, while a worker is killed, and while the run is terminated.

    python ray_cluster.py SOURCE OUT

It packs into OUT/killed and OUT/ended, and prints the outcome as JSON. It is a separate program because Ray leaves
threads behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180.0


def start(source: str, out: Path, address: str) -> subprocess.Popen[str]:
    """Start the command as a user does, for ten shards of 70 images."""
    command = [sys.executable, str(ROOT / "tools/make_shards.py"), "imagenet", "--source", source, "--out", str(out)]
    command += ["--samples-per-shard", "70", "--executor", "ray", "--ray-address", address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def writer(out: Path) -> tuple[int, str] | None:
    """Return the id of a process that is writing a shard below `out`, and the name of the file."""
    for links in Path("/proc").glob("[0-9]*/fd"):
        try:
            for link in links.iterdir():
                file = os.readlink(link)
                if file.startswith(str(out)) and ".tar." in file:
                    return int(links.parent.name), Path(file).name
        except OSError:  # the process has ended
            continue
    return None


def wait_for_writer(out: Path, process: subprocess.Popen[str], shards: int) -> tuple[int, str]:
    """Wait until `shards` shards exist and another one is being written."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        if len(list(out.glob("train/shard-*.tar"))) >= shards and (found := writer(out)):
            return found
    raise SystemExit(f"no process was writing a shard: {process.communicate()}")


def main(source: str, out: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    try:
        process = start(source, out / "killed", cluster.address)
        worker, shard = wait_for_writer(out / "killed", process, shards=2)
        title = Path(f"/proc/{worker}/cmdline").read_text().rstrip("\0")
        os.kill(worker, signal.SIGKILL)
        _, killed_err = process.communicate(timeout=PATIENCE_S)
        happened = {"title": title, "shard": shard, "killed": process.returncode, "killed_err": killed_err}

        process = start(source, out / "ended", cluster.address)
        wait_for_writer(out / "ended", process, shards=1)
        process.send_signal(signal.SIGTERM)
        _, ended_err = process.communicate(timeout=PATIENCE_S)
        happened |= {
            "ended": process.returncode,
            "ended_err": ended_err,
            "partial": [path.name for path in out.rglob("*.partial")],
            "left": 10 - len(list(out.glob("ended/train/shard-*.tar"))),
        }
        process = start(source, out / "ended", cluster.address)
        _, again_err = process.communicate(timeout=PATIENCE_S)
        happened |= {"again": process.returncode, "again_err": again_err}
    finally:
        cluster.shutdown()
    print(json.dumps(happened))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
