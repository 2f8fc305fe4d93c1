"""Add pages that live outside docs/ to the site of `make docs`; a hook of mkdocs, see mkdocs.yml.

The README, the shard format, the bench and the project's notes stay where readers of the repository look for them.
Links are rewritten so that they work in both places.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parent.parent
#: Path in the repository -> path in the site; everything in docs/ keeps its name.
PAGES = {
    "README.md": "index.md",
    "shards/README.md": "shards.md",
    "bench/README.md": "bench.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"(\]\()([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/."""
    from mkdocs.structure.files import File

    for source, target in PAGES.items():
        text = relink((ROOT / source).read_text(encoding="utf-8"), source)
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of the pages in docs/."""
    return markdown if page.file.src_uri in PAGES.values() else relink(markdown, f"docs/{page.file.src_uri}")


def relink(markdown: str, source: str) -> str:
    """Return the text of a file of the repository with its relative links rewritten for the site.

    Args:
        markdown: The text.
        source: The path of the file in the repository.
    """
    here = posixpath.dirname(site_path(source))

    def rewrite(link: re.Match[str]) -> str:
        target = link[2]
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        return link[1] + posixpath.relpath(site_path(path), here or ".")

    return _LINK.sub(rewrite, markdown)


def site_path(path: str) -> str:
    """Return the path in the site of a path in the repository, unchanged where the site does not have it."""
    return PAGES.get(path, path.removeprefix("docs/"))
