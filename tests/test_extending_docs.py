"""The snippets of docs/extending.md, written into a copy of the package, and used."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL)


def snippet(text: str) -> str:
    """Return the snippet of the docs that begins with a text."""
    (found,) = [part for part in SNIPPETS if part.startswith(text)]
    return found


@pytest.fixture
def package(tmp_path, weights_dir):
    """A copy of fastdps to write to, and a function that runs a Python command in it."""
    shutil.copytree(ROOT / "fastdps", tmp_path / "code" / "fastdps", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "code"), "FASTDPS_WEIGHTS": str(weights_dir)}

    def run(*command: str) -> str:
        result = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
        )
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    assert str(tmp_path) in run("-c", "import fastdps; print(fastdps.__file__)")
    return tmp_path / "code", run


def add_row(path: Path, table: str, row: str, before: str = "") -> None:
    """Put a row at the end of a table of a module, and a definition before the table."""
    text = path.read_text(encoding="utf-8")
    start = re.search(rf"^{table}\b.*= {{$", text, re.MULTILINE).start()
    end = text.index("\n}\n", start) + 1
    path.write_text(text[:start] + before + "\n\n" + text[start:end] + row + text[end:], encoding="utf-8")


@pytest.mark.slow
def test_a_seventh_distortion_is_one_entry(package, tmp_path):
    code, run = package
    shards = tmp_path / "shards"
    run("-m", "fastdps", "pack", "deadleaves", "--count", "30", "--holdout", "0.3", "--out", str(shards))
    plan = "import torch; from fastdps.contexts.distortions import draw_plan; "
    plan += "p = draw_plan(torch.arange(50), seed=3, epoch=1); print([p[n].sum().item() for n in p.distortions][:6])"
    before = run("-c", plan)
    add_row(
        code / "fastdps/contexts/distortions.py", "DISTORTIONS", snippet('    "posterize"'), snippet("def _posterize")
    )
    assert run("-c", plan) == before
    ranking = "posterize,color,darken,zoom_in,rotate,translate,blur"
    commands = [
        f"train --shards {shards}/train --epochs 2 --out run",
        f"evaluate run --shards {shards}/val",
        f"train --shards {shards}/train --epochs 2 --out one --contexts {ranking}",
        f"gallery {shards}/val --out grid.png",
    ]
    in_turn = (
        "import sys; from fastdps.commands.cli import main; sys.exit(any(main(line.split()) for line in sys.argv[1:]))"
    )
    said = run("-c", in_turn, *commands)
    assert "7 distortions have 5,040 contexts; 720 of them are drawn" in said
    assert "mean over 720 contexts" in " ".join(said.split())
    assert "posterize" in said


def test_a_backbone_is_one_row(package):
    code, run = package
    add_row(code / "fastdps/metric/backbones.py", "BACKBONES", snippet('    "mobilenet_v3_large"'))
    run(
        "-c",
        "import torch; from fastdps.metric.backbones import Backbone; "
        "maps = Backbone('mobilenet_v3_large', pretrained=False)(torch.rand(2, 3, 64, 64)); assert len(maps) == 4",
    )


def test_a_data_set_is_one_file_and_a_row(package, tmp_path):
    code, run = package
    (code / "fastdps/packing/sources/zipped.py").write_text(snippet("import zipfile"))
    registry = code / "fastdps/packing/sources/registry.py"
    add_row(registry, "SOURCES", snippet('    "zip"'), "from fastdps.packing.sources.zipped import ZippedImages")
    from PIL import Image

    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for number in range(10):
            with archive.open(f"{number}.png", "w") as file:
                Image.new("RGB", (80, 60), (20 * number, 0, 0)).save(file, "png")
    run("-m", "fastdps", "pack", "zip", "--source", "pictures.zip", "--out", "shards/from-command")
    assert "sound" in run("-m", "fastdps", "check", "shards/from-command/train")
    from_python = "from fastdps.packing.sources.zipped import ZippedImages\n"
    run("-c", from_python + snippet("import fastdps"))
    assert (tmp_path / "shards/pictures/val/manifest.json").exists()
