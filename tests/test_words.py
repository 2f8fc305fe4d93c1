"""The check of words in added lines: what it finds, and what it leaves alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_words import BEGIN, END, TABLE, added_lines, find, prose, read_words

ROOT = Path(__file__).parent.parent
#: A table with words that no other check looks for.
WORDS = f"""# Notes on the frob
{BEGIN}
| avoid | write |
|---|---|
| frob, goes blip | resumes |
| `\"\"\"Wherefore` | a verb |
{END}
"""


@pytest.fixture
def repository(tmp_path):
    """A git repository with a table, and a Python file with old words."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / TABLE).write_text(WORDS)
    (tmp_path / "code.py").write_text('"""Wherefore it is."""\n# An old frob.\n')
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "begin")
    return tmp_path


def git(directory: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=")
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, timeout=60)


def check(directory: Path, *options: str) -> tuple[int, list[str]]:
    """Run the script as the pre-commit hook does; return its exit status and output."""
    command = [sys.executable, str(ROOT / "tools" / "check_words.py"), *options]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=60)
    assert result.stderr == ""
    return result.returncode, result.stdout.splitlines()


def test_a_word_in_an_added_line_is_found_and_old_lines_are_left_alone(repository):
    assert check(repository) == (0, [])
    with (repository / "code.py").open("a") as file:
        file.write("frob = 1\nx = 2  # A new Frob.\n")
    assert check(repository) == (0, [])
    finding = 'code.py:4: "frob"; write: resumes'
    assert check(repository, "--since", "HEAD") == (1, [finding])
    git(repository, "add", ".")
    assert check(repository) == (1, [finding])


def test_the_staged_lines_count_and_not_the_files_on_disk(repository):
    (repository / "notes.md").write_text("It goes\nIt goes  blip.\n")
    git(repository, "add", ".")
    (repository / "notes.md").write_text("Better.\n")
    assert check(repository) == (1, ['notes.md:2: "goes blip"; write: resumes'])


def test_a_moved_file_has_no_added_lines(repository):
    (repository / "a b").mkdir()
    git(repository, "mv", "code.py", "a b/codé.py")
    assert check(repository) == (0, [])
    with (repository / "a b" / "codé.py").open("a") as file:
        file.write("# frob\n")
    git(repository, "add", ".")
    assert check(repository) == (1, ['a b/codé.py:3: "frob"; write: resumes'])


def test_all_lines_can_be_checked(repository):
    assert check(repository, "--all", "code.py") == (
        1,
        ['code.py:1: """"Wherefore"; write: a verb', 'code.py:2: "frob"; write: resumes'],
    )
    # The title of the table's file is prose, its rows are not.
    assert check(repository, "--all", TABLE) == (1, [f'{TABLE}:1: "frob"; write: resumes'])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.py", "frob = frob(frob.frob)\ngoes_blip = x['unfrob']\n"),
        ("a.py", '"""Call `frob` and `goes blip`."""\nx = "frob_it, re-frob, frobs"  # frob-like\n'),
        ("a.py", 'def f():\n    """It says """\n    x = "Wherefore"\n'),
        ("a.md", "Call `frob`.\n\n```python\nx = frob\n```\n\n    frob --goes blip  # a comment\n"),
        ("Makefile", "frob:\n\tfrob goes blip\n"),
        ("a.json", '{"a": "frob"}'),
    ],
)
def test_code_is_no_prose(name, content):
    assert list(find(read_words(WORDS), {name: content}, None)) == []


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.py", 'x = f"{x} goes blip {x}"\n', 1),
        ("a.py", 'def f():\n    """Do.\n\n    It will FROB.\n    """\n', 4),
        ("a.py", 'def f():\n    """Wherefore it is so."""\n', 2),
        ("a.md", "Text.\n\n    command  # frob\n", 3),
        ("a.yaml", "a: b  # frob\n", 1),
        ("Makefile", "# frob\n", 1),
    ],
)
def test_prose_is_found_in_code(name, content, line):
    (finding,) = find(read_words(WORDS), {name: content}, None)
    assert finding.startswith(f"{name}:{line}: ")


def test_a_file_that_does_not_parse_is_left_to_other_checks():
    assert prose("a.py", 'x = """frob') == {}


def test_hunks_without_added_lines_add_none():
    diff = "+++ b/a.py\n@@ -3,2 +2,0 @@\n-x\n-y\n@@ -9 +7 @@\n-x\n+y\n@@ -20,0 +19,2 @@\n+x\n+y\n"
    assert added_lines(diff) == {"a.py": {7, 19, 20}}


def test_a_text_without_a_table_is_an_error():
    with pytest.raises(ValueError, match="no table of words"):
        read_words("no table")


def test_the_table_of_the_project():
    words = read_words((ROOT / TABLE).read_text(encoding="utf-8"))
    assert len(words) > 40
    assert all(word.better for word in words)
    (goes, *_) = [word for word in words if word.phrase.startswith("goes")]
    assert goes.pattern.search("It Goes\ton.")
