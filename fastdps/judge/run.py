"""Open the page: images, triplets, answers, the metric, and the server together."""

from __future__ import annotations

import os
import socket
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fastdps.errors import ConfigError, FastDPSError, SampleError
from fastdps.judge.answers import STATE_DIRECTORY
from fastdps.judge.guard import Access, is_loopback
from fastdps.judge.images import (
    LEAST_IMAGES,
    MOST_IMAGES,
    ImageSource,
    PictureSet,
    PlainPictures,
    ShardImages,
    open_images,
)
from fastdps.judge.learner import Learner
from fastdps.judge.people import Judging
from fastdps.judge.server import PageServer, guarded, listen, serve
from fastdps.judge.triplets import (
    Deck,
    GivenTriplets,
    ImageTriplets,
    Triplet,
    VersionTriplets,
    judged_triplets,
    read_triplets,
)
from fastdps.judge.versions import DistortedPictures
from fastdps.runtime.console import counter, print_notice, print_result
from fastdps.runtime.files import write_errors
from fastdps.runtime.locks import locked
from fastdps.shards.format import MANIFEST, read_manifest
from fastdps.shards.judgements import read_judgements
from fastdps.training.bases import open_base
from fastdps.training.next_triplet import DEFAULT_STRATEGY, Strategy

#: Side in pixels of images for a base that does not say on which it was trained.
SIZE = 128
#: Share of images that may be unreadable.
MOST_UNREADABLE = 0.01
#: Unreadable images that a message names.
SHOWN = 3


@dataclass(frozen=True)
class JudgeOptions:
    """How judgements are given.

    Attributes:
        triplets: A file of the triplets to ask, None to choose them.
        versions: "images" to compare different images, "distortions" to compare distorted versions of an image. None
            is "images", except for a judgement set, whose own triplets are asked.
        person: Who judges, unless the page is given another name.
        host: The address to listen on. Beyond loopback, the page needs a token.
        port: The port, None for the first free one from 8765 on.
        open_browser: Open the page in a browser.
        most_images: Images used, drawn at random from a larger set.
        size: Side in pixels of the images as the metric sees them; None for that of the base.
        strategy: How the next triplet is chosen.
        seed: Seed of all choices.

    Raises:
        ConfigError: A setting is out of range, or two exclude each other.
    """

    triplets: Path | None = None
    versions: Literal["images", "distortions"] | None = None
    person: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    open_browser: bool = False
    most_images: int = MOST_IMAGES
    size: int | None = None
    strategy: Strategy = DEFAULT_STRATEGY
    seed: int = 0

    def __post_init__(self) -> None:
        if self.triplets is not None and self.versions is not None:
            raise ConfigError("--triplets says which images are compared; omit --versions.")
        if self.most_images < LEAST_IMAGES:
            raise ConfigError(f"--most-images must be at least {LEAST_IMAGES}, not {self.most_images}.")
        if self.port is not None and not 0 <= self.port < 1 << 16:
            raise ConfigError(f"--port must be below 65536, not {self.port}.")


def judge(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    base: str | os.PathLike[str] = "alexnet",
    options: JudgeOptions | None = None,
) -> None:
    """Open a page on which people say which of two images is closer to a third, until a signal stops it.

    The answers of each person are appended to `OUT/PERSON.jsonl`, which is a source of judgements. A metric learns from
    them meanwhile; it is saved in `OUT/run`.

    Args:
        images: A folder of images, or the directory of a shard set of images or judgements.
        out: The directory of the answers. If it has answers, judging continues.
        base: What the metric is adapted from: a run, a metric file, the name of a backbone, or "lpips".
        options: How judgements are given.

    Raises:
        ConfigError: An option is invalid, or another server uses the directory.
        FastDPSError: The images or the answers cannot be read, or the directory cannot be written.

    Example:
        >>> from fastdps.judge.run import judge
        >>> judge("photos", "judged", base="runs/photos")  # doctest: +SKIP
    """
    options, directory = options or JudgeOptions(), Path(out)
    with _prepared(directory, Path(images)) as out_directory:
        metric = open_base(base)
        size = options.size or metric.size or SIZE
        pictures, deck = open_pictures(Path(images), out_directory, replace(options, size=size))
        learner = Learner(
            metric, pictures, deck, out_directory / "run", size=size, strategy=options.strategy, seed=options.seed
        )
        judging = Judging(out_directory, pictures, deck, learner, options.person)
        access = Access(None if is_loopback(options.host) else out_directory / STATE_DIRECTORY / "secret")
        bound = listen(options.host, options.port)
        port = int(bound.getsockname()[1])
        app = guarded(PageServer(judging, access), access, options.host, port)
        before = sum(map(len, judging.people.values()))
        try:
            serve(app, bound, lambda: _announce(options, port, access, before))
        except KeyboardInterrupt:
            pass
        finally:
            bound.close()
            learner.close()
        given = sum(map(len, judging.people.values()))
        print_result(f"\n{given:,} answers in {directory}. The same command continues.")


