"""No HOME and no entry in the system's list of users, as in containers that run as any user id."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastdps
from fastdps.errors import ConfigError
from fastdps.runtime.files import user_cache
from fastdps.shards.cache import make_cache

#: Loaded by Python at its start: what the system answers for a user id without an entry.
WITHOUT_ENTRY = """
import pwd

def no_entry(user):
    raise KeyError(f"user not found: {user}")

pwd.getpwuid = pwd.getpwnam = no_entry
"""
VARIABLES = ("HOME", "XDG_CACHE_HOME", "FASTDPS_CACHE", "FASTDPS_WEIGHTS", "TORCH_HOME", "USER", "LOGNAME")


@pytest.fixture
def run(tmp_path, weights_dir):
    """Run Python code as such a user, in a working directory of its own."""
    site, work = tmp_path / "site", tmp_path / "work"
    site.mkdir()
    work.mkdir()
    site.joinpath("sitecustomize.py").write_text(WITHOUT_ENTRY)
    root = str(Path(fastdps.__file__).parents[1])

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        path = os.pathsep.join([str(site), root, kept.get("PYTHONPATH", "")])
        environment = {**kept, "PYTHONPATH": path, "FASTDPS_WEIGHTS": str(weights_dir), **more}
        environment = {name: value for name, value in environment.items() if value}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=work, capture_output=True, text=True, check=False
        )

    return run


LOAD = "import fastdps; print(fastdps.load('alexnet').context)"


def test_the_commands_run(run, tmp_path):
    """Help, packing, a training, a score and the check of the machine; nothing is written to a directory named "~"."""
    pack = ["pack", "deadleaves", "--count", "24", "--size", "32", "--out", "leaves", "--workers", "1"]
    train = ["train", "--shards", "leaves/train", "--out", "run", "--contexts", "1", "--max-steps", "2"]
    with_torch = [
        train,
        ["evaluate", "run", "--shards", "leaves/train"],
        ["doctor"],
    ]  # in one process, which imports it
    code = "from fastdps.commands.cli import main\nfor a in {}: assert main(a) == 0, a"
    for commands in ([["--help"]], [pack], with_torch):
        start = ["-c", code.format(commands)] if len(commands) > 1 else ["-m", "fastdps", *commands[0]]
        result = run(*start)
        assert result.returncode == 0, (commands, result.stderr)
        assert "Traceback" not in result.stderr
    assert (tmp_path / "work" / "run" / "metric.safetensors").exists()
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"leaves", "run"}


def test_weights_are_loaded_from_the_variable(run):
    result = run("-c", LOAD)
    assert (result.returncode, result.stdout) == (0, "None\n"), result.stderr


def test_without_weights_the_error_names_the_variables(run, tmp_path):
    """There is no place for a cache and for torch.hub, and pip is not asked, so that the test needs no network."""
    code = f"import sys; sys.modules['pip'] = None; {LOAD}"
    result = run("-c", code, FASTDPS_WEIGHTS="")
    assert result.returncode == 1
    error = result.stderr.partition("WeightsNotFoundError: ")[2]
    assert "torchvision's download: there is no place for the download: set TORCH_HOME or XDG_CACHE_HOME" in error
    assert "set FASTDPS_WEIGHTS to it, or set XDG_CACHE_HOME, because this user has no home directory" in error
    assert not list((tmp_path / "work").iterdir())


@pytest.fixture
def nobody(monkeypatch):
    """This process as such a user."""
    import pwd

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda user: {}[user])


def test_shards_of_a_url_need_a_cache(nobody, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"Set XDG_CACHE_HOME to a directory; .* FASTDPS_CACHE or --cache-dir"):
        make_cache()
    assert make_cache(tmp_path / "given", 1).directory == tmp_path / "given"
    monkeypatch.setenv("FASTDPS_CACHE", str(tmp_path / "cache"))
    assert make_cache(None, 1).directory == tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache() == tmp_path / "xdg" / "fastdps"


OTHER_USER = 12345


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can start other users' processes"
)
def test_as_a_user_without_an_entry(weights_dir):
    """The real thing; skipped where that user cannot read this Python or the weights."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment = {**kept, "FASTDPS_WEIGHTS": str(weights_dir), "PYTHONPATH": str(Path(fastdps.__file__).parents[1])}
    user = {"user": OTHER_USER, "group": OTHER_USER, "extra_groups": [], "env": environment, "cwd": "/"}
    check = f"import fastdps, os; open({torch.__file__!r}); os.listdir({str(weights_dir)!r})"
    try:
        subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, **user)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("another user cannot run this Python")
    result = subprocess.run([sys.executable, "-c", LOAD], check=False, capture_output=True, text=True, **user)
    assert (result.returncode, result.stdout) == (0, "None\n"), result.stderr
