"""Planted links in a run: a report shows files of the run only."""

from fastdps.commands.cli import main
from helpers.made_up_runs import make_run


def test_a_picture_that_is_a_link_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (tmp_path / "secret").write_bytes(b"the secret")
    (run / "examples/0-7.png").unlink()
    (run / "examples/0-7.png").symlink_to(tmp_path / "secret")
    assert main(["report", str(run)]) == 1
    assert "0-7.png is a link" in capsys.readouterr().err
    assert not (run / "report.html").exists()
