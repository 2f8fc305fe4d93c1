"""A campaign of faults against real trainings, in one and in two processes: `make faults`.

    python tests/faults/training_faults.py [--rounds N] [--only NAME ...]

Every fault is done N times to a run of its own. The fault must have the promised end, within a minute; then the same
command must go on, and end with the metric of an undisturbed run, to the last bit where the number of processes is
the same. Prints for each what held how often; exits with 1 unless all of it did.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.run_directory import RunDirectory
from helpers.launching import launch_command, ranks_of

ROOT = Path(__file__).parents[2]
#: What a fault may take to end the job.
LIMIT_S = 60.0
EPOCHS, EPOCH_STEPS = 10, 6


class BrokenPromiseError(Exception):
    """What was promised did not hold."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise BrokenPromiseError(what)


@dataclass
class Job:
    """A training in one or several processes; `output` is what it said so far."""

    out: Path
    shards: Path
    processes: int = 1
    prefix: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    def __enter__(self) -> Job:
        launch = launch_command(self.processes) if self.processes > 1 else [sys.executable]
        command = [*self.prefix, *launch, "-m", "fastdps.train", "--shards", str(self.shards), "--out", str(self.out)]
        command += ["--contexts", "12", "--batch-size", "10", "--epochs", str(EPOCHS), "--checkpoint-every", "7"]
        self._said = tempfile.TemporaryFile("w+")
        # In a session of its own, so that all of it can be ended.
        self.process = subprocess.Popen(
            [*command, *self.options],
            stdout=self._said,
            stderr=self._said,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*self.ranks().values(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._said.close()

    @property
    def output(self) -> str:
        """All that was said."""
        self._said.seek(0)
        return self._said.read()

    def ranks(self) -> dict[int, int]:
        """The process ids of the ranks that are alive."""
        if self.processes == 1:
            return {0: self.process.pid} if self.process.poll() is None else {}
        return ranks_of(self.process.pid)

    def step(self) -> int:
        """The last step that the log tells of."""
        with contextlib.suppress(FileNotFoundError):
            lines = RunDirectory(self.out).log.read_text().count('"event": "step"')
            return lines * EPOCH_STEPS
        return 0

    def wait_for_step(self, step: int) -> None:
        """Wait until the log is there; the training may end before."""
        end = time.monotonic() + 120
        while self.process.poll() is None and self.step() < step:
            check(time.monotonic() < end, f"no step {step} within two minutes: {self.output}")
            time.sleep(0.01)

    def wait(self, limit_s: float = 240.0) -> int:
        """Its exit status."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise BrokenPromiseError(f"still running after {limit_s:.0f} s: {self.output}") from None


@dataclass
class Campaign:
    """Where the runs are, and what undisturbed ones end with."""

    root: Path
    dice: random.Random

    def __post_init__(self) -> None:
        pack(DeadLeaves(10 * EPOCH_STEPS, 32, seed=1), self.root / "leaves", PackOptions(size=32, samples_per_shard=20))
        self.shards = self.root / "leaves" / "train"
        for processes in (1, 2):
            self.finish(self.root / f"undisturbed-{processes}", processes)

    def finish(self, out: Path, processes: int, shards: Path | None = None) -> str:
        """Run the command to its end; returns what it said."""
        with Job(out, shards or self.shards, processes) as job:
            status, said = job.wait(), job.output
        check(status == 0, f"the run does not finish: {said}")
        return said

    def goes_on(self, out: Path, processes: int, shards: Path | None = None) -> None:
        """Run the same command again; it has to go on, and end with the same bits."""
        had = bool(list(out.glob("checkpoints/step-*")))
        said = self.finish(out, processes, shards)
        check(not had or "resuming after step" in said, f"it began anew: {said}")
        self.is_as_undisturbed(out, processes)

    def is_as_undisturbed(self, out: Path, processes: int) -> None:
        """See that a finished run has the bits of an undisturbed one."""
        found, expected = (
            load_file(RunDirectory(path).metric)["weights"] for path in (out, self.root / f"undisturbed-{processes}")
        )
        check(torch.equal(found, expected), "the metric is another one")

    def moment(self, job: Job, first: int = 0) -> None:
        """Wait until a random moment of a training."""
        job.wait_for_step(self.dice.randrange(first, EPOCHS - 3) * EPOCH_STEPS)
        time.sleep(self.dice.uniform(0, 0.3))

    # The faults

    def kill_one_process(self, out: Path) -> None:
        """kill -9 of a training in one process."""
        with Job(out, self.shards) as job:
            self.moment(job)
            job.process.kill()
            job.wait()
        self.goes_on(out, 1)

    def kill_one_of_two(self, out: Path) -> None:
        """kill -9 of one of two processes: the job ends and names it."""
        with Job(out, self.shards, 2) as job:
            self.moment(job, first=1)
            rank = self.dice.choice([0, 1])
            os.kill(job.ranks()[rank], signal.SIGKILL)
            check(job.wait(LIMIT_S) != 0, "the job reports success")
            check(f"rank      : {rank}" in job.output or f"rank {rank} of 2" in job.output, f"no name: {job.output}")
        self.goes_on(out, 2)

    def kill_all_of_two(self, out: Path) -> None:
        """kill -9 of the launcher and both processes, as a node that goes."""
        with Job(out, self.shards, 2) as job:
            self.moment(job)
        self.goes_on(out, 2)

    def _signal(self, out: Path, processes: int, number: signal.Signals) -> None:
        with Job(out, self.shards, processes) as job:
            self.moment(job, first=1)
            job.process.send_signal(number)
            status = job.wait(LIMIT_S)
            check(f"stopped by {number.name} after step" in job.output, f"it was not heard: {job.output}")
            check(processes > 1 or status == 128 + number, f"exit status {status}")
            check(not RunDirectory(out).metric.exists(), "there is a metric already")
        self.goes_on(out, processes)

    def terminate_one_process(self, out: Path) -> None:
        """SIGTERM, SIGINT or SIGUSR1: a checkpoint, and an end."""
        self._signal(out, 1, self.dice.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))

    def terminate_two(self, out: Path) -> None:
        """SIGTERM or SIGINT to the launcher of two processes."""
        self._signal(out, 2, self.dice.choice([signal.SIGTERM, signal.SIGINT]))

    def damaged_checkpoint(self, out: Path) -> None:
        """The newest checkpoint is cut or has a wrong bit: that is said, and the one before it used."""
        with Job(out, self.shards) as job:
            self.moment(job, first=4)
            job.process.kill()
            job.wait()
        newest = max(out.glob("checkpoints/step-*.safetensors"))
        content = bytearray(newest.read_bytes())
        if self.dice.random() < 0.5:
            newest.write_bytes(content[: self.dice.randrange(len(content))])
        else:
            content[self.dice.randrange(len(content))] ^= 1 << self.dice.randrange(8)
            newest.write_bytes(content)
        with Job(out, self.shards) as job:
            check(job.wait() == 0, job.output)
            check(newest.name in job.output, f"the damage is not said: {job.output}")
        self.is_as_undisturbed(out, 1)

    def disk_full(self, out: Path) -> None:
        """No room for a checkpoint: an error that names it; the training goes on when there is."""
        with Job(out, self.shards) as job:
            self.moment(job, first=3)
            job.process.kill()
            job.wait()
        before = sorted(out.glob("checkpoints/step-*.safetensors"))
        with Job(out, self.shards, prefix=["bash", "-c", 'ulimit -f 64; exec "$@"', "bash"]) as job:
            check(job.wait(LIMIT_S) == 1, f"no error: {job.output}")
            check("safetensors cannot be written: File too large" in job.output, f"no clear error: {job.output}")
        check(sorted(out.glob("checkpoints/step-*.safetensors")) == before, "checkpoints were lost")
        self.goes_on(out, 1)

    def cut_shard(self, out: Path) -> None:
        """A shard is cut while training: an error that names it; with the shard restored the training goes on."""
        shards = Path(shutil.copytree(self.shards, out.with_name(out.name + "-shards")))
        shard = self.dice.choice(sorted(shards.glob("*.tar")))
        content, processes = shard.read_bytes(), self.dice.choice([1, 2])
        with Job(out, shards, processes) as job:
            self.moment(job, first=1)
            os.truncate(shard, len(content) // 3)
            check(job.wait(LIMIT_S) != 0, "the job reports success")
            check(shard.name in job.output, f"the shard is not named: {job.output}")
        shard.write_bytes(content)
        self.goes_on(out, processes, shards)

    def stopped_rank(self, out: Path) -> None:
        """SIGSTOP of one of two processes: the job ends and names it."""
        with Job(out, self.shards, 2) as job:
            self.moment(job, first=1)
            rank = self.dice.choice([0, 1])
            os.kill(job.ranks()[rank], signal.SIGSTOP)
            check(job.wait(LIMIT_S) != 0, "the job reports success")
            check(f"rank {rank} of 2 (host " in job.output, f"it is not named: {job.output}")
        self.goes_on(out, 2)

    def other_number_of_processes(self, out: Path) -> None:
        """Interrupted in one number of processes, it goes on in another, and says so."""
        first, second = self.dice.choice([(1, 2), (2, 1)])
        with Job(out, self.shards, first) as job:
            self.moment(job, first=2)
            for pid in (job.process.pid, *job.ranks().values()):
                os.kill(pid, signal.SIGKILL)
        said = self.finish(out, second)
        check(f"the run had {first} processes before and has {second} now" in said, said)
        found, expected = (
            load_file(RunDirectory(path).metric)["weights"] for path in (out, self.root / "undisturbed-1")
        )
        distance = (found - expected).norm() / expected.norm()
        check(distance < 0.2, f"the metric differs by {distance:.2f} of its size")


FAULTS: dict[str, Callable[[Campaign, Path], None]] = {
    name: getattr(Campaign, name)
    for name in (
        "kill_one_process",
        "kill_one_of_two",
        "kill_all_of_two",
        "terminate_one_process",
        "terminate_two",
        "damaged_checkpoint",
        "disk_full",
        "cut_shard",
        "stopped_rank",
        "other_number_of_processes",
    )
}


def run_campaign(root: Path, names: list[str], rounds: int, seed: int) -> Iterator[tuple[str, int]]:
    """Do every fault `rounds` times; yields how often all that was promised held."""
    campaign = Campaign(root, random.Random(seed))
    for name in names:
        held = 0
        for number in range(rounds):
            try:
                FAULTS[name](campaign, root / f"{name}-{number}")
                held += 1
            except BrokenPromiseError as error:
                print(f"{name}, round {number}: {error}", file=sys.stderr)
        yield name, held


def main() -> int:
    """Run the campaign; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    all_held = True
    with tempfile.TemporaryDirectory() as root:
        for name, held in run_campaign(Path(root), arguments.only, arguments.rounds, arguments.seed):
            summary = (FAULTS[name].__doc__ or "").strip()
            print(f"{held} of {arguments.rounds}  {name}: {summary}", flush=True)
            all_held &= held == arguments.rounds
    return 0 if all_held else 1


if __name__ == "__main__":
    sys.exit(main())
