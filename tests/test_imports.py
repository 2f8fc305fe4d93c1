"""The house: imports go one way, along the data, and each outside dependency has one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "fastdps"

#: Packages and root modules in the order of the data: a file imports only from what stands above its own place.
ORDER = [
    "errors",
    "runtime",
    "shards",
    "run_schema",
    "run_log",
    "run_directory",
    "packing",
    "loading",
    "contexts",
    "metric",
    "torchmetrics",
    "training",
    "evaluation",
    "report",
    "export",
    "judge",
    "commands",
    "train",
    "__main__",
]
#: The files that may import an outside package: a folder, or one file.
DOORS = {
    "accelerate": "runtime/processes.py",
    "rich": "runtime/console.py",
    "argparse": "commands",
    "timm": "metric/timm_backbones.py",
    "shtab": "commands/completion.py",
    "yaml": "commands/settings_files.py",
    "fsspec": "shards/storage.py",
    "pyarrow": "shards/tables.py",
    "aiohttp": "shards/storage.py",
    "ray": "packing/on_ray.py",
    "nvidia": "loading/dali.py",
    "webdataset": "shards/webdataset.py",
    "simplejpeg": "shards/images.py",
    "kornia": "contexts/distortions.py",
    "lpips": "export",
    "onnx": "export",
    "onnxruntime": "export",
    "huggingface_hub": "metric/hub.py",
    "jinja2": "report/markup.py",
    "torchmetrics": "torchmetrics.py",
    "starlette": "judge",
    "uvicorn": "judge",
    "anyio": "judge",
}
#: What must start fast, and so never imports torch at its top.
WITHOUT_TORCH = {
    "errors",
    "runtime/signals.py",
    "runtime/files.py",
    "runtime/machine.py",
    "runtime/console.py",
    "runtime/locks.py",
    "runtime/json_files.py",
    "shards",
    "run_schema",
    "run_log",
    "run_directory",
    "packing",
    "contexts/interpolation.py",
    "metric/arrays.py",
    "export/onnx_metric.py",
    "training/recipes.py",
    "commands/cli.py",
    "commands/options.py",
    "commands/completion.py",
    "commands/demo.py",
    "commands/adapt.py",
    "commands/train.py",
    "commands/train_options.py",
    "commands/settings_files.py",
    "commands/evaluate.py",
    "commands/report.py",
    "commands/status.py",
    "commands/sweep.py",
    "commands/score.py",
    "commands/export.py",
    "commands/gallery.py",
    "commands/doctor.py",
    "commands/judge.py",
    "loading/options.py",
    "metric/options.py",
    "training/options.py",
    "evaluation/options.py",
    "evaluation/scored_sets.py",
    "commands/make_shards.py",
    "commands/check_shards.py",
}


def place_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "fastdps":
                names |= {f"fastdps.{alias.name}" for alias in node.names}
    return names


def own_imports(path: Path) -> set[str]:
    """The places of fastdps that a file imports, its own left out."""
    places = {name.split(".")[1] for name in imports_of(path) if name.startswith("fastdps.")}
    return places - {place_of(path)}


def is_in(path: Path, place: str) -> bool:
    """Whether a file is `place` (`metric/weights.py`), or lies in it (`metric`)."""
    relative = path.relative_to(ROOT)
    return place in (relative.as_posix(), relative.with_suffix("").parts[0])


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    place = place_of(path)
    assert place in ORDER, f"put {place} where it belongs in ORDER"
    below = {name for name in own_imports(path) if ORDER.index(name) > ORDER.index(place)}
    assert not below, f"{place} must not know {below}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_door_per_dependency(path):
    packages = {name.split(".")[0] for name in imports_of(path)}
    for package, door in DOORS.items():
        assert package not in packages or is_in(path, door), f"{package} belongs to {door}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if any(is_in(p, place) for place in WITHOUT_TORCH)], ids=lambda p: str(p)
)
def test_what_starts_fast_has_no_torch(path):
    packages = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
    assert not packages & {"torch", "torchvision", "kornia", "accelerate", "nvidia"}
