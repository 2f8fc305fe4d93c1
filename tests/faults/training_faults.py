"""Fault injection for training, in one and in two processes: `make faults`.

    python tests/faults/training_faults.py [--rounds N] [--only NAME ...]

Every fault is injected N times, each time into a new run. It must have the documented outcome within a minute. Then the
same command must resume, and give the metric of an undisturbed run, bit for bit if the number of processes is the same.
The program prints how often each fault passed, and exits with status 1 unless all passed.
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
#: The time within which a fault must end the job.
LIMIT_S = 60.0
EPOCHS, EPOCH_STEPS = 10, 6
#: Draws that are kept where a fault comes while they are; elsewhere each epoch reads the shards again.
DRAWS_KEPT = 3


class BrokenPromiseError(Exception):
    """An outcome differs from the documented one."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise BrokenPromiseError(what)


@dataclass
class Job:
    """A training run in one or several processes, as a context manager that kills them on exit."""

    out: Path
    shards: Path
    processes: int = 1
    prefix: list[str] = field(default_factory=list)
    draws_kept: int = 0

    def __enter__(self) -> Job:
        launch = launch_command(self.processes) if self.processes > 1 else [sys.executable]
        command = [*self.prefix, *launch, "-m", "fastdps.train", "--shards", str(self.shards), "--out", str(self.out)]
        command += ["--contexts", "12", "--batch-size", "10", "--epochs", str(EPOCHS), "--checkpoint-every", "7"]
        command += ["--draws-kept", str(self.draws_kept)]
        self._log_file = tempfile.TemporaryFile("w+")
        # In a new session, so that all processes can be ended.
        self.process = subprocess.Popen(
            command,
            stdout=self._log_file,
            stderr=self._log_file,
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
        self._log_file.close()

    @property
    def output(self) -> str:
        """The output so far, stdout and stderr."""
        self._log_file.seek(0)
        return self._log_file.read()

    def ranks(self) -> dict[int, int]:
        """Return the process ids of the living ranks by rank."""
        if self.processes == 1:
            return {0: self.process.pid} if self.process.poll() is None else {}
        return ranks_of(self.process.pid)

    def step(self) -> int:
        """Return the last step in the log."""
        with contextlib.suppress(FileNotFoundError):
            lines = RunDirectory(self.out).log.read_text().count('"event": "step"')
            return lines * EPOCH_STEPS
        return 0

    def wait_for_step(self, step: int) -> None:
        """Wait until the log has a step, or the training ends."""
        end = time.monotonic() + 120
        while self.process.poll() is None and self.step() < step:
            check(time.monotonic() < end, f"no step {step} within two minutes: {self.output}")
            time.sleep(0.01)

    def wait(self, limit_s: float = 240.0) -> int:
        """Wait for the end and return the exit status."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise BrokenPromiseError(f"still running after {limit_s:.0f} s: {self.output}") from None


@dataclass
class Campaign:
    """The directory of the runs, with the undisturbed runs to compare with."""

    root: Path
    dice: random.Random

    def __post_init__(self) -> None:
        pack(DeadLeaves(10 * EPOCH_STEPS, 32, seed=1), self.root / "leaves", PackOptions(size=32, samples_per_shard=20))
        self.shards = self.root / "leaves" / "train"
        for processes in (1, 2):
            self.finish(self.root / f"undisturbed-{processes}", processes)
        with Job(self.root / "undisturbed-kept", self.shards, draws_kept=DRAWS_KEPT) as job:
            check(job.wait() == 0, f"the run does not finish: {job.output}")

    def finish(self, out: Path, processes: int, shards: Path | None = None) -> str:
        """Run the command to its end and return its output."""
        with Job(out, shards or self.shards, processes) as job:
            status, output = job.wait(), job.output
        check(status == 0, f"the run does not finish: {output}")
        return output

    def check_resume(self, out: Path, processes: int, shards: Path | None = None) -> None:
        """Run the same command again. It must resume, and end with the same bits."""
        has_checkpoint = bool(list(out.glob("checkpoints/step-*")))
        output = self.finish(out, processes, shards)
        check(not has_checkpoint or "resuming after step" in output, f"it started from scratch: {output}")
        self.check_identical(out, processes)

    def check_identical(self, out: Path, undisturbed: int | str) -> None:
        """Check that the metric of a finished run equals that of an undisturbed one, bit for bit."""
        found, expected = (
            load_file(RunDirectory(path).metric)["weights"] for path in (out, self.root / f"undisturbed-{undisturbed}")
        )
        check(torch.equal(found, expected), "the metric differs")

    def moment(self, job: Job, first: int = 0) -> None:
        """Wait until a random moment of the training."""
        job.wait_for_step(self.dice.randrange(first, EPOCHS - 3) * EPOCH_STEPS)
        time.sleep(self.dice.uniform(0, 0.3))

    # Faults

    def kill_one_process(self, out: Path) -> None:
        """kill -9 of a training in one process."""
        with Job(out, self.shards) as job:
            self.moment(job)
            job.process.kill()
            job.wait()
        self.check_resume(out, 1)

    def kill_while_keeping(self, out: Path) -> None:
        """kill -9 of a training in one process while it keeps draws, or as it begins to pass over them."""
        with Job(out, self.shards, draws_kept=DRAWS_KEPT) as job:
            while job.process.poll() is None and not RunDirectory(out).config.exists():
                time.sleep(0.01)
            time.sleep(self.dice.uniform(0, 0.3))
            job.process.kill()
            job.wait()
        with Job(out, self.shards, draws_kept=DRAWS_KEPT) as job:
            check(job.wait() == 0, job.output)
        self.check_identical(out, "kept")

    def kill_one_of_two(self, out: Path) -> None:
        """kill -9 of one of two processes: the job ends and names the process."""
        with Job(out, self.shards, 2) as job:
            self.moment(job, first=1)
            rank = self.dice.choice([0, 1])
            os.kill(job.ranks()[rank], signal.SIGKILL)
            check(job.wait(LIMIT_S) != 0, "the job reports success")
            check(
                f"rank      : {rank}" in job.output or f"rank {rank} of 2" in job.output,
                f"the process is not named: {job.output}",
            )
        self.check_resume(out, 2)

    def kill_all_of_two(self, out: Path) -> None:
        """kill -9 of the launcher and both processes, as when a node fails."""
        with Job(out, self.shards, 2) as job:
            self.moment(job)
        self.check_resume(out, 2)

    def _signal(self, out: Path, processes: int, number: signal.Signals) -> None:
        with Job(out, self.shards, processes) as job:
            self.moment(job, first=1)
            job.process.send_signal(number)
            status = job.wait(LIMIT_S)
            check(f"stopped by {number.name} after step" in job.output, f"the signal was not reported: {job.output}")
            check(processes > 1 or status == 128 + number, f"exit status {status}")
            check(not RunDirectory(out).metric.exists(), "the metric was written early")
        self.check_resume(out, processes)

    def terminate_one_process(self, out: Path) -> None:
        """SIGTERM, SIGINT or SIGUSR1: the run writes a checkpoint and ends."""
        self._signal(out, 1, self.dice.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))

    def terminate_two(self, out: Path) -> None:
        """SIGTERM or SIGINT to the launcher of two processes."""
        self._signal(out, 2, self.dice.choice([signal.SIGTERM, signal.SIGINT]))

    def damaged_checkpoint(self, out: Path) -> None:
        """The newest checkpoint is truncated or has a flipped bit: that is reported, and the previous one is used."""
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
            check(newest.name in job.output, f"the damage is not reported: {job.output}")
        self.check_identical(out, 1)

    def disk_full(self, out: Path) -> None:
        """No space for a checkpoint: an error names it, and the training resumes once there is space."""
        with Job(out, self.shards) as job:
            self.moment(job, first=3)
            job.process.kill()
            job.wait()
        before = sorted(out.glob("checkpoints/step-*.safetensors"))
        with Job(out, self.shards, prefix=["bash", "-c", 'ulimit -f 64; exec "$@"', "bash"]) as job:
            check(job.wait(LIMIT_S) == 1, f"no error: {job.output}")
            check("safetensors cannot be written: File too large" in job.output, f"no clear error: {job.output}")
        check(sorted(out.glob("checkpoints/step-*.safetensors")) == before, "checkpoints were lost")
        self.check_resume(out, 1)

    def cut_shard(self, out: Path) -> None:
        """A shard is truncated during training: an error names it, and the training resumes once it is restored."""
        shards = Path(shutil.copytree(self.shards, out.with_name(out.name + "-shards")))
        shard = self.dice.choice(sorted(shards.glob("*.tar")))
        content, processes = shard.read_bytes(), self.dice.choice([1, 2])
        with Job(out, shards, processes) as job:
            self.moment(job, first=1)
            os.truncate(shard, len(content) // 3)
            check(job.wait(LIMIT_S) != 0, "the job reports success")
            check(shard.name in job.output, f"the shard is not named: {job.output}")
        shard.write_bytes(content)
        self.check_resume(out, processes, shards)

    def stopped_rank(self, out: Path) -> None:
        """SIGSTOP of one of two processes: the job ends and names the process."""
        with Job(out, self.shards, 2) as job:
            self.moment(job, first=1)
            rank = self.dice.choice([0, 1])
            os.kill(job.ranks()[rank], signal.SIGSTOP)
            check(job.wait(LIMIT_S) != 0, "the job reports success")
            check(f"rank {rank} of 2 (host " in job.output, f"the process is not named: {job.output}")
        self.check_resume(out, 2)

    def other_number_of_processes(self, out: Path) -> None:
        """A run resumes with another number of processes, and reports the change."""
        first, second = self.dice.choice([(1, 2), (2, 1)])
        with Job(out, self.shards, first) as job:
            self.moment(job, first=2)
            for pid in (job.process.pid, *job.ranks().values()):
                os.kill(pid, signal.SIGKILL)
        output = self.finish(out, second)
        check(f"the run had {first} processes before and has {second} now" in output, output)
        found, expected = (
            load_file(RunDirectory(path).metric)["weights"] for path in (out, self.root / "undisturbed-1")
        )
        distance = (found - expected).norm() / expected.norm()
        check(distance < 0.2, f"the relative difference of the metric is {distance:.2f}")


FAULTS: dict[str, Callable[[Campaign, Path], None]] = {
    name: getattr(Campaign, name)
    for name in (
        "kill_one_process",
        "kill_while_keeping",
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
    """Inject every fault `rounds` times. Yield its name and the number of rounds that passed."""
    campaign = Campaign(root, random.Random(seed))
    for name in names:
        passed = 0
        for number in range(rounds):
            try:
                FAULTS[name](campaign, root / f"{name}-{number}")
                passed += 1
            except BrokenPromiseError as error:
                print(f"{name}, round {number}: {error}", file=sys.stderr)
        yield name, passed


def main() -> int:
    """Run the campaign and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    all_passed = True
    with tempfile.TemporaryDirectory() as root:
        for name, passed in run_campaign(Path(root), arguments.only, arguments.rounds, arguments.seed):
            summary = (FAULTS[name].__doc__ or "").strip()
            print(f"{passed} of {arguments.rounds}  {name}: {summary}", flush=True)
            all_passed &= passed == arguments.rounds
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
