"""The box "Use this metric": three lines of Python and a command that work for this run, and what to know of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from safetensors import SafetensorError, safe_open

from fastdps.errors import FastDPSError
from fastdps.report.markup import element
from fastdps.report.reading import RunRecord


@dataclass(frozen=True)
class Usage:
    """The content of the box.

    Attributes:
        python: Lines of Python. An element of class "chosen" holds the context, if there is one to choose.
        command: A line for the shell, with such an element too.
        notes: Sentences.
    """

    python: Markup
    command: Markup
    notes: Sequence[str]


def usage(record: RunRecord) -> Usage | None:
    """Return the box of a run, None before its metric is complete. Raises `FastDPSError` for a damaged metric."""
    paths = record.run.metrics()
    rankings, judges = record.config["rankings"], record.judges or []
    if not all(path.is_file() for path in paths) or len(paths) not in (1, len(rankings) or len(judges)):
        return None
    metadata = _metadata(paths[0])
    run, size = record.run.path, _size(record, metadata)
    context = ",".join(_best_ranking(record)) if len(rankings) > 1 else None
    chosen = "" if context is None else element("span", context, class_="chosen")
    python_context = "" if context is None else Markup(', context="{}"').format(chosen)
    images = '"one.jpg", "other.jpg"'
    if "image_size" not in metadata:
        images = f'*fastdps.read_images(["one.jpg", "other.jpg"], size={size[0]})'
    python = Markup("import fastdps\nmetric = fastdps.load({}{})\ndistance = metric({})").format(
        _quoted(str(run)), python_context, Markup(images)
    )
    square = f" --size {size[0]}" if size[0] == size[1] else ""
    command = Markup("fastdps score one.jpg photos --metric {}{}{} --top 5").format(
        shlex.quote(str(run)), "" if context is None else Markup(" --context {}").format(chosen), square
    )
    notes = [_about_size(size, metadata), _about_backbone(record, metadata, paths)]
    if context is not None:
        best = ", and this one has the highest accuracy" if record.contexts else ""
        notes.insert(0, f"The run has {len(rankings):,} contexts{best}. Any other of its rankings can be in its place.")
    if len(judges) > 1:
        notes.insert(
            0,
            "Without a context it is the pooled head, for all judges together. To select a judge, add "
            f"context={_quoted(judges[1])} in Python, or --context {shlex.quote(judges[1])}.",
        )
    return Usage(python, command, notes)


def _quoted(text: str) -> str:
    """Return a text as Python has it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise FastDPSError(f"{path} cannot be read as a metric: {error}. Restore it or train again.") from error


def _size(record: RunRecord, metadata: Mapping[str, str]) -> tuple[int, int]:
    """Return height and width of the images of the training; 64 x 64 where nothing says it."""
    if (text := metadata.get("image_size")) and len(sides := text.split("x")) == 2 and all(map(str.isdecimal, sides)):
        return int(sides[0]), int(sides[1])
    data = record.config["data"]
    if data["size"]:
        return data["size"], data["size"]
    known = data.get("image_size") or []
    return (known[0], known[1]) if len(known) == 2 else (64, 64)


def _best_ranking(record: RunRecord) -> Sequence[str]:
    ranking: Sequence[str] = record.contexts[-1]["ranking"] if record.contexts else record.config["rankings"][0]
    return ranking


def _about_size(size: tuple[int, int], metadata: Mapping[str, str]) -> str:
    text = f"{size[1]} x {size[0]} pixels"
    if "image_size" in metadata:
        return f"Files, PIL images and arrays are resized to {text}, the size of the training, which the metric keeps."
    return f"The metric was adapted at {text}; give it images of this size."


def _about_backbone(record: RunRecord, metadata: Mapping[str, str], paths: Sequence[Path]) -> str:
    name = record.config["config"]["backbone"]
    if metadata.get("backbone_weights") == "included":
        where = "the file of the metric holds its backbone" if len(paths) == 1 else "each context has its own backbone"
        return f"Nothing is downloaded: {where}."
    return (
        f"The file of the metric holds the channel weights only. The pretrained {name} is found in FASTDPS_WEIGHTS or "
        "the cache, or downloaded once."
    )
