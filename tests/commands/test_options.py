"""What a mistyped name is answered with, and what a shell is given to complete."""

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from fastdps.commands.cli import COMMANDS, main
from fastdps.commands.completion import INSTALL
from fastdps.commands.options import Parser, byte_count, location
from fastdps.errors import ConfigError, did_you_mean
from fastdps.training.recipes import get_recipe


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["scroe"], "Did you mean 'score'?"),
        (["trian", "--out", "x"], "Did you mean 'train'?"),
        (["--hlep"], "unknown option --hlep. Did you mean '--help'?"),
        (["train", "--comparision", "sort"], "unknown option --comparision. Did you mean '--comparison'?"),
        (["train", "--comparision=sort"], "unknown option --comparision. Did you mean '--comparison'?"),
        (["train", "--recipe", "papr"], "Did you mean 'paper'?"),
        (["train", "--variant", "tone"], "Did you mean 'tune'?"),
        (["score", "a.png", "b.png", "--metirc", "alexnet"], "unknown option --metirc. Did you mean '--metric'?"),
        (["export", "run", "--format", "onxn", "--out", "x"], "Did you mean 'onnx'?"),
        (["completion", "bsh"], "Did you mean 'bash'?"),
        (["train", "--xyzzy"], "unknown option --xyzzy.\n"),
    ],
)
def test_the_nearest_name_is_suggested(argv, hint, capsys):
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2
    shown = capsys.readouterr().err
    assert hint in shown
    assert shown.startswith("error: ")
    assert len(shown.splitlines()) == 2
    assert shown.splitlines()[1].startswith("To see all options: fastdps")


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["train", "--shards", "x", "--out", "y", "--contexts", "colour,a,b,c,d,e"], "Did you mean 'color'?"),
        (["score", "a.png", "b.png", "--metric", "alexnett"], "a.png does not exist"),
    ],
)
def test_mistakes_that_commands_find_exit_with_one(argv, hint, capsys):
    assert main(argv) == 1
    assert hint in capsys.readouterr().err


def test_recipes_by_name():
    with pytest.raises(ConfigError, match=r"Unknown recipe 'fst'\. Did you mean 'fast'\?"):
        get_recipe("fst", {})


def test_what_argparse_takes_is_taken():
    parser = Parser()
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("names", nargs="*")
    assert parser.parse_args(["--batch", "3", "a"]).batch_size == 3
    assert parser.parse_args(["--batch-size=-3"]).batch_size == -3
    assert parser.parse_args(["--", "--what"]).names == ["--what"]


def test_nothing_near_suggests_nothing():
    assert did_you_mean("xyzzy", COMMANDS) == ""


@pytest.mark.parametrize("shell", sorted(INSTALL))
def test_completion_knows_every_command_and_its_options(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert all(option.lstrip("-") in script for option in ("--comparison", "spatial+sort", "--context", "--format"))
    if shutil.which(shell) and shell in ("bash", "zsh"):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)

    def complete(*words: str) -> list[str]:
        lines = [
            f"source {tmp_path}/script",
            f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}",
            "$(complete -p fastdps | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
        found = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
        return found.stdout.split()

    assert complete("fastdps", "sc") == ["score"]
    assert complete("fastdps", "export", "--f") == ["--format"]
    assert complete("fastdps", "export", "--format", "o") == ["onnx"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50GB", 50 * 10**9),
        ("1.5 TB", 1_500_000_000_000),
        ("200MiB", 200 * 2**20),
        ("17", 17),
        ("3k", 3000),
        ("2GiB", 2**31),
    ],
)
def test_sizes(text, size):
    assert byte_count(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5X", "-1GB", "1iB", "1e9"])
def test_no_sizes(text):
    with pytest.raises(argparse.ArgumentTypeError, match="50GB"):
        byte_count(text)


def test_locations_are_paths_or_urls_that_are_known():
    assert location("shards/train") == Path("shards/train")
    assert str(location("s3://bucket/x")) == "s3://bucket/x"
    with pytest.raises(argparse.ArgumentTypeError, match="commands are never run"):
        location("pipe:cat x")
