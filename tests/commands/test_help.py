"""Help: fast, without torch, with examples that parse, and with names and defaults that are those of the code."""

import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest

from fastdps.commands import cli, export
from fastdps.commands.options import table_keys
from fastdps.commands.train_options import SETTINGS_WITH_OPTION
from fastdps.contexts.distortions import NAMES
from fastdps.export.export import FORMATS
from fastdps.metric.backbones import BACKBONES
from fastdps.training.recipes import RECIPES, SETTINGS


def help_of(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as raised:
        cli.main([*argv])
    assert raised.value.code == 0
    return capsys.readouterr().out


def test_no_help_imports_torch():
    """And none imports what takes its time: all commands together, in one process."""
    script = """
import sys
for name in ("torch", "torchvision", "kornia", "accelerate", "nvidia", "pyarrow", "scipy", "jinja2"):
    sys.modules[name] = None
from fastdps.commands.cli import COMMANDS, main
for command in [[], *([name] for name in COMMANDS)]:
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert end.code == 0, command
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_examples_are_commands_that_parse(command, capsys):
    shown = help_of(capsys, "help", command)
    assert shown == help_of(capsys, command, "--help")
    if command == "completion":
        return
    found = [line.split() for line in shown.partition("examples:\n")[2].splitlines() if line.startswith("  fastdps ")]
    assert len(found) >= 2
    for _, *words in found:
        cli.make_parser(cli.COMMANDS).parse_args(shlex.split(" ".join(words)))


def test_names_and_defaults_are_those_of_the_code(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    shown = help_of(capsys, "help", "train")
    assert f"distortions: {', '.join(NAMES)}" in shown
    assert f"backbones: {', '.join(BACKBONES)};" in shown
    assert all(recipe in shown for recipe in RECIPES)
    (epochs,) = re.findall(r"number of epochs \(default (.*?)\)", shown)
    first, *others = epochs.split(", ")
    assert int(first) == RECIPES["fast"]().epochs
    values = {name: make().epochs for name, make in RECIPES.items()}
    assert others == [f"{name}: {value}" for name, value in values.items() if value != int(first)]
    assert "heads and judges (default 0.04, paper: 0.001, lpips: 0.0001" in shown
    assert all(f"--{name.replace('_', '-')}" in shown for name in SETTINGS_WITH_OPTION)
    assert tuple(sorted(FORMATS)) == export.FORMATS
    assert all(name in help_of(capsys, "help", "sweep") for name in SETTINGS)
    with pytest.raises(ValueError, match="has no table X"):
        table_keys("contexts/distortions.py", "X")


def test_the_version(capsys):
    assert help_of(capsys, "--version") == f"fastdps {version('fastdps')}\n"


def test_a_file_of_settings_gives_what_print_config_wrote(tmp_path, capsys):
    options = ["--recipe", "paper", "--seed", "3", "--taps", "1,4"]
    assert cli.main(["train", *options, "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "c.json").write_text(printed)
    assert cli.main(["train", "--config", str(tmp_path / "c.json"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert set(json.loads(printed)) == set(SETTINGS)  # every setting has a key
    (tmp_path / "c.yaml").write_text(
        "recipe: lpips\nlearning_rate: 1e-3  # YAML 1.1 reads a text\ntaps: [1, 4]\nfolds: 3\n"
    )
    assert cli.main(["train", "--config", str(tmp_path / "c.yaml"), "--epochs", "2", "--print-config"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["recipe"], found["learning_rate"], found["taps"], found["folds"]) == ("lpips", 1e-3, [1, 4], 3)
    assert (found["epochs"], found["judge"]) == (2, "mlp")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.yaml", "epoch: 3", "c.yaml: unknown setting 'epoch'. Did you mean 'epochs'?"),
        ("c.yaml", "epochs: many", "c.yaml: epochs must be a whole number, not 'many'"),
        ("c.yaml", "variant: tone", "c.yaml: variant must be one of baseline, lin"),
        ("c.yaml", "a: [1", "c.yaml is not valid YAML"),
        ("c.json", "{", "c.json is not valid JSON"),
        ("c.yaml", "- 1", "c.yaml must hold settings by name"),
        ("c.yaml", "recipe: [1]", "recipe must be a name"),
        ("none.yaml", None, "none.yaml cannot be read"),
    ],
)
def test_mistakes_in_a_file_of_settings(tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert cli.main(["train", "--config", str(tmp_path / name), "--print-config"]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert re.fullmatch(r"error: .*\n", said)
