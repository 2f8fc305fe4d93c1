"""The schemas of the JSON files in a run directory (see `fastdps.runtime.json_files`). Further keys are ignored."""

from __future__ import annotations

from fastdps.runtime.json_files import Anything, Filled, Maybe, Number, Values

_SHARE = Number(0, 1)
_RANKING = [str]
_ACCURACIES = {"baseline_accuracy": _SHARE, "adapted_accuracy": _SHARE}
_COUNT = Number(0, 2**63)

CONFIG = {
    "config": {"recipe": str, "variant": str, "backbone": str, "comparison": str},
    "rankings": [_RANKING],
    "judges?": [str],
    "data": {
        "shards": str,
        "sets?": [{"path": str, "weight": Number(0, 1e300), "samples": int, "sha256": str}],
        "file?": Maybe(str),
        "validation": Maybe(str),
        "size": Maybe(int),
        "image_size?": [int],
        "samples": int,
        "source": {"name?": str},
        "sha256": str,
        "validation_sha256?": Maybe(str),
    },
    "versions": Values(str),
    "machine": Values(str),
    "argv?": Maybe([str]),
    "directory?": str,
    "options?": {
        "execution": {"precision?": str, "accumulate?": int, "compile?": bool, "deterministic?": bool},
        "checkpoints": {"every_steps?": int, "keep?": int},
        "parallel": str,
        "stall_timeout_s": Maybe(float),
        "trackers": [str],
        "loading": {
            "loader?": str,
            "num_threads?": Maybe(int),
            "divide?": str,
            "cache": Maybe({"directory": str, "bytes": int}),
        },
        "moments": {"memory_bytes?": Maybe(int), "disk_bytes?": Maybe(int), "directory": Maybe(str)},
    },
}

_SUBSET = {
    "samples": int,
    "human": Maybe(_SHARE),
    "baseline": _SHARE,
    "adapted": _SHARE,
    "change": Number(-1, 1),
    "unadapted?": Maybe(_SHARE),
    "contexts": [_SHARE],
    "of?": [str],
}
_INTERVAL = {"value": Number(-1, 1), "low": Number(-1, 1), "high": Number(-1, 1)}
_AGREEMENT = {
    "before": _INTERVAL,
    "after": _INTERVAL,
    "change": _INTERVAL,
    "pooled": Maybe(_INTERVAL),
    "unadapted?": Maybe(_INTERVAL),
    "ceiling": _SHARE,
}
_JUDGE = {
    "triplets": int,
    "images": int,
    "ties": int,
    "human": Maybe(_SHARE),
    "votes": _AGREEMENT,
    "majority": Maybe(_AGREEMENT),
}
_INTERVALS = {"intervals?": Maybe(dict.fromkeys(("baseline", "adapted", "change"), _INTERVAL))}
SCORES = {
    "backbone": str,
    "variant": str,
    "comparison": str,
    "recipe": str,
    "contexts": [{"ranking": _RANKING, **_ACCURACIES, **_INTERVALS}],
    "summary": Maybe({"contexts": int, "improved_fraction": _SHARE, **_ACCURACIES, **_INTERVALS}),
    "bapps": Maybe(
        {
            "2afc": Values(_SUBSET),
            "jnd": Values(_SUBSET),
            "averages": {name: Maybe(_SUBSET) for name in ("distort", "real", "all", "jnd", "*")},
        }
    ),
    "judgements?": Maybe(
        {
            "set": {"path": str, "sha256": str, "triplets": int, "images": int},
            "pooled": _JUDGE,
            "judges": Values(_JUDGE),
            "calibration": [{"predicted": _SHARE, "observed": _SHARE, "votes": _COUNT}],
        }
    ),
    "throughput": {
        "images_per_s": Maybe(_COUNT),
        "triplets_per_s": Maybe(_COUNT),
        "data_wait_fraction": Maybe(float),
    },
    "metrics?": Values(str),
    "sets?": [
        {
            "kind": str,
            "name": str,
            "path": str,
            "sha256": str,
            "samples": int,
            "image_size": Maybe([int]),
            "draws": Maybe(int),
            "same_as": Maybe(str),
        }
    ],
}

