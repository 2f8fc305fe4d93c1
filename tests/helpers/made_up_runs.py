"""Generated run directories for tests of evaluation and reports, without training and without torch."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

NAMES = ("rotate", "translate", "darken", "color", "blur", "zoom_in")
CHANNELS = (64, 192, 384, 256, 256)
SETTINGS = {
    "recipe": "fast",
    "variant": "lin",
    "backbone": "alexnet",
    "taps": None,
    "comparison": "spatial",
    "epochs": 2,
    "learning_rate": 0.04,
}


def make_run(
    path: Path,
    rankings: list[list[str]] | None = None,
    *,
    scored: bool = True,
    examples: bool = True,
    bapps: bool = True,
    validation: bool = True,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Write a finished run of some contexts (default: 24 of the 720) with the requested results; return `path`.

    An empty list of rankings makes a run on judgements. `scored` and `bapps` write `scores.json`, `examples` writes
    `details.json` (if `scored`), `validation` logs two validations. `settings` override those of `SETTINGS`.
    """
    path.mkdir(parents=True)
    random = np.random.default_rng(seed)
    if rankings is None:
        rankings = [list(ranking) for ranking in itertools.islice(itertools.permutations(NAMES), 0, 720, 30)]
    heads = max(1, len(rankings))
    (path / "config.json").write_text(json.dumps(_config(path, rankings, settings)))
    write_metric(path / "metric.safetensors", random.uniform(0, 1, (heads, sum(CHANNELS))), rankings)
    log = [step(n, loss=0.5 / n, accuracy=0.8 - 0.3 / n) for n in range(20, 2000, 20)]
    if validation:
        log += [
            {"event": "validation", "epoch": n, "step": 990 * n, "accuracies": random.uniform(0.6, 0.9, heads).tolist()}
            for n in (1, 2)
        ]
    log.append({"event": "end", "step": 1980, "processes": 2, **speed()})
    write_log(path, log)
    before, after = random.uniform(0.2, 0.8, (2, len(rankings)))
    contexts = [
        {"ranking": ranking, "baseline_accuracy": b, "adapted_accuracy": a, "intervals": intervals(b, a)}
        for ranking, b, a in zip(rankings, before.tolist(), after.tolist(), strict=True)
    ]
    names = {name: SETTINGS[name] for name in ("backbone", "variant", "comparison", "recipe")}
    scores: dict[str, Any] = {**names, "contexts": [], "summary": None, "bapps": None, "throughput": speed()}
    if scored:
        scores |= {"contexts": contexts, "summary": _summary(before, after)}
    if bapps:
        scores["bapps"] = judged(heads)
    if scored or bapps:
        (path / "scores.json").write_text(json.dumps(scores))
    if scored and examples:
        write_details(path, contexts)
    return path


