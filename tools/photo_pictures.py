"""Draw the pictures of the docs that show photographs, with the commands of fastdps, and Chromium for the report.

    python tools/photo_pictures.py --out docs

The photographs are in the public domain and come with the package scikit-image (the extra `test`); `PHOTOGRAPHS` has
their sources. Also needs Chromium, its driver and selenium (the extra `test`), and the pretrained weights of AlexNet.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage
from chromium import browser
from numpy.typing import NDArray
from page_pictures import save, view
from PIL import Image, ImageEnhance, ImageFilter

from fastdps.commands.cli import main as fastdps

#: Side of the pictures of the gallery and of the crops that are trained on, and of those whose difference is drawn.
SMALL, LARGE = 128, 256
#: Crops of each photograph that a metric is adapted to, and scored on.
CROPS, HELD_OUT = 60, 40
#: Quality of the JPEGs.
QUALITY = 88


class Photograph(NamedTuple):
    """A photograph of scikit-image in the public domain.

    Attributes:
        file: Its file in `skimage.data`.
        licence: Who made it, and how it came into the public domain.
        square: The square that is shown: left, top, and side in pixels.
    """

    file: str
    licence: str
    square: tuple[int, int, int]


PHOTOGRAPHS = {
    "astronaut": Photograph("astronaut.png", "Eileen Collins, by NASA: public domain", (20, 0, 400)),
    "cat": Photograph("chelsea.png", "Chelsea, by Stefan van der Walt: CC0", (90, 0, 300)),
    "coffee": Photograph("coffee.png", "coffee cup, by Rachel Michetti: CC0", (120, 0, 400)),
    "rocket": Photograph("rocket.jpg", "launch of DSCOVR, by SpaceX: public domain", (180, 40, 387)),
    "galaxies": Photograph("hubble_deep_field.jpg", "Hubble eXtreme Deep Field, by NASA: public domain", (0, 0, 872)),
    "retina": Photograph("retina.jpg", "retina, by Mikael Häggström: CC0", (0, 0, 1411)),
}
#: Those that are trained on; scores are those of the others.
TRAINED = ("astronaut", "coffee", "galaxies", "retina")


def read(name: str) -> Image.Image:
    """Return the square of a photograph."""
    photograph = PHOTOGRAPHS[name]
    left, top, side = photograph.square
    with Image.open(Path(skimage.__file__).parent / "data" / photograph.file) as image:
        return image.convert("RGB").crop((left, top, left + side, top + side))


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the docs that show photographs.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the pictures")
    parser.add_argument("--only", choices=("distortions", "map", "report"), help="draw only this one")
    arguments = parser.parse_args(argv)
    out = arguments.out.resolve()
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        for name, draw in (("distortions", draw_distortions), ("map", draw_map), ("report", draw_report)):
            if arguments.only in (None, name):
                draw(out)


def run(*words: object) -> None:
    """Run a command of fastdps. Exits with its status if it fails."""
    if status := fastdps([str(word) for word in words]):
        raise SystemExit(status)


def draw_distortions(out: Path) -> None:
    """Write three photographs and their six distortions."""
    folder = Path("photographs")
    folder.mkdir()
    for name in ("astronaut", "cat", "coffee"):
        read(name).resize((SMALL, SMALL), Image.Resampling.LANCZOS).save(folder / f"{name}.png")
    run("pack", "folder", "--source", folder, "--out", "shards", "--size", SMALL)
    run(
        "gallery",
        "shards/train",
        "--distort",
        "--samples",
        3,
        "--seed",
        5,
        "--title",
        "six distortions",
        "--out",
        "distortions.png",
    )
    compress(Path("distortions.png"), out / "distortions.jpg")


def draw_map(out: Path) -> None:
    """Write a photograph, a version of it that differs in three places, and where the metric sees them differ."""
    original = read("coffee").resize((LARGE, LARGE), Image.Resampling.LANCZOS)
    changed = original.copy()
    for box, change in (
        ((20, 150, 76, 206), lambda part: part.filter(ImageFilter.GaussianBlur(3))),
        ((96, 52, 152, 96), lambda part: ImageEnhance.Brightness(part).enhance(2.2)),
        ((190, 110, 246, 166), lambda part: part.rotate(180)),
    ):
        changed.paste(change(changed.crop(box)), box)
    original.save("original.png")
    changed.save("changed.png")
    run("score", "original.png", "changed.png", "--metric", "alexnet", "--map", "map.png")
    compress(Path("map.png"), out / "map.jpg")


def draw_report(out: Path) -> None:
    """Adapt a metric to all contexts on crops of photographs, score it on others, and write a part of its report."""
    dice = np.random.default_rng(0)
    for name in PHOTOGRAPHS:
        split, count = ("train", CROPS) if name in TRAINED else ("val", HELD_OUT)
        (Path("crops") / split).mkdir(parents=True, exist_ok=True)
        for number, crop in enumerate(random_crops(read(name), count, dice)):
            crop.save(f"crops/{split}/{name}-{number:02d}.png")
    for split in ("train", "val"):
        run("pack", "folder", "--source", f"crops/{split}", "--out", f"shards/{split}", "--size", SMALL // 2)
    run("train", "--shards", "shards/train/train", "--out", "runs/photographs")
    run("evaluate", "runs/photographs", "--shards", "shards/val/train")
    run("report", "runs/photographs")
    with browser(Path("profile").resolve()) as session:
        view(session, 1280, 1000)
        session.get(Path("runs/photographs/report.html").resolve().as_uri() + "#the-distortions")
        save(session, out / "report.png")


def random_crops(image: Image.Image, count: int, dice: np.random.Generator) -> list[Image.Image]:
    """Return random square crops of a quarter to the whole of the side."""
    sides: NDArray[np.int64] = (dice.uniform(0.25, 1, count) * image.width).astype(int)
    corners = [dice.integers(0, image.width - side + 1, 2) for side in sides]
    boxes = [(x, y, x + side, y + side) for (x, y), side in zip(corners, sides, strict=True)]
    return [image.crop(box).resize((SMALL, SMALL), Image.Resampling.LANCZOS) for box in boxes]


def compress(source: Path, path: Path) -> None:
    """Write a picture as JPEG: photographs take a fifth of a PNG's size."""
    with Image.open(source) as image:
        image.convert("RGB").save(path, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
