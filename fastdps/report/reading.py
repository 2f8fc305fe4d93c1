"""Read a run for its report, from the files of the run directory. Needs no shards and no torch."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fastdps.errors import FastDPSError
from fastdps.evaluation.scored_sets import seen_as, warnings
from fastdps.report.charts import Line
from fastdps.report.resume import is_judgement_set, train_command
from fastdps.run_directory import RunDirectory
from fastdps.runtime.json_files import check, parse_json, read_object
from fastdps.shards.credentials import without_credentials
from fastdps.shards.storage import locate

#: File names that pictures of examples can have: a path out of the directory does not match.
_PICTURE = re.compile(r"[\w-]+\.png", re.ASCII)


@dataclass(frozen=True)
class Layers:
    """Distribution of the channel weights over the tapped layers.

    Attributes:
        names: Names of the T layers; a comparison of two kinds has each layer twice.
        shares: Share of each layer in the weights of each context, (K, T); rows add up to one.
        equal: Shares of the unadapted metric, which has equal channel weights, (T,).
    """

    names: list[str]
    shares: NDArray[np.float64]
    equal: NDArray[np.float64]


@dataclass(frozen=True)
class RunRecord:
    """The content of a run directory.

    Attributes:
        run: The directory.
        config: Content of `config.json`.
        scores: Content of `scores.json`, None before `fastdps evaluate`.
        details: Content of `details.json`, None before `fastdps evaluate` or if its format version is another one.
        log: Records of `log.jsonl`.
        judged: Content of `judged.json`, None before an evaluation on a judgement set or if it belongs to another one.
        profile: Content of `profile.json`, None without `--profile`.
        adapted: Content of `adapted.json`, None for a run that `fastdps train` made.
    """

    run: RunDirectory
    config: dict[str, Any]
    scores: dict[str, Any] | None
    details: dict[str, Any] | None
    log: list[dict[str, Any]]
    judged: dict[str, Any] | None = None
    profile: dict[str, Any] | None = None
    adapted: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.run.path.resolve().name

    @property
    def has_contexts(self) -> bool:
        """True if the run was adapted to contexts, False if to judgements."""
        return bool(self.config["rankings"])

    @property
    def judges(self) -> list[str] | None:
        """The names of the heads of a run that were fitted to judgements, the pooled one first; None for other runs."""
        judges: list[str] | None = self.config.get("judges")
        return judges

    @property
    def has_judgement_set(self) -> bool:
        """True if the run was adapted to a judgement set, False if to contexts or to a set of triplets."""
        return self.judges is not None and is_judgement_set(self.config)

    @property
    def judgements(self) -> dict[str, Any] | None:
        """The agreement with the judges of a judgement set, see `fastdps.evaluation.judged_scores`."""
        return self.scores.get("judgements") if self.scores else None

    @property
    def contexts(self) -> list[dict[str, Any]]:
        """The scores of the contexts, lowest accuracy first; empty before they are scored."""
        rows = self.scores["contexts"] if self.scores else []
        return sorted(rows, key=lambda row: row["adapted_accuracy"])

    @property
    def bapps(self) -> dict[str, Any] | None:
        """The agreement with people, see `fastdps.evaluation.run_scores.HumanAgreement`."""
        return self.scores["bapps"] if self.scores else None

    @property
    def sets(self) -> list[dict[str, Any]]:
        """The sets that the run was scored on, see `fastdps.evaluation.scored_sets`.

        Versions before 0.2 did not list them; then it is the set of the contexts alone, from `details.json`.
        """
        if self.scores is None:
            return []
        if "sets" in self.scores:
            return list(self.scores["sets"])
        if self.details is None:
            return []
        held_out = self.details["held_out"]
        known = {"sha256": held_out["sha256"], "samples": held_out["samples"], "draws": held_out["draws"]}
        same_as = seen_as(held_out["sha256"], self.config)
        return [{"kind": "contexts", "name": "", "path": held_out["shards"], **known, "same_as": same_as}]

    def seen_as(self, kind: str) -> str | None:
        """Return whether the run has seen the first set of some kind: "training", "validation" or None."""
        return next((one["same_as"] for one in self.sets if one["kind"] == kind), None)

    @property
    def warnings(self) -> list[str]:
        """What limits the scores: sets that the run has seen. The section on judges names its training set itself."""
        judged = ["judgements"] if self.seen_as("judgements") == "validation" else []
        return warnings(self.sets, "contexts", "2afc", "jnd", *judged)

    @property
    def mixed_sets(self) -> list[str]:
        """The sets that were mixed in the training, each with its share; empty for a single one."""
        sets = self.config["data"].get("sets", [])
        total = sum(one["weight"] for one in sets) or 1
        return [f"{one['path']} ({one['weight'] / total:.3g} of each batch)" for one in sets]

    @property
    def evaluate_command(self) -> str:
        """The command that scores the run, on `val` beside the training data if the run has not seen that."""
        data = self.config["data"]
        train = None if data.get("sets") else locate(data["shards"])
        held_out = train.with_name("val") if isinstance(train, Path) and train.name == "train" else None
        is_unseen = held_out is not None and held_out.is_dir() and str(held_out) != data["validation"]
        shards = shlex.quote(str(held_out)) if is_unseen else "HELD_OUT"
        option = "--judgements" if self.has_judgement_set else "--shards"
        return f"fastdps evaluate {shlex.quote(str(self.run.path))} {option} {shards}"

    @property
    def bapps_command(self) -> str:
        """The command that scores the run on human judgement."""
        return f"fastdps evaluate {shlex.quote(str(self.run.path))} --bapps BAPPS"

    @property
    def train_command(self) -> str:
        """The command that resumes the training."""
        return train_command(self.run.path)

    def curve(self, value: str) -> list[Line]:
        """Return a value of the "step" records of the log by step: one line per training of the run."""
        trainings: dict[int | None, list[tuple[float, float]]] = {}
        for record in self.log:
            if record["event"] == "step":
                trainings.setdefault(record.get("context"), []).append((record["step"], record[value]))
        return [
            Line("training" if context is None else f"context {context}", points)
            for context, points in trainings.items()
        ]

    def validation(self) -> list[Line]:
        """Return the validation accuracy by step: mean and worst context, or one line per training of the run."""
        records = [record for record in self.log if record["event"] == "validation"]
        if any("context" in record for record in records):
            numbers = dict.fromkeys(record["context"] for record in records)
            return [
                Line(
                    f"context {number}, validation",
                    [(r["step"], r["accuracies"][0]) for r in records if r["context"] == number],
                    dashed=True,
                )
                for number in numbers
            ]
        if not records:
            return []
        mean = Line("validation", [(r["step"], float(np.mean(r["accuracies"]))) for r in records])
        if len(records[0]["accuracies"]) == 1:
            return [mean]
        return [mean, Line("validation, worst context", [(r["step"], min(r["accuracies"])) for r in records], True)]

    def picture(self, name: str) -> bytes | None:
        """Return a picture of an example, None if it is missing.

        Args:
            name: File name of the picture, from `details.json`.

        Raises:
            FastDPSError: The name could be a path out of the directory of pictures, or the picture is a link.
        """
        return _read_picture(self.run.examples, name, named_in=self.run.details)

    def judged_picture(self, name: str) -> bytes | None:
        """Return a picture of a judgement as `picture` does; the name is from `judged.json`."""
        return _read_picture(self.run.judged_pictures, name, named_in=self.run.judged)

    def layers(self) -> Layers | None:
        """Return the weights by layer, None before training has ended. Raises `FastDPSError` for damaged files."""
        paths = self.run.metrics()
        if not all(path.is_file() for path in paths):
            return None
        rows: list[NDArray[np.float64]] = []
        rankings: list[list[str]] = []
        judges: list[str] = []
        for path in paths:
            try:
                with safe_open(path, framework="np") as file:
                    metadata, weights = file.metadata(), file.get_tensor("weights").astype(np.float64)
                channels, taps, own = (parse_json(metadata[key]) for key in ("channels", "taps", "rankings"))
                names = parse_json(metadata.get("judges", "[]"))
                check(names, [str], "judges")
                kinds = metadata["comparison"].split("+")
                ends = np.cumsum(channels)[:-1]
                if len(weights) != max(1, len(own), len(names)) or len(channels) != len(taps) * len(kinds):
                    raise ValueError("weights, rankings and taps do not fit together")
                if not np.isfinite(weights).all():
                    raise ValueError("weights are not finite")
                by_layer = np.stack([part.sum(axis=1) for part in np.split(weights, ends, axis=1)], axis=1)
                rankings += [list(ranking) for ranking in own]
                judges += names
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                raise FastDPSError(
                    f"{path} cannot be read as a metric: {error!r}. Restore it or train again."
                ) from error
            rows.append(by_layer / by_layer.sum(axis=1, keepdims=True).clip(min=1e-30))
        known = self.judges or []
        is_other = any(name not in known for name in judges) or (paths == [self.run.metric] and judges != known)
        if is_other or any(ranking not in self.config["rankings"] for ranking in rankings):
            raise FastDPSError(
                f"{paths[0]} is the metric of another run: {self.run.config} does not have its contexts. Restore it or "
                "train again with --overwrite."
            )
        if rankings != self.config["rankings"] or judges != known:  # the training of some contexts has not ended
            return None
        names = [f"layer {tap}" if len(kinds) == 1 else f"layer {tap}, {kind}" for kind in kinds for tap in taps]
        return Layers(names, np.concatenate(rows), np.array(channels) / sum(channels))


def read_run(path: Path) -> RunRecord:
    """Read a run directory.

    Args:
        path: The directory.

    Returns:
        Its content.

    Raises:
        FastDPSError: The directory is not a run, or one of its files is damaged.
    """
    run = RunDirectory(path)
    config = run.read_config()
    details, log, scores = run.read_details(), run.read_log(), run.read_scores()
    if details and not _fit(scores, details):
        details = None
    judged, judgements = run.read_judged(), (scores or {}).get("judgements")
    if judged and not (judgements and judgements["set"]["sha256"] == judged["set"]["sha256"]):
        judged = None
    for one in (config.get("data"), *(config.get("data") or {}).get("sets", ())):
        _hide_credentials(one)
    _hide_credentials((details or {}).get("held_out"))
    _hide_credentials((judgements or {}).get("set"))
    for one in (scores or {}).get("sets", ()):
        _hide_credentials(one)
    return RunRecord(run, config, scores, details, log, judged, run.read_profile(), run.read_adapted())


def _read_picture(directory: Path, name: str, *, named_in: Path) -> bytes | None:
    """Return a picture in a directory, None if it is missing. Raises `FastDPSError` for a name out of it, or a link."""
    if not _PICTURE.fullmatch(name):
        raise FastDPSError(
            f"{named_in} names a picture {name!r}, which is not a valid file name. Run `fastdps evaluate` again."
        )
    path = directory / name
    if path.is_symlink() or directory.is_symlink():
        raise FastDPSError(f"{path} is a link; a report shows files of the run only. Evaluate again.")
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise FastDPSError(f"{path} cannot be read: {error.strerror}. Evaluate again.") from error


def _fit(scores: dict[str, Any] | None, details: dict[str, Any]) -> bool:
    """Return whether details belong to the same evaluation as the scores: both have the same accuracies.

    An evaluation by version 0.1.0 that was killed could leave the details of an earlier one.
    """
    keys = ("baseline_accuracy", "adapted_accuracy")
    rows = {tuple(row["ranking"]): row for row in scores["contexts"]} if scores else {}
    examples = [(rows.get(tuple(example["ranking"])), example) for example in details["examples"]]
    return all(row and all(row[key] == example[key] for key in keys) for row, example in examples)


def _hide_credentials(data: Any) -> None:
    """Hide credentials in the locations of shard sets, which fastdps 0.1.0 wrote into its files."""
    for name in ("shards", "validation", "path"):
        if isinstance(data, dict) and isinstance(data.get(name), str):
            data[name] = without_credentials(data[name])


def read_bench(path: Path) -> dict[str, Any]:
    """Read results of `python -m bench --json`. Raises `FastDPSError` if the file is missing or holds other content."""
    results = read_object(path, {}, "Measure again with `python -m bench --json FILE`.")
    if results is None:
        raise FastDPSError(f"{path} does not exist. Measure with `python -m bench --json {shlex.quote(str(path))}`.")
    if results.get("format") != "fastdps-bench":
        raise FastDPSError(f"{path} does not hold results of the bench. Measure with `python -m bench --json FILE`.")
    return results