def _config(path: Path, rankings: list[list[str]], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`."""
    return {
        "config": SETTINGS | settings,
        "rankings": rankings,
        "data": {
            "shards": f"{path.parent}/data/train",
            "validation": None,
            "size": None,
            "samples": 560,
            "source": {},
            "sha256": "ab" * 32,
            "validation_sha256": None,
        },
        "versions": {"fastdps": "0.1.0", "torch": "2.14"},
        "machine": {"python": "3.11", "platform": "Linux"},
    }


def _summary(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return the summary in `scores.json` of the accuracies (contexts,) before and after adapting."""
    return {
        "contexts": len(after),
        "improved_fraction": float((after > before).mean()),
        "baseline_accuracy": float(before.mean()),
        "adapted_accuracy": float(after.mean()),
        "intervals": intervals(float(before.mean()), float(after.mean())),
    }


def intervals(before: float, after: float) -> dict[str, Any]:
    """Return the intervals of two accuracies and of their change."""
    named = (("baseline", before, 0.01), ("adapted", after, 0.02), ("change", after - before, 0.03))
    return {name: {"value": v, "low": max(-1, v - half), "high": min(1, v + half)} for name, v, half in named}


def make_sweep(path: Path, cases: int = 4) -> Path:
    """Write a finished sweep of some cases that differ in two settings; return `path`."""
    for number in range(cases):
        settings = {"learning_rate": 0.01 * (1 + number // 2), "comparison": ("spatial", "mean")[number % 2]}
        name = ",".join(f"{key}={value}" for key, value in settings.items())
        make_run(path / "cases" / name, [list(NAMES), list(NAMES[::-1])], seed=number, **settings)
    mean = {"mean": 0.5, "low": 0.4, "high": 0.6}
    names = ("improved_fraction", "baseline_accuracy", "adapted_accuracy", "worst_adapted_accuracy")
    summary = {"cases": cases, "contexts": 2 * cases, "confidence": 0.95, **dict.fromkeys(names, mean)}
    (path / "sweep.json").write_text(json.dumps({"summary": summary, "rows": []}))
    return path


def step(number: int, **values: float) -> dict[str, Any]:
    """Return a "step" record of the log."""
    return {"event": "step", "epoch": 1, "step": number, "learning_rate": 0.01, **values, **speed()}


def speed() -> dict[str, float]:
    """Return the rates of a log record."""
    return {"images_per_s": 250.0, "triplets_per_s": 2.7e6, "data_wait_fraction": 0.012}


def write_log(path: Path, records: list[dict[str, Any]]) -> None:
    """Write `log.jsonl`."""
    (path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_metric(path: Path, weights: np.ndarray[Any, Any], rankings: list[list[str]], **metadata: str) -> None:
    """Write the file of a metric, in the format documented in `fastdps.metric.perceptual`."""
    of_alexnet = {"taps": "[1, 4, 7, 9, 11]", "channels": json.dumps(CHANNELS), "comparison": "spatial"}
    path.parent.mkdir(exist_ok=True)
    save_file(
        {"weights": weights.astype(np.float32)}, path, {**of_alexnet, "rankings": json.dumps(rankings), **metadata}
    )


def judged(contexts: int) -> dict[str, Any]:
    """Return the value of "bapps" in `scores.json`: two sub-sets of 2AFC, one of JND."""

    def scores(human: float | None, baseline: float, adapted: float) -> dict[str, Any]:
        values = [adapted] * contexts
        change = {"baseline": baseline, "adapted": adapted, "change": adapted - baseline}
        return {"samples": 4720, "human": human, **change, "contexts": values}

    everything = scores(0.74, 0.7, 0.69)
    return {
        "2afc": {"traditional": scores(0.8, 0.71, 0.7), "cnn": everything},
        "jnd": {"cnn": scores(None, 0.6, 0.61)},
        "averages": {
            "distort": {"of": ["traditional", "cnn"], **everything},
            "real": None,
            "all": {"of": ["traditional", "cnn"], **everything},
            "jnd": {"of": ["cnn"], **scores(None, 0.6, 0.61)},
        },
    }


def write_details(path: Path, contexts: list[dict[str, Any]]) -> None:
    """Write `details.json` and its pictures, with a wrong and a corrected choice in the hardest context only."""
    hardest, *others = sorted(contexts, key=lambda context: context["adapted_accuracy"])
    names = hardest["ranking"]
    (path / "examples").mkdir()
    views = [f"legend-{number}.png" for number in range(len(names))]
    for name in ("0-7.png", "0-7-a.png", "0-7-b.png", "0-8.png", "0-8-a.png", "0-8-b.png", "legend.png", *views):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "teal").save(buffer, "PNG")
        (path / "examples" / name).write_bytes(buffer.getvalue())

    def view(name: str, file: str, distance: float) -> dict[str, Any]:
        distances = {"baseline_distance": 2 * distance, "adapted_distance": distance}
        return {"distortion": name, "parameters": {"amount": 0.25}, "file": file, **distances}

    def choice(sample: int, closer: float, farther: float) -> dict[str, Any]:
        return {
            "sample": sample,
            "reference": f"0-{sample}.png",
            "closer": view(names[0], f"0-{sample}-a.png", closer),
            "farther": view(names[-1], f"0-{sample}-b.png", farther),
        }

    shown = {"wrong": [choice(7, 0.2, 0.1)], "right": [choice(8, 0.1, 0.2)]}
    pairs = [
        {"closer": a, "farther": b, "contexts": 12, "baseline_accuracy": 0.25, "adapted_accuracy": 0.75}
        for a, b in itertools.permutations(names, 2)
    ]
    content = {
        "format_version": 1,
        "held_out": {"shards": "data/val", "samples": 140, "draws": 5, "sha256": "cd" * 32},
        "pairs": pairs,
        "examples": [
            {**context, "searched": 50, **(shown if context is hardest else {"wrong": [], "right": []})}
            for context in (hardest, *others[:1])
        ],
        "legend": {
            "sample": 9,
            "reference": "legend.png",
            "views": [
                {"distortion": name, "parameters": {"amount": 0.5}, "file": file}
                for name, file in zip(names, views, strict=True)
            ],
        },
    }
    (path / "details.json").write_text(json.dumps(content))
