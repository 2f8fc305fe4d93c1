"""Recipes: named training configurations. A recipe is a function that returns one; few options override it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from fastdps.contexts.interpolation import Interpolation
from fastdps.errors import ConfigError, did_you_mean
from fastdps.runtime.json_files import Maybe, Number, check

Variant = Literal["baseline", "lin", "shared", "tune", "scratch"]
Comparison = Literal["spatial", "mean", "sort", "spatial+mean", "spatial+sort"]
JudgeName = Literal["logistic", "mlp"]
LossName = Literal["expected_error", "cross_entropy"]
PairsName = Literal["all", "one"]
HeadInit = Literal["constant", "lpips"]
HeadParameters = Literal["weights", "roots"]
Decay = Literal["cosine", "linear"]
Solver = Literal["adam", "lbfgs"]
Augment = Literal["none", "crop"]

#: Variants that train the backbone.
TRAINING: tuple[Variant, ...] = ("shared", "tune", "scratch")
#: Variants that train a pretrained backbone, whose unadapted metric can be held.
KEEPING: tuple[Variant, ...] = ("shared", "tune")
#: The types of settings that are not a choice of names: a schema of `fastdps.runtime.json_files`, and its description.
_TYPES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("recipe", "backbone"), (str, "a name")),
    "by": (Maybe(str), "the name of a column"),
    "taps": (Maybe([int]), "a list of whole numbers"),
    "sync_loss": (bool, "true or false"),
    **dict.fromkeys(("epochs", "batch_size", "seed"), (int, "a whole number")),
    "max_steps": (Maybe(int), "a whole number above 0"),
    **dict.fromkeys(("initial_weight", "initial_temperature", "dropout"), (float, "a number")),
    **dict.fromkeys(("learning_rate", "backbone_learning_rate"), (Number(-1e300, 1e300), "a number")),
    "prior_strength": (Maybe(Number(0, 1e300)), "a number above 0"),
    "keep": (Number(0, 1e300), "a number of at least 0"),
    "crop_size": (Maybe(int), "a whole number above 0"),
    "folds": (int, "a whole number above 1"),
    "lora": (int, "a whole number of at least 0"),
    "draws_kept": (int, "a whole number of at least 0"),
    "adam_betas": ([float], "two numbers in [0, 1)"),
}


@dataclass(frozen=True)
class TrainConfig:
    """The settings that decide what a training run learns; not the data, the device or the number of processes.

    Attributes:
        recipe: Name of the recipe that the settings come from.
        variant: What is trained: "baseline" nothing; "lin" the heads; "shared" the heads and one backbone for all
            contexts; "tune" the heads and a backbone for each context; "scratch" the same from a random backbone.
        backbone: Name of the backbone, see `fastdps.metric.backbones`.
        taps: Indices of the sub-modules whose outputs are compared, None for the backbone's default.
        comparison: How features are compared, see `fastdps.metric.distances`.
        judge: The judge that turns two distances into a probability, see `fastdps.metric.heads`.
        loss: One of `fastdps.training.losses.LOSSES`.
        sync_loss: Add the paper's sync loss.
        pairs: "all" pairs of an image's distortions in each step, or "one" per image and context, drawn in each epoch.
        head_init: "constant", every channel weight at `initial_weight`, or "lpips", drawn as LPIPS draws them.
        head_parameters: What the optimiser changes: "weights", which are set to zero where a step makes them negative,
            as in LPIPS; "roots", whose squares are the weights, see `fastdps.metric.heads.Heads`.
        initial_weight: Channel weight at the start, with "constant".
        initial_temperature: Temperature of the logistic judge at the start.
        dropout: Probability of dropping an element of z.
        epochs: Number of epochs.
        max_steps: Stop after this many steps, in mid-epoch if need be; the decay then fits into them. None for all.
        batch_size: Images per step, over all processes.
        draws_kept: On rankings with a frozen backbone, number of draws of the distortions of each image, whose moments
            are kept for all epochs; 0 draws new distortions in each epoch. See `fastdps.training.kept_draws`.
        learning_rate: Adam's learning rate at the start, for heads and judges.
        backbone_learning_rate: The same for the backbone.
        decay: "cosine", half a cosine to zero over the run; "linear", constant for half of the epochs, then falling
            from epoch to epoch, as LPIPS trains.
        adam_betas: Adam's betas.
        solver: The optimiser of heads on a frozen backbone: "adam", step by step; "lbfgs", for judgement sets: the
            logistic regression of `fastdps.training.logistic`, which uses neither the settings of Adam nor dropout.
        prior_strength: With "lbfgs", how strongly heads are drawn to the unadapted metric; None chooses it by
            cross-validation.
        by: On a judgement set, the column whose value is the judge, or "judge" for that of the set: each judge is a
            context, beside the pooled one of all judges. None for the pooled one only.
        folds: With "lbfgs", number of folds of the cross-validation, which are divided by image.
        keep: Strength of the term that holds the unadapted metric of a trained backbone to that of the pretrained one,
            see `fastdps.training.prior`; 0 for none.
        lora: Rank of the matrices by which a trained backbone changes, see `fastdps.training.low_rank`; 0 trains all of
            its parameters.
        augment: "crop" trains on random crops and flips of the images, "none" on whole images.
        crop_size: Side in pixels of the crops; None for the size of the images.
        interpolation: Sampling of the geometric distortions; "mixed" draws nearest or bilinear for each image.
        seed: Seed of everything random: contexts, order, crops, distortions, dropout.
    """

    recipe: str
    variant: Variant = "lin"
    backbone: str = "alexnet"
    taps: tuple[int, ...] | None = None
    comparison: Comparison = "spatial"
    judge: JudgeName = "logistic"
    loss: LossName = "expected_error"
    sync_loss: bool = False
    pairs: PairsName = "all"
    head_init: HeadInit = "constant"
    head_parameters: HeadParameters = "weights"
    initial_weight: float = 0.1
    initial_temperature: float = 15.0
    dropout: float = 0.5
    epochs: int = 40
    max_steps: int | None = None
    batch_size: int = 50
    draws_kept: int = 0
    learning_rate: float = 4e-2
    backbone_learning_rate: float = 3e-4
    decay: Decay = "cosine"
    adam_betas: tuple[float, float] = (0.5, 0.999)
    solver: Solver = "adam"
    prior_strength: float | None = None
    folds: int = 5
    by: str | None = None
    keep: float = 0.0
    lora: int = 0
    augment: Augment = "none"
    crop_size: int | None = None
    interpolation: Interpolation = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(TrainConfig).items():
            if (known := get_args(hint)) and isinstance(known[0], str) and getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}.")
        for name, (schema, what) in _TYPES.items():
            value = getattr(self, name)
            try:
                check(list(value) if isinstance(value, tuple) else value, schema)
            except ValueError:
                raise ConfigError(f"{name} must be {what}, not {value!r}.") from None
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ConfigError(f"adam_betas must be two numbers in [0, 1), not {self.adam_betas!r}.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps must be a whole number above 0, not {self.max_steps!r}.")
        for name in (
            "epochs",
            "batch_size",
            "learning_rate",
            "backbone_learning_rate",
            "initial_weight",
            "initial_temperature",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}.")
        if self.prior_strength is not None and not self.prior_strength > 0:
            raise ConfigError(f"prior_strength must be above 0, not {self.prior_strength}.")
        if self.crop_size is not None and (self.augment == "none" or self.crop_size < 1):
            raise ConfigError(
                f"crop_size is {self.crop_size}; it is the side in pixels of the crops of augment='crop', and above 0."
            )
        if self.folds < 2:
            raise ConfigError(f"folds must be at least 2, not {self.folds}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), not {self.dropout}.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in [0, 2^63), not {self.seed}.")
        self._check_backbone()

    def _check_backbone(self) -> None:
        """Check what depends on whether the backbone is trained."""
        if self.keep and not self.keeps_prior:
            raise ConfigError(
                f"keep is {self.keep}, but the variant {self.variant} does not train a pretrained backbone."
            )
        if self.lora < 0 or (self.lora and not self.keeps_prior):
            raise ConfigError(
                f"lora is {self.lora}; it must be at least 0, and 0 unless a pretrained backbone is trained (variant "
                f"{' or '.join(KEEPING)})."
            )
        if self.draws_kept < 0:
            raise ConfigError(f"draws_kept must be at least 0, not {self.draws_kept}.")
        if self.draws_kept and self.trains_backbone:
            raise ConfigError(
                f"draws_kept is {self.draws_kept}, but the variant {self.variant} trains the backbone, so that moments "
                "differ in every step. Pass --draws-kept 0, or choose the variant lin."
            )

    @property
    def trains_backbone(self) -> bool:
        """True if the backbone is trained."""
        return self.variant in TRAINING

    @property
    def backbone_per_context(self) -> bool:
        """True if each context has a trained backbone of its own, so that they are trained one after another."""
        return self.variant in ("tune", "scratch")

    @property
    def keeps_prior(self) -> bool:
        """True if `keep` can hold the unadapted metric: a pretrained backbone is trained."""
        return self.variant in KEEPING

    def replace(self, settings: Mapping[str, Any]) -> TrainConfig:
        """Return a copy with some settings replaced; None keeps a setting. Raises `ConfigError` for unknown names."""
        for name in settings:
            if name not in SETTINGS:
                raise ConfigError(
                    f"Unknown setting {name!r}.{did_you_mean(name, SETTINGS)} Known: {', '.join(SETTINGS)}."
                )
        given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
        return dataclasses.replace(self, **{key: value for key, value in given.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON types, for `config_from_json`."""
        return dataclasses.asdict(self)


