"""Export a metric for another library, verify the file, and write a model card beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError, did_you_mean
from fastdps.export.card import describe, finish, paths_beside, to_markdown
from fastdps.export.format import Format
from fastdps.export.lpips_checkpoint import LpipsCheckpoint
from fastdps.export.onnx_model import OnnxModel
from fastdps.export.program import ExportedProgram
from fastdps.export.write import Verified, write_verified
from fastdps.metric.load import Context, load_with_location
from fastdps.run_directory import RunDirectory
from fastdps.runtime.files import json_text

#: The formats by their name, as on the command line.
FORMATS: Mapping[str, Format] = {form.name: form for form in (LpipsCheckpoint(), OnnxModel(), ExportedProgram())}


@dataclass(frozen=True)
class ExportResult:
    """An exported metric.

    Attributes:
        path: The file.
        card_markdown: Its model card, as Markdown.
        card_json: Its model card, as JSON.
        card: The content of the card.
        verified: Result of the comparison with the distances of the other library.
    """

    path: Path
    card_markdown: Path
    card_json: Path
    card: Mapping[str, Any]
    verified: Verified

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            "path": str(self.path),
            "card_markdown": str(self.card_markdown),
            "card_json": str(self.card_json),
            "card": dict(self.card),
            "verified": self.verified._asdict(),
        }


def find_format(name: str, *, with_backbone: bool = False) -> Format:
    """Return a format.

    Args:
        name: One of `FORMATS`.
        with_backbone: Include the backbone, with "lpips".

    Raises:
        ConfigError: The format is unknown, or `with_backbone` is given for another format than "lpips".
    """
    if name not in FORMATS:
        raise ConfigError(f"Unknown format {name!r}.{did_you_mean(name, FORMATS)} Known: {', '.join(sorted(FORMATS))}.")
    if not with_backbone:
        return FORMATS[name]
    if name != LpipsCheckpoint.name:
        raise ConfigError(
            f"--with-backbone is for --format lpips; files of --format {name} always include the backbone."
        )
    return LpipsCheckpoint(with_backbone=True)


def check_path(path: Path, form: Format, *, overwrite: bool) -> None:
    """Raise `ConfigError` if a path has the wrong suffix for a format, or exists and `overwrite` is False."""
    if path.suffix != form.suffix:
        raise ConfigError(
            f"--out {path} must end with {form.suffix} for --format {form.name}: {path.stem}{form.suffix}."
        )
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists already. Choose another --out, or pass --overwrite.")


def export(
    source: str | PathLike[str],
    out: str | PathLike[str],
    format: str = "lpips",
    *,
    context: Context | None = None,
    with_backbone: bool = False,
    overwrite: bool = False,
) -> ExportResult:
    """Export one context of a metric for another library, and write a model card beside the file.

    Before the file gets its name, it is read back with the other library, and distances are compared.

    Args:
        source: Run directory, metric file, or name of a backbone, as for `fastdps.load`.
        out: File to write, ending with the suffix of the format: .pth, .onnx or .pt2.
        format: "lpips" for the `lpips` package, "onnx", or "torch" for torch.export.
        context: The context to export if there are several, see `fastdps.load`.
        with_backbone: With "lpips", include the backbone in the file, so that `lpips` downloads nothing.
        overwrite: Replace an existing file.

    Returns:
        The file, its card, and the result of the verification.

    Raises:
        ConfigError: The format, suffix or context cannot be used, or the other library is not installed.
        FastDPSError: The source cannot be read, or the distances of the other library differ.

    Example:
        >>> export("runs/sample", "sample.pth", context="color,darken,zoom_in,rotate,translate,blur")  # doctest: +SKIP
    """
    form, path = find_format(format, with_backbone=with_backbone), Path(out)
    check_path(path, form, overwrite=overwrite)
    form.require()
    loaded, place = load_with_location(source, context)
    directory = Path(fspath(source))
    run = RunDirectory(directory) if place is not None and directory.is_dir() else None
    known = describe(loaded.metric, place, run)
    markdown, as_json = paths_beside(path)

    def cards(verified: Verified) -> dict[Path, str]:
        card = finish(known, form, loaded.metric, path.name, verified)
        return {markdown: to_markdown(card), as_json: json_text(card)}

    verified = write_verified(loaded.metric, form, path, known, cards)
    card = finish(known, form, loaded.metric, path.name, verified)
    return ExportResult(path, markdown, as_json, card, verified)
