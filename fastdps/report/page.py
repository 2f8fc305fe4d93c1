"""The page of one run: its charts and tables. The text is in `templates/run.html.j2`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastdps.report.adapted_part import adapted_fit
from fastdps.report.agreement import agreement, fit_of
from fastdps.report.charts import COLOURS, Line, lines, ramp, stacked_bars
from fastdps.report.contexts_part import contexts_part
from fastdps.report.judge_charts import shorten
from fastdps.report.markup import ranking_text, render
from fastdps.report.page_parts import Figure
from fastdps.report.profile import profile_section
from fastdps.report.reading import RunRecord
from fastdps.report.usage import usage
from fastdps.run_log import Throughput

#: Number of contexts whose layers are shown, of the hardest and of the easiest each.
SHOWN = 3


def render_run(record: RunRecord, bench: Mapping[str, Any] | None = None) -> str:
    """Render the page of a run.

    Args:
        record: The run.
        bench: Results of `python -m bench --json`, to show the speed by stage.

    Returns:
        The HTML page.

    Raises:
        FastDPSError: A metric of the run is damaged, or `details.json` names a picture outside its directory.
    """
    return render(
        "run.html.j2",
        record=record,
        data=_data(record),
        summary=record.scores["summary"] if record.scores else None,
        part=contexts_part(record),
        usage=usage(record),
        message=(record.adapted or {}).get("message"),
        curves=training_curves([(None, record)]),
        layers=_layers(record),
        agreement=agreement(record),
        fit=fit_of(record) or adapted_fit(record),
        throughput=_throughput(record),
        profile=profile_section(record.profile),
        bench=bench,
        settings=flat(record.config["config"]),
    )


def _data(record: RunRecord) -> dict[str, Any] | None:
    """Return what the page offers as a download: the scores, with name and settings of the run; None without scores."""
    if record.scores is None:
        return None
    return {"run": record.name, "settings": record.config["config"], **record.scores}


def training_curves(records: Sequence[tuple[str | None, RunRecord]]) -> list[Figure]:
    """Return charts of accuracy, loss and speed by step, of one run without a name or of several with names."""
    figures = []
    for title, value, label in (
        ("Accuracy", "accuracy", "accuracy"),
        ("Loss", "loss", "loss"),
        ("Speed", "images_per_s", "images/s"),
    ):
        curves = []
        for name, record in records:
            own = record.curve(value)
            if value == "accuracy":
                own = own + record.validation() if name is None else record.validation()[:1] or own
            curves += own if name is None else [Line(_label_of(name, line, own), line.points) for line in own]
        if curves:
            best = f"{label} by step; the last values are " if len(curves) <= COLOURS else f"{label} by step"
            last = ", ".join(f"{line.name} {line.points[-1][1]:.3g}" for line in curves[:COLOURS])
            chart = lines(
                curves,
                "step",
                label,
                best + (last if len(curves) <= COLOURS else ""),
                y_from_zero=value == "images_per_s",
            )
            figures.append(Figure(title, chart, _legend(curves)))
    return figures


def _label_of(name: str, line: Line, of: Sequence[Line]) -> str:
    return name if len(of) == 1 and line.name == "training" else f"{name}, {line.name}"


def _legend(curves: Sequence[Line]) -> list[tuple[str, str]]:
    """Return a legend; it is empty for a single line, which the title names, and if colours repeat."""
    if not 1 < len(curves) <= COLOURS:
        return []
    return [(f"line-{n}" + (" dashed" if line.dashed else ""), line.name) for n, line in enumerate(curves)]


def _layers(record: RunRecord) -> Figure | None:
    """Return weights by layer: unadapted, mean, hardest and easiest contexts, or the first ones before scoring."""
    layers = record.layers()
    if layers is None:
        return None
    rankings = [tuple(ranking) for ranking in record.config["rankings"]]
    rows = [("unadapted: equal channel weights", layers.equal)]
    mean = layers.shares.mean(axis=0)
    if record.judges:
        mean = layers.shares[0]
        rows += [(title, layers.shares[number]) for title, number in _shown_judges(record, record.judges)]
    elif not rankings:
        rows.append(("adapted to judgements", mean))
    else:
        if len(rankings) > 1:
            rows.append((f"mean of {len(rankings):,} contexts", mean))
        rows += [(title, layers.shares[rankings.index(shown)]) for title, shown in _shown(record, rankings)]
    chart = stacked_bars(
        [(title, shares.tolist()) for title, shares in rows],
        layers.names,
        f"Weights by layer. {'Pooled head' if record.judges else 'On average'}: "
        + ", ".join(f"{name} {share:.0%}" for name, share in zip(layers.names, mean.tolist(), strict=True)),
    )
    legend = [(ramp(number, len(layers.names))[0], name) for number, name in enumerate(layers.names)]
    return Figure("Weights by layer", chart, legend)


def _shown(record: RunRecord, rankings: Sequence[tuple[str, ...]]) -> list[tuple[str, tuple[str, ...]]]:
    """Return titles and rankings of the contexts whose layers are shown."""
    scored = [ranking for row in record.contexts if (ranking := tuple(row["ranking"])) in rankings]
    if len(scored) <= 2 * SHOWN:
        return [(ranking_text(ranking), ranking) for ranking in scored[::-1] or rankings[: 2 * SHOWN]]
    groups = (("easiest", scored[::-1][:SHOWN]), ("hardest", scored[:SHOWN]))
    return [(f"{title}: {ranking_text(ranking)}", ranking) for title, group in groups for ranking in group]


def _shown_judges(record: RunRecord, judges: Sequence[str]) -> list[tuple[str, int]]:
    """Return title and number of the heads whose layers are shown: pooled, and where own heads help the most."""
    scores = record.judgements["judges"] if record.judgements else {}

    def gain(name: str) -> float:
        votes = scores[name]["votes"] if name in scores else None
        return votes["after"]["value"] - votes["pooled"]["value"] if votes and votes["pooled"] else 0.0

    own = sorted(range(1, len(judges)), key=lambda number: -gain(judges[number]))[:SHOWN]
    return [("pooled: all judges together", 0)] + [(f"judge {shorten(judges[number], 40)}", number) for number in own]


def _throughput(record: RunRecord) -> dict[str, Any] | None:
    """Return speed and number of steps, processes and resumptions of a finished training."""
    ends = [entry for entry in record.log if entry["event"] == "end"]
    if not ends:
        return None
    return Throughput.from_log(ends).to_dict() | {
        "processes": ends[-1]["processes"],
        "steps": sum(end["step"] for end in ends),
        "trainings": len(ends),
        "resumed": sum(entry["event"] == "resume" for entry in record.log),
    }


def flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as text: lists with commas, and "default" for None."""

    def text(value: Any) -> str:
        if isinstance(value, list | tuple):
            return ", ".join(map(str, value))
        return "default" if value is None else str(value)

    return {key: text(value) for key, value in settings.items()}
