"""`fastdps train`: adapt a metric; with several processes under `accelerate launch -m fastdps.train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdps.commands.options import cache_from, is_main_rank
from fastdps.commands.settings_files import read_settings_file
from fastdps.commands.train_options import RESUME, SETTINGS_WITH_OPTION, add_arguments
from fastdps.errors import ConfigError
from fastdps.loading.options import LoadOptions
from fastdps.runtime.console import print_result
from fastdps.shards.storage import Location
from fastdps.training.options import CheckpointPolicy, Execution, MomentLimits, TrainOptions
from fastdps.training.recipes import TrainConfig, default_recipe, get_recipe

if TYPE_CHECKING:
    from fastdps.training.resume import RecordedRun
    from fastdps.training.run import TrainingResult

__all__ = ["add_arguments", "run_train"]
#: Options whose value a run has already, so that `--resume RUN` does not take them.
_FIXED = ("out", "contexts", "recipe", "config", "size", "overwrite", "print_config", *SETTINGS_WITH_OPTION)


def run_train(arguments: argparse.Namespace) -> None:
    """Run `fastdps train`. Called again, it resumes the run, or finds it finished."""
    if arguments.resume not in (None, *RESUME):
        _print_summary(_resume(Path(arguments.resume), arguments), is_profiled=arguments.profile)
        return
    config = _config(arguments)
    if arguments.print_config:
        print(json.dumps(config.to_json(), indent=1))
        return
    shards = _shards(arguments)
    if shards is None or arguments.out is None:
        raise ConfigError("--out and one of --shards, --judgements and --triplets are needed.")
    from fastdps.training.run import train

    result = train(
        shards,
        arguments.out,
        contexts=_contexts(arguments),
        validation=arguments.validation,
        config=config,
        overwrite=arguments.overwrite,
        options=_options(arguments, TrainOptions(size=arguments.size)),
    )
    _print_summary(result, is_profiled=arguments.profile)


def _resume(run: Path, arguments: argparse.Namespace) -> TrainingResult:
    """Resume a run with all that it recorded; only paths and options of execution may be given again."""
    from fastdps.training.resume import read_recorded
    from fastdps.training.run import train

    if given := [name for name in _FIXED if not _is_default(getattr(arguments, name))]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"--resume {run} takes all settings from the run. Omit {options}.")
    recorded: RecordedRun = read_recorded(run)
    return train(
        _shards(arguments) or recorded.shards,
        run,
        contexts=recorded.contexts,
        validation=arguments.validation or recorded.validation,
        config=recorded.config,
        options=_options(arguments, recorded.options),
    )


def _is_default(value: object) -> bool:
    return value is None or value is False


def _config(arguments: argparse.Namespace) -> TrainConfig:
    """Return the settings: those of the recipe, replaced by those of --config, replaced by the options."""
    from_file: dict[str, Any] = {} if arguments.config is None else read_settings_file(arguments.config)
    own = from_file.pop("recipe", None)
    variant = arguments.variant or from_file.get("variant")
    recipe = arguments.recipe or own or default_recipe(variant, judgements=bool(arguments.judgements))
    options = {name: value for name in SETTINGS_WITH_OPTION if (value := getattr(arguments, name)) is not None}
    mixture = {"draws_kept": 0} if len(arguments.shards or ()) > 1 else {}  # draws are kept for a single set only
    try:
        return get_recipe(recipe, {**mixture, **from_file, **options})
    except ConfigError as error:
        if from_file and not options:
            raise ConfigError(f"--config {arguments.config}: {error}") from None
        raise


def _shards(arguments: argparse.Namespace) -> Location | list[tuple[Location, float]] | None:
    """Return the training set, or several with weights. Raises `ConfigError` for a file, or a missing weight."""
    sets: list[tuple[Location, float | None]] = arguments.shards or []
    if len(sets) == 1 and sets[0][1] is not None:
        raise ConfigError(f"--shards {sets[0][0]} is the only set, and needs no weight. Omit :{sets[0][1]:g}.")
    one: Location | None = sets[0][0] if sets else arguments.judgements or arguments.triplets
    given: list[Location | None] = [location for location, _ in sets] or [one]
    for location in given:
        _refuse_file(arguments, location)
    if len(sets) > 1:
        weighted = [(location, weight) for location, weight in sets if weight is not None]
        if len(weighted) < len(sets):
            missing = next(location for location, weight in sets if weight is None)
            raise ConfigError(
                f"--shards {missing} needs a weight above 0, as in {missing}:0.5, to be mixed with others."
            )
        return weighted
    return one


def _refuse_file(arguments: argparse.Namespace, location: Location | None) -> None:
    """Raise `ConfigError` for a file where a packed set is needed."""
    if isinstance(location, Path) and location.is_file() and not arguments.judgements:
        kind = "triplets" if arguments.triplets else "folder"
        raise ConfigError(
            f"--{'triplets' if arguments.triplets else 'shards'} {location} is a file, not a packed set. Pack it with "
            f"`fastdps pack {kind} --source {location if arguments.triplets else 'DIRECTORY'} --out DIR`, and name "
            f"DIR/train. For judgements in a .csv, .jsonl or .parquet file, pass --judgements {location}."
        )


def _contexts(arguments: argparse.Namespace) -> str | tuple[str, ...] | None:
    """Return the contexts that the options select. Raises `ConfigError` for options that cannot be combined."""
    if arguments.by is not None and arguments.judgements is None:
        raise ConfigError("--by is for --judgements: rankings have no judges.")
    if arguments.judgements is not None:
        if arguments.contexts is not None and arguments.by is None:
            raise ConfigError("--contexts names judges with --judgements, which needs --by COLUMN.")
        contexts: str | None = arguments.contexts
        return contexts
    if arguments.shards:
        return arguments.contexts or "all"
    if arguments.contexts is not None:
        raise ConfigError(
            "--contexts is for --shards: a metric is adapted to the judgements of --triplets, not to rankings. Omit it."
        )
    return ()


def _options(arguments: argparse.Namespace, base: TrainOptions) -> TrainOptions:
    """Return the options for carrying out the run: those of `base`, replaced by those given on the command line."""

    def given(name: str, default: Any) -> Any:
        value = getattr(arguments, name)
        return default if value is None else value

    execution, policy, moments = base.execution, base.checkpoints, base.moments
    return TrainOptions(
        execution=Execution(
            given("precision", execution.precision),
            given("accumulate", execution.accumulate),
            given("compile", execution.compile),
            given("deterministic", execution.deterministic),
        ),
        checkpoints=CheckpointPolicy(
            given("checkpoint_every", policy.every_steps), given("keep_checkpoints", policy.keep)
        ),
        parallel=given("parallel", base.parallel),
        resume="never" if arguments.resume == "never" else "auto",
        stall_timeout_s=given("stall_timeout", base.stall_timeout_s),
        trackers=base.trackers if arguments.log_with is None else tuple(arguments.log_with),
        size=base.size,
        loading=LoadOptions(
            loader=given("loader", base.loading.loader),
            num_threads=base.loading.num_threads,
            cache=cache_from(arguments) or base.loading.cache,
        ),
        moments=MomentLimits(
            given("moments_memory", moments.memory_bytes), given("moments_disk", moments.disk_bytes), moments.directory
        ),
        profile=arguments.profile,
        argv=arguments.argv,
    )


def _print_summary(result: TrainingResult, *, is_profiled: bool) -> None:
    """Print what the metric was adapted to and how well, where it is, and what comes next, once for all processes."""
    if not is_main_rank():
        return
    from fastdps.commands.summary import summary_lines

    for line in summary_lines(result):
        print_result(line)
    if is_profiled and (profile := result.directory.read_profile()):
        from fastdps.commands.tables import print_profile

        print_profile(profile)
