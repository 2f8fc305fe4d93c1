"""Which metric is meant: a run, a metric's file or a backbone by name, and the context in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike, fspath
from pathlib import Path

import torch

from fastdps.contexts.rankings import Ranking, parse_ranking
from fastdps.errors import ConfigError, did_you_mean
from fastdps.metric.backbones import BACKBONES, Backbone
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.perceptual import PerceptualMetric, read_rankings
from fastdps.run_directory import RunDirectory

Context = str | Sequence[str]
#: How many of a run's contexts an error lists.
LISTED = 3


@dataclass(frozen=True)
class ContextLocation:
    """Where one context is: the file, and its row there; `ranking` is None for a metric that belongs to none."""

    path: Path
    row: int
    ranking: Ranking | None


def load(
    source: str | PathLike[str],
    context: Context | None = None,
    *,
    device: str | torch.device | None = None,
    check_values: bool = True,
) -> ImageMetric:
    """A metric to compare images with, from a run's directory, a metric's file, or a backbone by its name.

    `context` is a ranking, "a,b,c,d,e,f" or a list of names, least disruptive first; a run of one context needs none.
    A backbone's name, such as "alexnet", is the unadapted metric, all weights equal. (A directory of that name is
    "./alexnet".) `device` is where it computes, the CPU unless said. See `ImageMetric` for the rest.

    Raises `FastDPSError` that says what there is where nothing, or more than one thing, is meant.

    >>> import fastdps, torch
    >>> m = fastdps.load("alexnet")
    >>> m(torch.zeros(3, 64, 64), torch.ones(3, 64, 64)).shape
    torch.Size([1])
    """
    return load_with_location(source, context, device=device, check_values=check_values)[0]


def load_with_location(
    source: str | PathLike[str],
    context: Context | None = None,
    *,
    device: str | torch.device | None = None,
    check_values: bool = True,
) -> tuple[ImageMetric, ContextLocation | None]:
    """As `load`, with where the metric was found; None for a backbone."""
    text = fspath(source)
    place: ContextLocation | None = None
    if text in BACKBONES:
        if context is not None:
            raise ConfigError(
                f"{text} is a backbone that is not adapted: it has no context. Name a run to find_context one."
            )
        metric = PerceptualMetric(Backbone(text))
    else:
        place = find_context(Path(text), context)
        metric = select_context(PerceptualMetric.load(place.path), place)
    return ImageMetric(metric.to(device or "cpu"), check_values=check_values), place


def find_context(source: Path, context: Context | None) -> ContextLocation:
    """Where a context is in a run's directory or a metric's file. Raises as `load` does."""
    places = list_contexts(source)
    if context is None:
        if len(places) == 1:
            return places[0]
        raise ConfigError(
            f"{source} has {len(places)} contexts. Choose one, least disruptive first, with context="
            f"{_text(places[0])!r} or on the command line --context {_text(places[0])}. There are: {_list(places)}."
        )
    if places[0].ranking is None:
        raise ConfigError(f"{source} was adapted to judgements and has no contexts: leave the context out.")
    text = context if isinstance(context, str) else ",".join(context)
    wanted = parse_ranking(text, sorted(places[0].ranking))
    for place in places:
        if place.ranking == wanted:
            return place
    nearest = sorted(places, key=lambda place: _swaps(place.ranking or (), wanted))
    raise ConfigError(
        f"{source} has no context {','.join(wanted)}. The nearest of its {len(places)}: {_list(nearest)}."
    )


def list_contexts(source: Path) -> list[ContextLocation]:
    """All contexts of a run's directory or a metric's file, in its order. Raises as `load` does."""
    if not source.exists():
        near = did_you_mean(str(source), BACKBONES)
        here = get_close_matches(source.name, _names_beside(source), n=1)
        if here:
            near = f" Did you mean {str(source.with_name(here[0]))!r}?"
        raise ConfigError(
            f"{source} is no run, no metric's file and no backbone.{near} Runs are made by `fastdps train --out RUN`; "
            f"backbones are {', '.join(BACKBONES)}."
        )
    paths = [source]
    if source.is_dir():
        run = RunDirectory(source)
        if not run.config.exists() and not run.metrics()[0].exists():
            run.read_config()  # says that it is no run
        paths = run.metrics()
    places = []
    for path in paths:
        rankings = read_rankings(path)
        places += [ContextLocation(path, row, ranking) for row, ranking in enumerate(rankings)] or [
            ContextLocation(path, 0, None)
        ]
    return places


def select_context(metric: PerceptualMetric, place: ContextLocation) -> PerceptualMetric:
    """A metric with one of the contexts of another, on the same backbone."""
    rankings = [] if place.ranking is None else [place.ranking]
    row = metric.weights[place.row : place.row + 1]
    return PerceptualMetric(metric.backbone, row, rankings, comparison=metric.comparison)


def _names_beside(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


def _text(place: ContextLocation) -> str:
    return ",".join(place.ranking or ())


def _list(places: Sequence[ContextLocation]) -> str:
    shown = "; ".join(_text(place) for place in places[:LISTED])
    return f"{shown}; and {len(places) - LISTED} more" if len(places) > LISTED else shown


def _swaps(a: Ranking, b: Ranking) -> int:
    """Pairs of names that two rankings have in a different order (Kendall's distance)."""
    order = [b.index(name) for name in a]
    return sum(order[i] > order[j] for i in range(len(order)) for j in range(i + 1, len(order)))