def open_pictures(images: Path, out: Path, options: JudgeOptions) -> tuple[PictureSet, Deck]:
    """Return what the page shows and asks. Raises what `judge` raises."""
    source = open_images(images)
    triplets: list[Triplet] | None = None
    if options.triplets is not None:
        triplets = read_triplets(options.triplets, source, images)
    elif options.versions is None and isinstance(source, ShardImages):
        manifest = read_manifest(images)
        if manifest.kind == "judgements":
            triplets = judged_triplets(read_judgements(images, manifest), source.ids)
    if triplets is not None:
        used = sorted({number for triplet in triplets for number in triplet})
        kept, bad = _readable(source.select(used))
        places = {used[number]: place for place, number in enumerate(kept)}
        fitting = [triplet for triplet in triplets if all(number in places for number in triplet)]
        asked = [Triplet(*(places[number] for number in triplet)) for triplet in fitting]
        if not asked:
            raise FastDPSError(f"{images}: no triplet has all of its images. {bad}")
        chosen = source.select([used[number] for number in kept])
        return PlainPictures(chosen, out), GivenTriplets(asked, options.seed)
    if len(source) > options.most_images:
        print_notice(f"{options.most_images:,} of {len(source):,} images, drawn at random (--most-images)")
        drawn = np.random.default_rng(options.seed).choice(len(source), options.most_images, replace=False)
        source = source.select(sorted(drawn.tolist()))
    kept, bad = _readable(source)
    if len(kept) < LEAST_IMAGES:
        raise FastDPSError(f"{images} has {len(kept)} readable images; a triplet needs {LEAST_IMAGES}. {bad}")
    source = source.select(kept)
    if options.versions == "distortions":
        pictures = DistortedPictures(source, out, size=options.size or SIZE, seed=options.seed)
        return pictures, VersionTriplets(len(source), options.seed)
    return PlainPictures(source, out), ImageTriplets(len(source), options.seed)


def _readable(source: ImageSource) -> tuple[list[int], str]:
    """Return the numbers of the images that decode, and a sentence about the others, which is also printed.

    Raises:
        FastDPSError: More than one in a hundred does not.
    """
    kept: list[int] = []
    faults: list[str] = []
    with counter("reading", unit="images") as count:
        count.start(len(source))
        for number in range(len(source)):
            try:
                source.pixels(number, 64)
                kept.append(number)
            except SampleError as error:
                faults.append(str(error))
            count.advance(1)
    if not faults:
        return kept, ""
    text = f"{len(faults):,} of {len(source):,} images cannot be read and are left out: {' '.join(faults[:SHOWN])}"
    if len(faults) > max(1, MOST_UNREADABLE * len(source)):
        raise FastDPSError(text.replace(" and are left out", ""))
    print_notice(text)
    return kept, text


@contextmanager
def _prepared(out: Path, images: Path) -> Iterator[Path]:
    """Create the directory of the answers and lock it. Raises `ConfigError`."""
    if images.is_dir() and not (images / MANIFEST).exists() and out.resolve().is_relative_to(images.resolve()):
        raise ConfigError(
            f"{out} is inside of {images}: its pictures would become images to judge. Choose another --out."
        )
    with write_errors(out):
        (out / STATE_DIRECTORY).mkdir(parents=True, exist_ok=True)

    def conflict(owner: str) -> ConfigError:
        return ConfigError(f"{out} is in use by another {owner or 'server'}. Stop it, or choose another --out.")

    owner = f"page (process {os.getpid()} on {socket.gethostname()})"
    with locked(out / STATE_DIRECTORY / "lock", conflict, owner=owner):
        yield out.resolve()


def _announce(options: JudgeOptions, port: int, access: Access, before: int) -> None:
    """Print the address of the page, and open it in a browser if that is wanted."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    name = socket.gethostname() if host in ("0.0.0.0", "[::]") else host
    address = f"http://{name}:{port}/" + ("" if access.is_open else f"?token={access.invite('operator')}")
    more = "" if access.is_open else " (this link works once; the page of results invites others)"
    print_result(f"Judge at {address}{more}")
    if before:
        print_result(f"It continues after {before:,} answers.")
    print_result("Stop with Ctrl-C; every answer is on disk.")
    if options.open_browser:
        webbrowser.open(address)
