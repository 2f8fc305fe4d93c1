"""The rooms of the project: imports go one way, along the data, and each outside dependency has one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "fastdps"

#: Rooms from the bottom up: a module imports only from rooms above its own in this list, or from its own package.
ORDER = [
    "stopping",
    "errors",
    "suggest",
    "cores",
    "memory",
    "files",
    "storage",
    "arguments",
    "shards",
    "staging",
    "datasets",
    "philox",
    "distortions",
    "contexts",
    "weights",
    "backbones",
    "distances",
    "heads",
    "scores",
    "objective",
    "lpips_format",
    "inputs",
    "metric",
    "pairwise",
    "maps",
    "api",
    "precision",
    "extraction",
    "checkpoints",
    "recipes",
    "runs",
    "choosing",
    "torchmetrics",
    "report",
    "packing",
    "heat_map",
    "score",
    "export",
    "loading",
    "gallery",
    "heartbeat",
    "processes",
    "meter",
    "guard",
    "agreement",
    "progress",
    "trainee",
    "tasks",
    "step",
    "validation",
    "training",
    "tally",
    "train",
    "bapps",
    "examples",
    "evaluate",
    "sweep",
    "doctor",
    "cli",
    "completion",
    "demo",
]
#: These know each other by tensors only.
MIDDLE = {"distortions", "contexts", "distances", "heads", "objective", "scores"}
#: Which modules may import an outside package.
DOORS = {
    "nvidia": {"loading"},
    "webdataset": {"loading"},
    "simplejpeg": {"loading"},
    "kornia": {"distortions"},
    "accelerate": {"processes", "tally", "bapps", "evaluate"},
    "rich": {"report", "cli"},
    "torchmetrics": {"torchmetrics"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "lpips": {"export"},
    "shtab": {"completion"},
    "ray": {"packing"},
    "fsspec": {"storage"},
    "aiohttp": {"storage"},
}
#: What must start fast, and so never imports torch at its top.
WITHOUT_TORCH = {
    "stopping",
    "errors",
    "suggest",
    "cores",
    "arguments",
    "completion",
    "files",
    "storage",
    "shards",
    "staging",
    "datasets",
    "packing",
    "cli",
    "demo",
    "runs",
    "recipes",
}


def module_of(path: Path) -> str:
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
    """The rooms of fastdps that a file imports, its own left out."""
    rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("fastdps.")}
    return rooms - {module_of(path)}


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = module_of(path)
    assert room in ORDER, f"put {room} where it belongs in ORDER"
    below = {name for name in own_imports(path) if ORDER.index(name) > ORDER.index(room)}
    assert not below, f"{room} must not know {below}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_door_per_dependency(path):
    packages = {name.split(".")[0] for name in imports_of(path)}
    for package, doors in DOORS.items():
        assert package not in packages or module_of(path) in doors, f"{package} belongs to {doors}"


@pytest.mark.parametrize("room", sorted(MIDDLE))
def test_middle_rooms_know_tensors_only(room):
    assert not own_imports(ROOT / f"{room}.py") & MIDDLE


@pytest.mark.parametrize("path", [p for p in FILES if module_of(p) in WITHOUT_TORCH], ids=str)
def test_what_starts_fast_has_no_torch(path):
    packages = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
    assert not packages & {"torch", "torchvision", "kornia", "accelerate", "nvidia"}
