"""What a run trains on: one shard set, or several mixed by weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from fastdps.errors import ConfigError
from fastdps.loading.mixed import MixedLoader, WeightedSets, pairs_of
from fastdps.shards.format import read_manifest
from fastdps.shards.storage import Location, LocationLike, Store, locate
from fastdps.training.recipes import TrainConfig


@dataclass(frozen=True)
class Mixture:
    """Several shard sets of one kind with their weights.

    Attributes:
        sets: The sets, each with its weight, above 0.

    Example:
        >>> print(Mixture.of({"a/train": 0.7, "b/train": 0.3}))
        a/train:0.7 + b/train:0.3
    """

    sets: tuple[tuple[Location, float], ...]

    def __str__(self) -> str:
        return " + ".join(f"{location}:{weight:g}" for location, weight in self.sets)

    @property
    def locations(self) -> list[Location]:
        """The locations of the sets."""
        return [location for location, _ in self.sets]

    @classmethod
    def of(cls, sets: WeightedSets) -> Mixture:
        """Return the mixture of some sets. Raises `ConfigError` for fewer than two, or a weight out of range."""
        pairs = pairs_of(sets)
        if len(pairs) < 2:
            raise ConfigError(f"{pairs[0][0]} is the only set, and needs no weight. Omit it.")
        return cls(tuple((locate(location), weight) for location, weight in pairs))

    def check_kinds(self, config: TrainConfig) -> None:
        """Check that a run with some settings can train on these sets.

        Raises:
            ConfigError: The sets are of several kinds or hold judgements, or the settings are for a single set.
            ShardError: A set is missing or damaged.
        """
        first, *others = self.locations
        kind = read_manifest(first).kind
        for location in others:
            if (other := read_manifest(location).kind) != kind:
                raise ConfigError(f"{first} is a set of {kind}, and {location} of {other}. Mix sets of one kind.")
        if kind == "judgements" or (config.solver == "lbfgs" and not config.trains_backbone):
            raise ConfigError(
                f"judgements cannot be mixed by weight, and there are {len(self.sets)} sets. Pack them as one set, or "
                "train on one of them; sets of triplets can be mixed with --recipe lpips."
            )
        if config.draws_kept:
            raise ConfigError(
                f"draws_kept is {config.draws_kept}, but draws are kept for a single set only, and there are "
                f"{len(self.sets)}. Pass --draws-kept 0, which draws new distortions in each epoch."
            )

    def describe(self, loader: MixedLoader) -> dict[str, Any]:
        """Return what `config.json` says about the data; "sha256" is a hash of all contents and of their shares."""
        manifests = [one.manifest for one in loader.loaders]
        hashes = [manifest.content_sha256() for manifest in manifests]
        shares = json.dumps(list(zip(hashes, loader.counts, strict=True)))
        sets = [
            {"path": str(location), "weight": weight, "samples": manifest.samples, "sha256": digest}
            for (location, weight), manifest, digest in zip(self.sets, manifests, hashes, strict=True)
        ]
        names = dict.fromkeys(str(manifest.source.get("name", "unknown")) for manifest in manifests)
        return {
            "sets": sets,
            "source": {"name": " + ".join(names)},
            "sha256": hashlib.sha256(shares.encode()).hexdigest(),
        }


#: What a run trains on.
TrainingData = Location | Mixture


def mixture_of(shards: LocationLike | WeightedSets) -> Mixture | None:
    """Return the mixture that was asked for, None for a single set. Raises `ConfigError`, see `Mixture.of`."""
    return None if isinstance(shards, str | PathLike | Store) else Mixture.of(shards)


def mixture_settings(settings: Mapping[str, Any], config: str | TrainConfig | None) -> dict[str, Any]:
    """Return the settings of a run on a mixture: unless they are complete, no draws are kept by default."""
    return dict(settings) if isinstance(config, TrainConfig) else {"draws_kept": 0, **settings}