#: Names of all settings.
SETTINGS = tuple(field.name for field in dataclasses.fields(TrainConfig))


def config_from_json(data: Mapping[str, Any]) -> TrainConfig:
    """Read settings from JSON types. Raises `ConfigError` for keys that this version does not know."""
    if unknown := sorted(set(data) - set(SETTINGS)):
        raise ConfigError(f"Unknown settings {', '.join(unknown)}. Known: {', '.join(sorted(SETTINGS))}.")
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return TrainConfig(**{**data, **lists})


def fast() -> TrainConfig:
    """Return the default: all 15 pairs of every image, logistic judge, expected error, equal weights at the start.

    Step 0 is the baseline metric, which has equal weights. On 560 ImageNet images and all contexts the expected
    error ends about 0.01 above the cross-entropy in mean held-out accuracy, and 0.04 above it in the worst context.
    Two kept draws of the distortions serve as well as new ones in each epoch. Roots are learned, not weights: half of
    the epochs, or a quarter of the images, give the same accuracy.
    """
    return TrainConfig(
        recipe="fast",
        epochs=12,
        batch_size=25,
        draws_kept=2,
        dropout=0.0,
        head_parameters="roots",
        initial_weight=0.01,
        initial_temperature=150.0,
    )


def shared() -> TrainConfig:
    """Return the settings for one backbone with the heads of all contexts, on crops, that keeps its unadapted metric.

    Interpolations are mixed, since a backbone that saw one only recognises distortions by the traces of resampling.
    """
    return TrainConfig(
        recipe="shared",
        variant="shared",
        epochs=60,
        augment="crop",
        interpolation="mixed",
        keep=1.0,
    )


