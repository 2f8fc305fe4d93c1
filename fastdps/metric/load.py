"""Load a metric from a run directory, a metric file or by its name, and select its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from os import PathLike, fspath
from pathlib import Path

import torch

from fastdps.contexts.judgements import POOLED
from fastdps.contexts.rankings import Ranking, parse_ranking
from fastdps.errors import ConfigError, FastDPSError, did_you_mean
from fastdps.metric.backbones import BACKBONES
from fastdps.metric.hub import PREFIX
from fastdps.metric.hub_metric import open_hub_metric
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.kept_scores import kept_scores
from fastdps.metric.metric_file import read_contexts
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.published import LPIPS, is_published, load_published
from fastdps.run_directory import RunDirectory

Context = str | Sequence[str]
#: Number of contexts that an error message lists.
SHOWN_CONTEXTS = 3


@dataclass(frozen=True)
class ContextLocation:
    """The location of one context.

    Attributes:
        path: The metric file.
        row: The row of the context's weights in it.
        ranking: The ranking, or None for a metric that was not adapted to a ranking.
        judge: The name of the judge, or None for a metric that was not adapted to judgements with names.
    """

    path: Path
    row: int
    ranking: Ranking | None
    judge: str | None = None


def load(
    source: str | PathLike[str],
    context: Context | None = None,
    *,
    device: str | torch.device | None = None,
    check_values: bool = True,
) -> ImageMetric:
    """Load a metric that compares images.

    Args:
        source: A run directory, a metric file, a metric on the Hugging Face hub, or a name. On the hub it is
            "hub:user/name", or "hub:user/name@revision" with a branch, a tag or a commit. The name of a backbone such
            as "alexnet" gives the unadapted metric: all weights are equal. "lpips", "lpips/vgg" and "lpips/squeeze" are
            LPIPS with its published heads (version 0.1; "lpips" is on AlexNet), if that package is installed. (A
            directory of that name is "./alexnet".)
        context: The ranking to select, as "a,b,c,d,e,f" or a list of names, least disruptive first; or the name of a
            judge. A run with one context needs none, and a run on judgements gives the pooled judge without it.
        device: The device of the metric; None for the CPU.
        check_values: See `ImageMetric`.

    Returns:
        The metric in one context.

    Raises:
        ConfigError: The source does not exist, or the context does not, or is not given where there are several. The
            message lists what exists.
        FastDPSError: The metric file cannot be read.

    Example:
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
    """Load a metric as `load` does, and return it with its location, which is None for a backbone."""
    text = fspath(source)
    place: ContextLocation | None = None
    if is_published(text):
        if context is not None:
            what = "has its published heads" if text in LPIPS else "is a backbone that is not adapted"
            raise ConfigError(f"{text} {what}: it has no contexts. Name a run instead.")
        metric = load_published(text)
    else:
        place = _find_on_hub(text, context) if text.startswith(PREFIX) else find_context(Path(text), context)
        metric = select_context(PerceptualMetric.load(place.path), place)
        if scores := kept_scores(place.path, place.ranking, place.judge):
            metric.origin = replace(metric.origin, scores=scores)
    return ImageMetric(metric.to(device or "cpu"), check_values=check_values), place


def local_path(source: str) -> Path:
    """Return the path of a run or a metric file; of an address on the hub, that of a directory with all its metrics.

    Raises:
        ConfigError: The address does not exist.
        FastDPSError: The hub cannot be reached, or has other files than were pushed.
    """
    return open_hub_metric(source).fetch_all() if source.startswith(PREFIX) else Path(source)


def _find_on_hub(source: str, context: Context | None) -> ContextLocation:
    """Return the location of a context on the hub, whose file is downloaded. Raises what `load` raises."""
    found = open_hub_metric(source)
    places = [ContextLocation(Path(one.file), one.row, one.ranking, one.judge) for one in found.contexts]
    place = _choose(source, places, context)
    path = found.fetch(place.path.as_posix())
    if (place := replace(place, path=path)) not in list_contexts(path):
        raise FastDPSError(
            f"{found.address} is damaged: {path.name} does not have the context {_text(place)} in row {place.row}. Ask "
            "the owner of the repository to push the metric again."
        )
    return place


