"""Exports that are interrupted: a file never lies without its card or beside that of another, and export runs again."""

from pathlib import Path

import pytest

from fastdps.export import write
from fastdps.export.write import Verified, write_verified


class CrashError(Exception):
    """What ends an export in these tests."""


class TextFormat:
    """A format whose files hold a text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def require(self):
        pass

    def check(self, metric):
        pass

    def write(self, metric, path, card):
        path.write_text(self.text)

    def read_back(self, metric, path):
        return path.read_text


def export(path: Path, text: str) -> None:
    cards = {path.with_name(f"{path.name}.card.{kind}"): text for kind in ("md", "json")}
    write_verified(None, TextFormat(text), path, {}, lambda _: cards)


def crash_at(patch: pytest.MonkeyPatch, number: int, directory: Path) -> None:
    """Raise `CrashError` before the n-th rename or removal of a file in the directory of the export."""
    done = 0

    def counted(function):
        def call(self, *arguments, **options):
            nonlocal done
            done += directory in (self.parent, *(Path(argument).parent for argument in arguments))
            if done == number:
                raise CrashError
            return function(self, *arguments, **options)

        return call

    for name in ("replace", "unlink"):
        patch.setattr(Path, name, counted(getattr(Path, name)))


@pytest.mark.parametrize("before", [None, "old"])
def test_a_crash_at_any_moment_leaves_no_file_with_another_card(tmp_path, monkeypatch, before):
    monkeypatch.setattr(write, "verify", lambda *_: Verified(1, 0.0, 1.0))
    path = tmp_path / "metric.pth"
    moments = []
    for number in range(1, 100):
        for file in tmp_path.iterdir():
            file.unlink()
        if before:
            export(path, before)
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, number, tmp_path)
            try:
                export(path, "new")
                break
            except CrashError:
                moments.append(path.exists())
        if path.exists():  # otherwise the same command runs again, without --overwrite
            texts = {file.name: file.read_text() for file in tmp_path.iterdir()}
            assert len(texts) == 3
            assert set(texts.values()) == {before}
    assert len(moments) == 4
    assert moments == [before is not None, False, False, False]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "metric.pth",
        "metric.pth.card.json",
        "metric.pth.card.md",
    ]


def test_the_directory_of_a_killed_export_is_removed_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "verify", lambda *_: Verified(1, 0.0, 1.0))
    (tmp_path / ".export-abandoned").mkdir()
    (tmp_path / ".export-abandoned" / "metric.pth").write_text("half")
    export(tmp_path / "metric.pth", "new")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
