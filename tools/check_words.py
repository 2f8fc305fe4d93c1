"""Check added lines for words that CONTRIBUTING.md advises against; a pre-commit hook.

    python tools/check_words.py                  # lines that are staged for the next commit
    python tools/check_words.py --since main     # lines added since a commit, in the working tree
    python tools/check_words.py --all docs       # all lines of tracked files

Only prose is checked: comments and strings of Python files, comments of shell, TOML, YAML and make files, and Markdown
without its code. Names in backticks are code as well. Needs Python's standard library and git only.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

#: The file with the table of words, between two marker comments, and the first column of its heading.
TABLE = "CONTRIBUTING.md"
BEGIN, END = "<!-- words:begin -->", "<!-- words:end -->"
_HEADING = "avoid"
_HUNK = re.compile(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@")
_CODE = re.compile(r"`[^`]*`")
_COMMENTED = {".sh", ".sbatch", ".toml", ".yaml", ".yml", ".cff"}
_COMMENTED_NAMES = {"Makefile", "run"}
#: Kinds of tokens with prose; an f-string is several tokens from Python 3.12 on.
_PROSE = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


class Word(NamedTuple):
    """A row of the table: one phrase to avoid, a pattern that finds it, and what to write instead."""

    phrase: str
    pattern: re.Pattern[str]
    better: str


def read_words(text: str) -> list[Word]:
    """Return the words of the table in a Markdown text.

    Args:
        text: Text with the two marker comments. Phrases to avoid are separated by commas; upper and lower case count
            as the same except in a phrase that begins with quotes, which is the beginning of a docstring.

    Raises:
        ValueError: There is no table between the markers.
    """
    words = []
    for line in text.partition(BEGIN)[2].partition(END)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) != 2 or cells[0] == _HEADING or set(cells[0]) <= set("-:"):
            continue
        for phrase in (part.strip(" `") for part in cells[0].split(",")):
            body = r"\s+".join(re.escape(part) for part in phrase.split())
            before = r"(?<![\w-])" if phrase[0].isalnum() else ""
            flags = re.NOFLAG if phrase[0] == '"' else re.IGNORECASE
            words.append(Word(phrase, re.compile(rf"{before}{body}(?![\w-])", flags), cells[1]))
    if not words:
        raise ValueError(f"{TABLE} has no table of words between {BEGIN} and {END}.")
    return words


def prose(name: str, content: str) -> dict[int, str]:
    """Return the prose of a file by line number, from 1; nothing for a file of an unknown kind."""
    path = Path(name)
    if path.suffix == ".py":
        lines = _python_prose(content)
    elif path.suffix == ".md":
        lines = _markdown_prose(content)
    elif path.suffix in _COMMENTED or path.name in _COMMENTED_NAMES:
        lines = {number: line.partition("#")[2] for number, line in enumerate(content.splitlines(), 1) if "#" in line}
    else:
        return {}
    return {number: _CODE.sub("``", line) for number, line in lines.items()}


def _python_prose(content: str) -> dict[int, str]:
    lines: dict[int, str] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(content).readline):
            if token.type in _PROSE:
                for number, line in enumerate(token.string.split("\n"), token.start[0]):
                    lines[number] = f"{lines[number]} {line}" if number in lines else line
    except (tokenize.TokenError, SyntaxError):
        return {}  # ruff reports it
    return lines


def _markdown_prose(content: str) -> dict[int, str]:
    lines, is_code, is_table = {}, False, False
    for number, line in enumerate(content.splitlines(), 1):
        is_table = (is_table or line == BEGIN) and line != END
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code and not is_table:
            # Of an indented block, which is code, the comments are prose.
            lines[number] = line.partition("#")[2] if line.startswith("    ") else line
    return lines


def added_lines(diff: str) -> dict[str, set[int]]:
    """Return the numbers of the added lines by file, from a diff without context lines."""
    added: dict[str, set[int]] = {}
    name = ""
    for line in diff.splitlines():
        if line.startswith("+++ "):
            name = line[4:].removeprefix("b/").rstrip("\t")
        elif hunk := _HUNK.match(line):
            start, count = int(hunk[1]), int(hunk[2] or 1)
            added.setdefault(name, set()).update(range(start, start + count))
    return added


def find(words: Sequence[Word], texts: Mapping[str, str], added: Mapping[str, set[int]] | None) -> Iterator[str]:
    """Yield a line for each word to avoid: file:line, the word, the better one.

    Args:
        words: The table.
        texts: Content by file name.
        added: The lines to check by file name, or None for all.
    """
    for name, content in texts.items():
        for number, line in sorted(prose(name, content).items()):
            if added is None or number in added[name]:
                for word in words:
                    if word.pattern.search(line):
                        yield f'{name}:{number}: "{word.phrase}"; write: {word.better}'


def _git(*arguments: str) -> str:
    command = ["git", "-c", "core.quotepath=off", *arguments]
    return subprocess.run(command, capture_output=True, check=True, encoding="utf-8", errors="replace").stdout


def _read(name: str) -> str:
    return Path(name).read_text(encoding="utf-8", errors="replace")


def _added_texts(since: str | None) -> tuple[dict[str, str], dict[str, set[int]]]:
    revision = "--cached" if since is None else since
    options = ("--unified=0", "--no-color", "--no-ext-diff", "--find-renames", "--diff-filter=AMR")
    added = added_lines(_git("diff", *options, "--src-prefix=a/", "--dst-prefix=b/", revision))
    return {name: _git("show", f":{name}") if since is None else _read(name) for name in added}, added


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 if there are any."""
    parser = argparse.ArgumentParser(description="Check added lines for words that CONTRIBUTING.md advises against.")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--since", metavar="REV", help="lines added since a commit (default: staged lines)")
    group.add_argument("--all", nargs="*", metavar="PATH", help="all lines of tracked files")
    arguments = parser.parse_args(argv)
    words = read_words(_read(str(Path(_git("rev-parse", "--show-toplevel").strip()) / TABLE)))
    added: dict[str, set[int]] | None = None
    if arguments.all is None:
        texts, added = _added_texts(arguments.since)
    else:
        texts = {name: _read(name) for name in _git("ls-files", "--", *arguments.all).splitlines()}
    findings = list(find(words, texts, added))
    print("\n".join(findings), end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
