"""`python -m bench picture`: the time per image of training by parts, as stacked bars in a PNG.

rows of `train` --parts measured alone, and the rest of the total--> ms per image, one bar per row
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.analyse.results import newest_results, read_results
from bench.analyse.tables import describe
from fastdps.errors import ConfigError

#: The parts in the order of the data flow, in the colour-blind-safe colours of Okabe and Ito (2008).
COLOURS = {
    "load": "#56B4E9",
    "distort": "#E69F00",
    "features": "#0072B2",
    "distances": "#009E73",
    "heads": "#CC79A7",
    "rest": "#BBBBBB",
}
#: Parts in dark colours, which have white numbers.
DARK = {"features", "distances"}
#: Parts below this share of the longest bar have no number, since it would not fit.
NARROWEST = 0.05


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: The name of the row.
        whole_ms: The total time per image.
        parts_ms: The time per image of each part, in the order of the data flow, and of the rest.
        beside_ms: The time per image of parts that run concurrently with the others.
    """

    label: str
    whole_ms: float
    parts_ms: dict[str, float]
    beside_ms: dict[str, float]


def bars(results: dict[str, Any]) -> list[Bar]:
    """Return a bar for each row of `train` that has parts and trains heads only, and for the baseline.

    On a GPU, loading runs concurrently and is not part of the sum. The rest is the total minus the parts.

    Raises:
        ConfigError: There is no such row.
    """
    on_gpu = results["settings"]["device"] != "cpu"
    found = []
    for row in results["measurements"]:
        if row["stage"] != "train" or not row["parts_s"] or row["what"].startswith(("tune", "shared")):
            continue
        whole_ms = 1e3 / row["median"]
        alone_ms = {name: 1e3 * row["parts_s"][name] for name in COLOURS if name in row["parts_s"]}
        beside_ms = {name: part_ms for name, part_ms in alone_ms.items() if on_gpu and name == "load"}
        parts_ms = {name: part_ms for name, part_ms in alone_ms.items() if name not in beside_ms}
        parts_ms["rest"] = max(0.0, whole_ms - sum(parts_ms.values()))
        found.append(Bar(row["what"], whole_ms, parts_ms, beside_ms))
    if not found:
        raise ConfigError("the results have no row of train with parts. Measure with `python -m bench train --json F`.")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m bench picture`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="results (default: the newest of bench/results)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture to write")


def run(arguments: argparse.Namespace) -> None:
    """Draw the picture. Raises `ConfigError` for results without parts, another file type, or without matplotlib."""
    if arguments.out.suffix.lower() != ".png":
        raise ConfigError(f"--out is {arguments.out}; the picture is a PNG, so name it FILE.png.")
    path = arguments.json or newest_results()
    results = read_results(path)
    draw(bars(results), describe(results), arguments.out)
    print(f"{arguments.out}: picture of {path}")


def draw(rows: list[Bar], caption: str, out: Path) -> None:
    """Draw one bar per row, the first on top, each with a line at the total time.

    Args:
        rows: The bars.
        caption: The title.
        out: The PNG file.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"pictures need matplotlib ({error}). Install it with `pip install 'fastdps[bench]'`."
        ) from error

    figure = Figure(figsize=(9, 1.6 + 0.62 * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots()
    widest_ms = max(max(bar.whole_ms, sum(bar.parts_ms.values())) for bar in rows)
    for position, bar in enumerate(rows):
        left_ms = 0.0
        for name, part_ms in bar.parts_ms.items():
            label = name if position == 0 else "_" + name  # the legend lists each part once
            axes.barh(
                position, part_ms, 0.62, left_ms, color=COLOURS[name], edgecolor="white", linewidth=0.6, label=label
            )
            if part_ms > NARROWEST * widest_ms:
                colour = "white" if name in DARK else "black"
                middle_ms = left_ms + part_ms / 2
                axes.text(middle_ms, position, f"{part_ms:.2f}", ha="center", va="center", color=colour, fontsize=8)
            left_ms += part_ms
        axes.plot([bar.whole_ms] * 2, [position - 0.38, position + 0.38], color="black", linewidth=1.4)
        beside = "".join(f"; {name}, concurrent, {part_ms:.3f} ms" for name, part_ms in bar.beside_ms.items())
        text = f" {bar.whole_ms:.2f} ms{beside}"
        axes.text(max(left_ms, bar.whole_ms), position, text, ha="left", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [bar.label for bar in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * widest_ms)
    axes.set_xlabel("ms per image, end to end (black line); its parts, measured alone, and the rest")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(caption, fontsize=8, loc="left")
    figure.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False, fontsize=9)
    figure.savefig(out, format="png")