_EXPECTED = {"accuracy": _INTERVAL, "base": _INTERVAL, "gain": _INTERVAL}
ADAPTED = {
    "base": str,
    "context": Maybe(str),
    "base_weights": [Number(0, 1e300)],
    "prior": str,
    "strength": Maybe(_COUNT),
    "judge_strength": Maybe(_COUNT),
    "verdict": str,
    "forced": bool,
    "judgements": int,
    "contradicting": int,
    "expected": Maybe(_EXPECTED),
    "curve": [{"judgements": _COUNT, "accuracy": _SHARE}],
    "forecast": Maybe({"more": int, "gain": _INTERVAL}),
    "judges": Values(_EXPECTED),
    "message": str,
}

_VIEW = {
    "distortion": str,
    "parameters": Values(float),
    "file": str,
    "baseline_distance": float,
    "adapted_distance": float,
}
_CHOICE_OF_VIEWS = {"sample": int, "reference": str, "closer": _VIEW, "farther": _VIEW}
DETAILS = {
    "held_out": {"shards": str, "samples": int, "draws": int, "interpolation?": str, "sha256": str},
    "pairs": [{"closer": str, "farther": str, "contexts": int, **_ACCURACIES}],
    "examples": [
        {
            "ranking": _RANKING,
            **_ACCURACIES,
            "searched": int,
            "wrong": [_CHOICE_OF_VIEWS],
            "right?": [_CHOICE_OF_VIEWS],
        }
    ],
    "legend?": {
        "sample": int,
        "reference": str,
        "views": [{"distortion": str, "parameters": Values(float), "file": str}],
    },
}

_IMAGE = {"sample": int, "name": str, "file": str}
_CANDIDATE = {**_IMAGE, "baseline_distance": float, "adapted_distance": float}
_JUDGED_EXAMPLE = {
    "reference": _IMAGE,
    "closer": _CANDIDATE,
    "farther": _CANDIDATE,
    "votes_closer": _COUNT,
    "votes_farther": _COUNT,
    "judges": [str],
    "probability": Maybe(_SHARE),
}
JUDGED = {
    "set": {"path": str, "sha256": str},
    "least_votes": _COUNT,
    "searched": int,
    "wrong": int,
    "examples": [_JUDGED_EXAMPLE],
    "corrected?": int,
    "right?": [_JUDGED_EXAMPLE],
}

PROFILE = {
    "device": str,
    "processes": int,
    "steps": int,
    "images": int,
    "seconds": Values(_COUNT),
    "data_wait": _SHARE,
    "images_per_s": Maybe(_COUNT),
    "headspace": Maybe(_COUNT),
    "in_memory_images_per_s": Maybe(_COUNT),
    "limit": Maybe(str),
    "advice": Maybe(str),
    "peak_MiB": _COUNT,
    "device_peak_MiB": Maybe(_COUNT),
    "trace": Maybe(str),
}

#: A record of `log.jsonl`, and further keys by its event.
RECORD = {"event": str, "step": Number(0, 2**63), "context?": int}
_SPEED = {"images_per_s": _COUNT, "triplets_per_s": _COUNT, "data_wait_fraction": float}
# Losses may be NaN: where no judgement was held out.
_CHOICE = {"strength": str, "held_out_loss": Values(Anything())}
RECORDS = {
    "step": {"loss": float, "accuracy": float, **_SPEED},
    "validation": {"accuracies": Filled(_SHARE)},
    "end": {
        "processes": int,
        **_SPEED,
        "features_s?": _COUNT,
        "elapsed_s?": _COUNT,
        "images?": int,
        "triplets?": int,
        "passes?": int,
        "moments?": str,
        "pooled?": _CHOICE,
        "judges?": Maybe(_CHOICE),
    },
}
