"""`python -m bench elastic`: one training on 1, 2 and 4 processes, and on a number that changes, as curves in a PNG.

    generated images --open_shards(divide="step")--> distorted by sample id --> small network: which distortion?
    gradients summed over all processes --gloo--> the same step everywhere --> loss of each step

It is a loop in plain PyTorch, with what the loader promises and nothing else of training: see docs/loading.md. It
computes in float64, so that the training does not amplify the rounding of sums to a visible difference.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

from fastdps.contexts.distortions import NAMES, apply_plan, draw_plan, to_float
from fastdps.errors import ConfigError
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves

IMAGES, SIZE, BATCH, EPOCHS = 300, 32, 40, 6
RATE, MOMENTUM = 0.02, 0.9


class Phase(NamedTuple):
    """A part of a training.

    Attributes:
        processes: The number of processes that compute it.
        steps: The number of its steps.
    """

    processes: int
    steps: int


STEPS = EPOCHS * -(-IMAGES // BATCH)
#: The curves: the last one changes the number of processes twice, in mid-epoch.
CURVES: dict[str, list[Phase]] = {
    "1 process": [Phase(1, STEPS)],
    "2 processes": [Phase(2, STEPS)],
    "4 processes": [Phase(4, STEPS)],
    "4, then 2, then 1": [Phase(4, 13), Phase(2, 18), Phase(1, STEPS - 31)],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m bench elastic`."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture to write")


def run(arguments: argparse.Namespace) -> None:
    """Train, draw and say how far the curves differ. Raises `ConfigError` for another file type."""
    if arguments.out.suffix.lower() != ".png":
        raise ConfigError(f"--out is {arguments.out}; the picture is a PNG, so name it FILE.png.")
    with tempfile.TemporaryDirectory() as directory:
        shards = pack_images(Path(directory) / "set")
        curves = {name: train(shards, phases, Path(directory)) for name, phases in CURVES.items()}
    draw(curves, arguments.out)
    print(f"{arguments.out}: losses of {STEPS} steps differ by at most {largest_difference(list(curves.values())):.1e}")


def pack_images(out: Path) -> Path:
    """Pack generated images in several shards, and return the set."""
    pack(DeadLeaves(IMAGES, SIZE, seed=1), out, PackOptions(size=SIZE, samples_per_shard=70), workers=1)
    return next(path.parent for path in out.rglob("manifest.json"))


def train(shards: Path, phases: Sequence[Phase], directory: Path) -> list[float]:
    """Return the loss of each step of a training whose phases are computed by different numbers of processes."""
    state, losses = directory / "state.pt", directory / "losses.json"
    state.unlink(missing_ok=True)
    found: list[float] = []
    for number, phase in enumerate(phases):
        meeting = directory / f"meeting-{number}-{phase.processes}"
        meeting.unlink(missing_ok=True)
        arguments = (phase, shards, state, losses, meeting)
        spawn(_take_part, arguments, nprocs=phase.processes)
        found += json.loads(losses.read_text(encoding="utf-8"))
    return found


def _take_part(rank: int, phase: Phase, shards: Path, state: Path, losses: Path, meeting: Path) -> None:
    """Compute the part of one process in a phase; the first one writes the state and the losses."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=phase.processes)
    options = LoadOptions(loader="portable", divide="step")
    loader = open_shards(
        shards, batch_size=BATCH // phase.processes, rank=rank, world_size=phase.processes, options=options
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(32 * 6 * 6, len(NAMES))).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    if state.exists():
        saved: dict[str, Any] = torch.load(state)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    found = []
    for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), phase.steps):
        plan = draw_plan(batch.ids, seed=0, epoch=0)
        kinds = batch.ids % len(NAMES)
        views = apply_plan(to_float(batch.images), plan)[torch.arange(len(kinds)), kinds].double()
        loss = F.cross_entropy(model(views), kinds, reduction="sum") / batch.global_size
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        optimizer.step()
        dist.all_reduce(total := loss.detach())
        found.append(total.item())
    if rank == 0:
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
        torch.save(parts, state)
        losses.write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def largest_difference(curves: Sequence[Sequence[float]]) -> float:
    """Return the largest difference of two losses at one step."""
    return max(max(step) - min(step) for step in zip(*curves, strict=True))


def draw(curves: dict[str, list[float]], out: Path) -> None:
    """Draw the curves over each other, the widest first. Raises `ConfigError` if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"pictures need matplotlib ({error}). Install it with `pip install 'fastdps[bench]'`."
        ) from error

    figure = Figure(figsize=(7.5, 3.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    styles = zip(("#BBBBBB", "#56B4E9", "#E69F00", "#000000"), (9, 5.5, 2.8, 1), ("-", "-", "-", ":"), strict=True)
    for (name, losses), (colour, width, style) in zip(curves.items(), styles, strict=True):
        axes.plot(range(1, len(losses) + 1), losses, style, color=colour, linewidth=width, label=name)
    for step in itertools.accumulate(phase.steps for phase in CURVES["4, then 2, then 1"][:-1]):
        axes.axvline(step + 0.5, color="#888888", linewidth=0.6, linestyle="--")
    axes.set_xlabel("step; dashed lines: where the number of processes of the dotted curve changes")
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Losses differ by at most {largest_difference(list(curves.values())):.0e}", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(out, format="png")
