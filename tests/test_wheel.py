"""A package that stands alone: the wheel in an environment that sees the dependencies, but not the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
RANKING = "color,darken,zoom_in,rotate,translate,blur"
PROGRAM = f"""
import fastdps, torch
run = fastdps.train("shards/photos/train", "runs/python", contexts=["{RANKING}".split(",")], epochs=1)
print(fastdps.evaluate(run, shards="shards/photos/val").summary.contexts)
m = fastdps.load(run)
print(m(torch.zeros(3, 64, 64), torch.ones(3, 64, 64)).shape)
"""
COMMANDS = [
    "fastdps pack folder --source photos --out shards/photos --size 64 --encoding raw --holdout 0.2",
    "fastdps check shards/photos",
    "fastdps gallery shards/photos/train --distort --samples 2 --out grid.png",
    f"fastdps train --shards shards/photos/train --contexts {RANKING} --epochs 1 --out runs/photos",
    "fastdps evaluate runs/photos --shards shards/photos/val",
    "fastdps report runs/photos",
    "fastdps score photos/00.png photos --metric runs/photos --size 64 --top 5",
    "fastdps score photos/00.png photos/01.png --metric runs/photos --size 64 --map map.png",
    "fastdps export runs/photos --format lpips --out mine.pth",
    "fastdps completion bash",
    "fastdps demo --images 20 --epochs 1",
    "python -m fastdps --help",
    "python -m fastdps.train --help",
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The directory of the programs of an environment with the wheel."""
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(root), str(ROOT)], check=True, timeout=300)
    (wheel,) = root.glob("*.whl")
    venv.create(root / "env", with_pip=False, symlinks=True)
    programs = root / "env" / "bin"
    own = Path(sysconfig.get_path("purelib", vars={"base": str(root / "env"), "platbase": str(root / "env")}))
    # A line of a .pth file adds a directory, without the editable checkout that .pth files in it would add.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--no-index", "--ignore-installed", str(wheel)], check=True, timeout=300)
    return programs


@pytest.mark.slow
def test_what_the_readme_shows_works_from_a_wheel(environment, weights_dir, tmp_path):
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    variables |= {"PATH": f"{environment}:{os.environ['PATH']}", "FASTDPS_WEIGHTS": str(weights_dir)}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    where = run("python", "-c", "import fastdps; print(fastdps.__file__, fastdps.__version__)")
    assert where.startswith(str(environment.parent))
    assert (Path(where.split()[0]).parent / "py.typed").exists()

    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = random.integers(0, 256, (80, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number:02d}.png")
    for command in COMMANDS:
        run(*command.split())
    assert run("python", "-c", PROGRAM).split("\n")[:2] == ["1", "torch.Size([1])"]
    for file in ("runs/photos/report.html", "grid.png", "map.png", "mine.pth", "runs/demo/comparison.html"):
        assert (tmp_path / file).exists(), file
