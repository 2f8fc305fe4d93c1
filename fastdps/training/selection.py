"""Select the contexts and the settings of a run by the kind of its shard set: rankings, triplets or judges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdps.contexts.distortions import NAMES
from fastdps.contexts.judgements import POOLED
from fastdps.contexts.rankings import Ranking, parse_ranking, select_rankings
from fastdps.errors import ConfigError, did_you_mean
from fastdps.loading.options import LoadOptions
from fastdps.shards.format import Manifest, read_manifest
from fastdps.shards.judgements import JudgementTable, read_judgements
from fastdps.shards.storage import Location
from fastdps.training.recipes import TrainConfig, default_recipe, get_recipe
from fastdps.training.triplet_images import triplet_table

#: What to adapt to: "all", a number to draw, rankings as text or as tuples; empty for the judgements of a triplet set.
#: On a judgement set: "all" or names of judges.
Contexts = str | int | Iterable[Sequence[str]]
#: Number of judges that an error message lists.
SHOWN_JUDGES = 10


@dataclass(frozen=True)
class Selection:
    """The contexts of a run.

    Attributes:
        rankings: The rankings; empty for judgements.
        judges: The judges that get a head of their own beside the pooled one.
        table: The judgements of a judgement set, None for other sets.
    """

    rankings: list[Ranking] = field(default_factory=list)
    judges: list[str] = field(default_factory=list)
    table: JudgementTable | None = None


def select(
    contexts: Contexts | None,
    shards: Location,
    config: str | TrainConfig | None,
    settings: Mapping[str, Any],
    loading: LoadOptions,
) -> tuple[TrainConfig, Selection]:
    """Return the settings and the contexts of a run.

    Args:
        contexts: See `fastdps.training.run.train`.
        shards: The shard set.
        config: Name of a recipe, complete settings, or None for the default of the kind of the set.
        settings: Settings that replace those of `config`.
        loading: How the votes of a set of triplets are read.

    Raises:
        ConfigError: Contexts or settings do not exist, or do not fit the set.
        ShardError: The set is missing or damaged.
    """
    if config is not None:  # mistakes in what was typed are found before the set is read
        config = get_recipe(config, settings) if isinstance(config, str) else config.replace(settings)
    if config is not None and config.by is None and contexts is not None and config.solver != "lbfgs":
        rankings = _rankings(contexts, config.seed)
        manifest = read_manifest(shards)
        if manifest.kind != "judgements":
            return config, Selection(rankings)
    manifest = read_manifest(shards)
    is_judged = manifest.kind == "judgements"
    config = config or get_recipe(default_recipe(settings.get("variant"), judgements=is_judged), settings)
    if is_judged:
        return config, _select_judges(contexts, shards, manifest, config)
    if config.solver == "lbfgs" and manifest.kind == "triplets" and not config.trains_backbone and config.by is None:
        return config, Selection(table=triplet_table(shards, loading))
    if config.solver == "lbfgs" and not config.trains_backbone:
        raise ConfigError(
            f"{shards} is a set of {manifest.kind}, and --recipe judgements is for judgements. Choose the recipe "
            "fast, or pack judgements with `fastdps pack judgements`."
        )
    if config.by is not None:
        raise ConfigError(f"{shards} is a set of {manifest.kind}: --by is for judgement sets.")
    default = () if manifest.kind == "triplets" else "all"
    return config, Selection(_rankings(default if contexts is None else contexts, config.seed))


def _rankings(contexts: Contexts, seed: int) -> list[Ranking]:
    """Return the rankings that `contexts` selects, an empty list for an empty sequence."""
    if isinstance(contexts, str | int):
        return select_rankings(str(contexts), NAMES, seed)
    rankings = [parse_ranking(",".join(names), NAMES) for names in contexts]
    if len(set(rankings)) < len(rankings):
        raise ConfigError("The same ranking is given more than once in contexts.")
    return rankings


def _select_judges(contexts: Contexts | None, shards: Location, manifest: Manifest, config: TrainConfig) -> Selection:
    """Return the judges of a judgement set that get a head."""
    if not config.trains_backbone and config.solver != "lbfgs":
        raise ConfigError(
            f"the recipe {config.recipe} trains heads step by step. On a judgement set they are the solution of a "
            "convex problem, which is found in seconds: use --recipe judgements. Other recipes train backbones there, "
            "with --variant tune."
        )
    if config.trains_backbone and (config.judge != "logistic" or config.sync_loss):
        raise ConfigError(
            f"the recipe {config.recipe} has the judge {config.judge}{' and the sync loss' * config.sync_loss}. On a "
            "judgement set the metric includes its judge, which must be logistic: use --recipe judgements."
        )
    if config.augment != "none":
        raise ConfigError(
            "a judgement is about whole images, so --augment crop is for shard sets of images and of triplets. Use "
            "--augment none."
        )
    table, by = read_judgements(shards, manifest), config.by
    if by is None:
        if contexts not in (None, "all", ()):
            raise ConfigError("the judges of a judgement set are contexts with --by judge only. Add it.")
        return Selection(table=table)
    if by not in ("judge", manifest.source.get("by")):
        raise ConfigError(
            f"{shards} was packed with {manifest.source.get('by') or 'no column'} as the judge, not {by}. Pass "
            f"--by judge, or pack it again with --by {by}."
        )
    if isinstance(contexts, int):
        raise ConfigError(f"contexts is {contexts}; with --by it is a list of judges, or all.")
    wanted: str | list[str] = contexts or "all" if isinstance(contexts, str | None) else list(map(str, contexts))
    return Selection(judges=find_judges(table, wanted), table=table)


def find_judges(table: JudgementTable, wanted: str | Sequence[str]) -> list[str]:
    """Return the names of the judges that get a head.

    Args:
        table: The judgements.
        wanted: "all", or names as text separated by commas, or as a sequence.

    Returns:
        The names, in the order of the table.

    Raises:
        ConfigError: The table names no judges, or lacks one of the wanted ones.
    """
    if not table.judges:
        raise ConfigError(
            "the judgements name no judges. Pack them with --by COLUMN, the column whose value is the judge."
        )
    if POOLED in table.judges:
        raise ConfigError(
            f"a judge has the name {POOLED!r}, which is the name of the context of all judges together. Rename the "
            "judge in the source, and pack it again."
        )
    if wanted == "all":
        return list(table.judges)
    names = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in table.judges:
            raise ConfigError(
                f"there is no judge {name!r}.{did_you_mean(name, table.judges)} The {len(table.judges)} judges: "
                f"{', '.join(table.judges[:SHOWN_JUDGES])}{' ...' if len(table.judges) > SHOWN_JUDGES else ''}."
            )
    return [name for name in table.judges if name in names]