def paper() -> TrainConfig:
    """Return the settings of Pihlgren et al. 2023: one pair per image and context, LPIPS's judge, their sync loss."""
    return TrainConfig(
        recipe="paper",
        judge="mlp",
        loss="cross_entropy",
        sync_loss=True,
        pairs="one",
        head_init="lpips",
        epochs=10,
        batch_size=1024,
        learning_rate=1e-3,
        backbone_learning_rate=1e-3,
        decay="linear",
    )


def lpips() -> TrainConfig:
    """Return the settings of Zhang et al. 2018 for LPIPS on human judgements: 5 + 5 epochs of batches of 50."""
    return TrainConfig(
        recipe="lpips",
        judge="mlp",
        loss="cross_entropy",
        head_init="lpips",
        epochs=10,
        batch_size=50,
        learning_rate=1e-4,
        backbone_learning_rate=1e-4,
        decay="linear",
    )


def judgements() -> TrainConfig:
    """Return the default for judgement sets: logistic regression drawn to the unadapted metric by cross-validation.

    Heads are the solution of a convex problem. A trained backbone is trained by Adam, with the cross-entropy.
    """
    return TrainConfig(recipe="judgements", loss="cross_entropy", solver="lbfgs", epochs=10)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "fast": fast,
    "shared": shared,
    "paper": paper,
    "lpips": lpips,
    "judgements": judgements,
}


def default_recipe(variant: str | None, *, judgements: bool = False) -> str:
    """Return the name of the recipe of a variant, where none is given, on judgement sets or on others."""
    if judgements:
        return "judgements"
    return "shared" if variant == "shared" else "fast"


def get_recipe(name: str, overrides: Mapping[str, Any]) -> TrainConfig:
    """Return a recipe with some settings replaced.

    Args:
        name: Name of the recipe, one of `RECIPES`.
        overrides: Settings by name; None keeps the recipe's own.

    Raises:
        ConfigError: The recipe or a setting is unknown, or a value cannot be used.
    """
    if name not in RECIPES:
        raise ConfigError(f"Unknown recipe {name!r}.{did_you_mean(name, RECIPES)} Known: {', '.join(RECIPES)}.")
    recipe = RECIPES[name]()
    if (variant := overrides.get("variant")) not in (None, *KEEPING):
        recipe = dataclasses.replace(recipe, keep=0.0)  # there is nothing to hold
    if variant in TRAINING and recipe.draws_kept:  # moments change with the backbone, which needs longer
        recipe = TrainConfig(recipe=name)
    return recipe.replace(overrides)
