"""The docs as a reader uses them: `sh` and `python` blocks run, other commands parse, paths and links exist."""

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastdps
from fastdps.commands.cli import main, make_parser
from tools import site_pages

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "shards/README.md", ROOT / "bench/README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTES = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PATH = re.compile(r"`((?:fastdps|bench|tests|tools|docs)/[\w./-]*)`")
LINK = re.compile(r"\]\(([^)\s#]+)")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
#: The snippets of extending.md are parts of files; test_extending_docs.py runs them.
RUN = [page for page in PAGES if page.name != "extending.md" and FENCE.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", [*PAGES, *NOTES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_and_links_of_a_page_exist(page):
    """Paths in backticks are relative to the repository, links to the page. NAME is a placeholder."""
    text = page.read_text(encoding="utf-8")
    paths = {path for path in PATH.findall(text) if "NAME" not in path}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_tree_of_the_readme_is_that_of_the_repository():
    """Every folder with code is in the tree, at its depth, and nothing else."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Where things are\n")[2]
    shown, parents = set(), []
    for line in re.findall(r"^    .*$", section.partition("\nSix files")[0], re.MULTILINE):
        depth = (len(line) - len(line.lstrip())) // 2 - 2
        parents[depth:] = [re.match(r"\s*(\w+)/ ", line)[1]]
        shown.add("/".join(parents))
    inside = {path.parent for path in (ROOT / "fastdps").rglob("*.py")}
    there = {path.relative_to(ROOT).as_posix() for path in inside if path.name != "__pycache__"}
    assert shown == there | {"bench", "tests", "docs", "tools"}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_of_a_page_run_in_order(page, tmp_path, weights_dir, monkeypatch):
    """Commands of fastdps run in this process, to import torch once; every other line in a shell."""
    photographs(tmp_path / "photos", 24)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    names = {"__name__": "__main__"}  # later blocks of a page use what earlier ones define
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["fastdps"]:
                    status = main(words[1:])
                else:
                    status = subprocess.run(["bash", "-e", "-c", line], check=False, timeout=300).returncode
                assert status == 0, f"{page.name}: {line}"


def photographs(folder: Path, count: int) -> None:
    """Write images that resemble photographs: smooth colours, different in each."""
    folder.mkdir()
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((240, 200), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.jpg")


def commands(page: Path) -> list[list[str]]:
    """Return the command lines of a page, fenced or indented, with continued lines joined and without comments."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    fenced = [line for language, block in FENCE.findall(text) if language == "sh" for line in block.splitlines()]
    indented = [line.strip() for line in FENCE.sub("", text).splitlines() if re.match(r"    \S", line)]
    return [
        shlex.split(line, comments=True)
        for line in (*fenced, *indented)
        if re.match(r"(fastdps|python|accelerate launch|torchrun) ", line)
    ]


ALL = [(page, words) for page in PAGES for words in commands(page)]


def test_there_are_commands():
    assert len(ALL) > 30


@pytest.mark.parametrize(
    ("page", "words"), ALL, ids=[f"{page.parent.name}/{page.name}: {' '.join(words)[:60]}" for page, words in ALL]
)
def test_commands_of_a_page_parse(page, words, capsys):
    """The parser accepts each command. Names in capitals are placeholders."""
    words = ["folder" if word == "KIND" else word for word in words if word not in ("...", "[options")]
    if words[0] in ("accelerate", "torchrun") or words[:3] == ["python", "-m", "fastdps"]:
        module = words.index("-m")
        words = ["fastdps", *words[module + 1 :]]
        words[1:2] = {"fastdps.train": ["train"], "fastdps": []}[words[1]]
    try:
        if words[0] == "fastdps":
            make_parser(words[1:2]).parse_args(words[1:])
        elif words[1:3] == ["-m", "bench"]:
            from bench import __main__ as bench

            bench.parse(words[3:])
        else:
            pytest.fail(f"unknown command: {' '.join(words)}")
    except SystemExit:
        pytest.fail(f"{page.name}: {' '.join(words)}: {capsys.readouterr().err}")


def test_the_site_shows_every_page_once():
    nav = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    inside = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(nav) == sorted((inside - {"README.md"}) | set(site_pages.PAGES.values()))


def test_the_site_documents_every_public_name():
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    public = [getattr(fastdps, name) for name in fastdps.__all__]
    homes = {f"{item.__module__}.{item.__qualname__}" for item in public if item.__module__ != "fastdps.errors"}
    assert homes | {"fastdps.errors"} <= set(shown)
    assert len(shown) == len(set(shown))


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "docs/scaling.md#slurm", "scaling.md#slurm"),
        ("README.md", "docs/time.png", "time.png"),
        ("README.md", "shards/README.md", "shards.md"),
        ("docs/imagenet.md", "../shards/README.md", "shards.md"),
        ("docs/scaling.md", "slurm.sbatch", "slurm.sbatch"),
        ("docs/api/pack.md", "../extending.md#a-data-set", "../extending.md#a-data-set"),
        ("docs/api/pack.md", "../../README.md", "../index.md"),
        ("bench/README.md", "../docs/scaling.md", "scaling.md"),
        ("README.md", "https://arxiv.org/abs/1801.03924", "https://arxiv.org/abs/1801.03924"),
        ("README.md", "#speed", "#speed"),
    ],
)
def test_links_of_the_site(source, link, expected):
    assert site_pages.relink(f"See [this]({link}), please.", source) == f"See [this]({expected}), please."