def find_context(source: Path, context: Context | None) -> ContextLocation:
    """Return the location of a context in a run directory or a metric file. Raises what `load` raises."""
    return _choose(source, list_contexts(source), context)


def _choose(source: str | Path, places: Sequence[ContextLocation], context: Context | None) -> ContextLocation:
    """Return the location of a context among those of a source. Raises what `load` raises."""
    if context is None:
        if len(places) == 1 or places[0].judge == POOLED:
            return places[0]
        raise ConfigError(
            f"{source} has {len(places)} contexts. Choose one, least disruptive first, with context="
            f"{_text(places[0])!r} or on the command line --context {_text(places[0])}. It has: {_list(places)}."
        )
    if places[0].judge is not None:
        return _find_judge(source, places, context)
    if places[0].ranking is None:
        raise ConfigError(f"{source} was adapted to judgements and has no contexts: leave the context out.")
    text = context if isinstance(context, str) else ",".join(context)
    wanted = parse_ranking(text, sorted(places[0].ranking))
    for place in places:
        if place.ranking == wanted:
            return place
    nearest = sorted(places, key=lambda place: _swaps(place.ranking or (), wanted))
    raise ConfigError(
        f"{source} has no context {','.join(wanted)}. The nearest of its {len(places)} contexts: {_list(nearest)}."
    )


def _find_judge(source: str | Path, places: Sequence[ContextLocation], context: Context) -> ContextLocation:
    """Return the location of a judge. Raises `ConfigError`, which lists the judges."""
    names = [place.judge or "" for place in places]
    wanted = context if isinstance(context, str) else ",".join(context)
    if wanted in names:
        return places[names.index(wanted)]
    raise ConfigError(
        f"{source} has no judge {wanted!r}.{did_you_mean(wanted, names)} Its {len(names)} judges: {_list(places)}."
    )


def list_contexts(source: Path) -> list[ContextLocation]:
    """Return the contexts of a run directory or a metric file, in its order. Raises what `load` raises."""
    if not source.exists():
        near = did_you_mean(str(source), [*BACKBONES, *LPIPS])
        here = get_close_matches(source.name, _names_beside(source), n=1)
        if here:
            near = f" Did you mean {str(source.with_name(here[0]))!r}?"
        raise ConfigError(
            f"{source} is not a run, a metric file or a backbone.{near} `fastdps train --out RUN` creates a run; "
            f"backbones are {', '.join(BACKBONES)}; lpips has its published heads."
        )
    paths = [source]
    if source.is_dir():
        run = RunDirectory(source)
        if not run.config.exists() and not run.metrics()[0].exists():
            run.read_config()  # raises the error that it is not a run
        paths = run.metrics()
    places = []
    for path in paths:
        rankings, judges = read_contexts(path)
        places += [ContextLocation(path, row, ranking) for row, ranking in enumerate(rankings)]
        places += [ContextLocation(path, row, None, judge) for row, judge in enumerate(judges)]
        if not rankings and not judges:
            places.append(ContextLocation(path, 0, None))
    return places


def select_context(metric: PerceptualMetric, place: ContextLocation) -> PerceptualMetric:
    """Return a metric with one of the contexts of `metric`, on the same backbone."""
    rankings = [] if place.ranking is None else [place.ranking]
    row = metric.weights[place.row : place.row + 1]
    judges = [] if place.judge is None else [place.judge]
    selected = PerceptualMetric(metric.backbone, row, rankings, comparison=metric.comparison, judges=judges)
    selected.origin = metric.origin if len(metric.weights) == 1 else replace(metric.origin, scores=())
    return selected


def _names_beside(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


def _text(place: ContextLocation) -> str:
    return place.judge or ",".join(place.ranking or ())


def _list(places: Sequence[ContextLocation]) -> str:
    shown = "; ".join(_text(place) for place in places[:SHOWN_CONTEXTS])
    return f"{shown}; and {len(places) - SHOWN_CONTEXTS} more" if len(places) > SHOWN_CONTEXTS else shown


def _swaps(a: Ranking, b: Ranking) -> int:
    """Return the number of pairs of names in different order (Kendall's tau distance)."""
    order = [b.index(name) for name in a]
    return sum(order[i] > order[j] for i in range(len(order)) for j in range(i + 1, len(order)))
