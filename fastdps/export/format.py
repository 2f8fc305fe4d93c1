"""What a format is: how it is written, and how the foreign library reads it back."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from fastdps.errors import ConfigError
from fastdps.metric.perceptual import PerceptualMetric

#: Image batches x and y (n, 3, H, W), RGB float in [0, 1], to distances (n,).
Distances = Callable[[Tensor, Tensor], Tensor]


class Format(ABC):
    """One format of exported metrics.

    name: as on the command line. suffix: what its files' names end with. library: what reads it, a distribution whose
    version the card states. needs: the modules to import. inputs, usage: what the card says of its inputs, and code.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    library: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[str]
    usage: ClassVar[str]

    def require(self) -> None:
        """Raise `ConfigError` that says what to install if the library is not there."""
        for module in self.needs:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ConfigError(
                    f"--format {self.name} needs {module} ({error}): pip install 'fastdps[export]'."
                ) from error

    @abstractmethod
    def check(self, metric: PerceptualMetric) -> None:
        """Raise `ConfigError` if the format cannot hold this metric."""

    @abstractmethod
    def write(self, metric: PerceptualMetric, path: Path, card: Mapping[str, Any]) -> None:
        """Write the metric's one context; `card` goes into the file where the format has a place for it."""

    @abstractmethod
    def read_back(self, metric: PerceptualMetric, path: Path) -> Distances:
        """The distances of the written file, by the foreign library alone.

        Of `metric` only what the format does not hold is used. Raises `FastDPSError` if it is not read as written.
        """

    def usage_of(self, metric: PerceptualMetric, file: str) -> str:  # noqa: ARG002
        """Lines of Python that use the file."""
        return self.usage.format(file=file)
