"""`fastdps doctor`: findings and advice, and an exit status that says whether training would fail."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from fastdps.commands import doctor
from fastdps.commands.checks import Check, print_checks
from fastdps.commands.cli import main


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """An environment without weights and without a launcher's variables."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("FASTDPS_WEIGHTS", "OMP_NUM_THREADS", *doctor.LAUNCH_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def state_of(checks, name):
    (found,) = (check for check in checks if check.name == name)
    return found.state


def test_a_machine_that_trains(alone, capsys):
    assert main(["doctor", "--path", str(alone)]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in shown
    assert "weights of alexnet: The first training downloads them." in shown
    assert list(alone.iterdir()) == []


def test_findings_as_json(alone, capsys):
    assert main(["doctor", "--path", str(alone), "--json"]) == 0
    output = capsys.readouterr()
    checks = json.loads(output.out)
    assert output.err == ""
    assert {"python", "torch", "devices", "DALI", "cores", "launch", f"disk of {alone}"} <= {c["name"] for c in checks}
    assert all(set(check) == {"name", "state", "found", "advice"} for check in checks)
    assert all(check["advice"] for check in checks if check["state"] != "ok")


def test_weights_that_are_there_are_checked(alone, weights_dir, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    assert {state_of(doctor.check_weights(), f"weights of {name}") for name in ("alexnet", "vgg16")} == {"ok"}


@pytest.mark.parametrize("kind", ["other tensors", "no safetensors"])
def test_weights_that_training_would_refuse_are_bad(alone, monkeypatch, capsys, kind):
    path = alone / "alexnet_features.safetensors"
    if kind == "other tensors":
        save_file({"features.0.weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(b"nothing")
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(alone))
    assert main(["doctor", "--path", str(alone)]) == 1
    assert "error: training would fail here: weights of alexnet." in capsys.readouterr().err


def test_a_variable_that_names_no_directory_is_noted(alone, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(alone / "nowhere"))
    assert state_of(doctor.check_weights(), "$FASTDPS_WEIGHTS") == "note"


def test_a_directory_that_is_not_there_is_bad(alone, capsys):
    assert main(["doctor", "--path", str(alone / "nowhere")]) == 1
    assert "needs a directory that it can write to" in " ".join(capsys.readouterr().out.split())


def test_a_full_disk_is_bad_and_a_slow_one_noted(alone, monkeypatch):
    monkeypatch.setattr(doctor, "measure_disk", lambda _: (10.0, 10.0))
    assert doctor.check_disk(alone)[0].state == "note"
    monkeypatch.setattr(doctor, "PROBE_MIB", 2**40)
    assert doctor.check_disk(alone)[0].state == "bad"


def test_measuring_a_disk_leaves_nothing(alone):
    assert min(doctor.measure_disk(alone)) > 0
    assert list(alone.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "state"),
    [
        ({}, "ok"),
        ({"WORLD_SIZE": "1"}, "ok"),
        ({"SLURM_JOB_ID": "7"}, "ok"),
        ({"WORLD_SIZE": "4"}, "bad"),
        ({"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "ok"),
    ],
)
def test_what_launchers_have_set(environment, state):
    assert doctor.check_launch(environment)[0].state == state


def test_few_threads_are_noted_where_they_are_asked_for(alone, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(torch.get_num_threads() + 1)))
    assert state_of(doctor.check_cores(), "cores") == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert state_of(doctor.check_cores(), "cores") == "note"


def test_a_package_that_lacks_is_bad_but_for_dali(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    monkeypatch.setattr(doctor, "DALI", "no-such-package")
    assert doctor.check_versions()[1].state == "bad"
    assert doctor.check_dali()[0].state == "note"


def test_brackets_in_findings_are_no_markup(capsys):
    print_checks([Check("[bold]a[/]", "note", "[red]b", "[link=x]c[/link]")])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[bold]a[/]", "[red]b", "[link=x]c[/link]"))
