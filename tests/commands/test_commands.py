"""What all commands share: `--quiet`, and how they end when a signal comes while they import, work or write."""

import json
import signal
import subprocess
import sys

import pytest
from PIL import Image

from fastdps.commands import cli, demo, score_images
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings
from fastdps.errors import FastDPSError
from fastdps.metric.image_metric import ImageMetric
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.runtime import files

SIGNALS = [signal.SIGINT, signal.SIGTERM]
#: What each command is called with here; {} stands for a directory that holds shards, images and a run.
ARGUMENTS = {
    "train": "--shards {}/shards/train --out {}/out/run --contexts 1 --epochs 1",
    "evaluate": "{}/run --shards {}/shards/val --draws 1",
    "adapt": "alexnet --judgements {}/judged.csv --out {}/out/adapted",
    "report": "{}/run --out {}/out/report.html",
    "sweep": "--grid {}/grid.json --out {}/out/sweep",
    "score": "{}/a.png {}/b.png {}/a.png --metric {}/run",
    "score --map": "{}/a.png {}/b.png --metric {}/run --map {}/out/map.png",
    "export": "{}/run --format lpips --out {}/out/metric.pth",
    "pack": "folder --source {} --out {}/out/packed --size 16 --workers 1",
    "check": "{}/shards",
    "gallery": "{}/shards/train --out {}/out/grid.png --distort",
    "demo": "--shards {}/out/shards --out {}/out/demo --images 8 --epochs 1",
}


#: Commands that import no torch.
TORCHLESS = ("pack", "check")


@pytest.fixture(scope="module")
def place(tmp_path_factory, weights_dir):
    """A directory that has what commands need, and an empty one in it for what they write."""
    root = tmp_path_factory.mktemp("place")
    pack(DeadLeaves(12, 32, seed=1), root / "shards", PackOptions(size=32, holdout=0.3), workers=1)
    for number, name in enumerate("abc"):
        Image.effect_noise((40, 40), 30 + number).convert("RGB").save(root / f"{name}.png")
    rows = ["ref,p0,p1,judge", "a.png,b.png,c.png,0", "b.png,a.png,c.png,1", "c.png,a.png,b.png,1"]
    (root / "judged.csv").write_text("\n".join([*rows, ""]))
    grid = {"shards": str(root / "shards/train"), "held_out": str(root / "shards/val"), "contexts": "1"}
    (root / "grid.json").write_text(json.dumps({**grid, "settings": {"epochs": 1}, "grid": {"seed": [0]}}))
    ranking = ",".join(all_rankings(NAMES)[7])
    train = ["--shards", str(root / "shards/train"), "--contexts", ranking, "--epochs", "1", "--out", str(root / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        assert cli.main(["train", *train]) == 0
        assert cli.main(["evaluate", str(root / "run"), "--shards", str(root / "shards/val"), "--draws", "1"]) == 0
    return root


@pytest.fixture
def argv(request, place, tmp_path, monkeypatch, weights_dir):
    """The words of a command, whose name is the parameter, that writes to a directory of its own."""
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    words = ARGUMENTS[request.param].replace("{}/out", str(tmp_path)).replace("{}", str(place))
    return [request.param.split()[0], *words.split()]


def test_every_command_is_here():
    assert {name.split()[0] for name in ARGUMENTS} == set(cli.COMMANDS) - {"doctor", "completion", "status", "judge"}


@pytest.mark.parametrize("argv", ARGUMENTS, indirect=True)
def test_quiet_commands_say_nothing(argv, capfd):
    assert cli.main([*argv, "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_json_that_was_asked_for_is_no_noise(place, capfd, monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    images = [str(place / "a.png"), str(place / "b.png")]
    assert cli.main(["score", *images, "--metric", str(place / "run"), "--json", "--quiet"]) == 0
    output = capfd.readouterr()
    assert len(json.loads(output.out)["images"]) == 1
    assert output.err == ""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "argv", [name for name in ARGUMENTS if name not in ("score", "train", "demo", *TORCHLESS)], indirect=True
)
def test_a_signal_while_a_file_is_written_leaves_none(argv, number, place, tmp_path, capfd, monkeypatch):
    """Of a training the signals are in test_resume.py, of packing in tests/packing; `score` writes its map alone."""

    def contents():
        return {path: path.read_bytes() for root in (place, tmp_path) for path in root.rglob("*.*") if path.is_file()}

    if argv[0] == "sweep":  # its own table, once its cases are done
        assert cli.main(argv) == 0
        (tmp_path / "sweep/sweep.csv").unlink()
        capfd.readouterr()
    before, handler = contents(), signal.getsignal(number)
    monkeypatch.setattr(files, "fsync_file", lambda _: signal.raise_signal(number))
    assert cli.main(argv) == 128 + number
    assert signal.getsignal(number) == handler
    said = capfd.readouterr().err
    assert said.endswith("interrupted\n" if number == signal.SIGINT else "terminated\n")
    assert "Traceback" not in said
    after = contents()
    after.pop(tmp_path / "metric.pth", None)  # whole and verified; what was written is its card
    assert after == before


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["train --shards x --out y", "score a b --metric c"])
def test_a_signal_while_torch_is_imported_ends_at_once(command, number):
    """Libraries turn a KeyboardInterrupt that comes then into errors of their own."""
    script = f"""
import signal, sys
class Signals:
    def find_spec(self, name, *_):
        if name == "torch":
            signal.raise_signal({int(number)})
sys.meta_path.insert(0, Signals())
from fastdps.commands.cli import main
sys.exit(main({command.split()!r}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (128 + number, "", "interrupted\n")


@pytest.mark.parametrize("status", [1, 130])
def test_a_demo_ends_as_its_step_does(monkeypatch, tmp_path, capfd, status):
    steps = []

    def stop(*arguments, **_):
        steps.append(arguments)
        raise FastDPSError("no space") if status == 1 else KeyboardInterrupt

    monkeypatch.setattr(demo, "pack", stop)
    assert cli.main(["demo", "--shards", str(tmp_path / "shards"), "--out", str(tmp_path / "run")]) == status
    assert len(steps) == 1
    assert "The demo stopped at this step" in capfd.readouterr().err


def test_large_images_are_compared_a_few_at_a_time(place, monkeypatch, weights_dir, capfd):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    monkeypatch.setattr(score_images, "BATCH_PIXELS", 2 * 40 * 40)
    sizes = []
    compare = ImageMetric.forward
    monkeypatch.setattr(ImageMetric, "forward", lambda self, x, y: sizes.append(len(y)) or compare(self, x, y))
    images = [str(place / name) for name in ("a.png", "b.png", "a.png", "b.png", "a.png")]
    assert cli.main(["score", images[0], *images, "--metric", str(place / "run")]) == 0
    assert sizes == [2, 2, 1]
    assert "comparing 5/5" in capfd.readouterr().err
