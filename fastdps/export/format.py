"""The interface of a format: write a file, and read it back with the other library."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from fastdps.errors import ConfigError
from fastdps.metric.perceptual import PerceptualMetric

#: A function of two image batches (n, 3, H, W), RGB float in [0, 1], that returns distances (n,).
Distances = Callable[[Tensor, Tensor], Tensor]


class Format(ABC):
    """A format of exported metrics.

    Attributes:
        name: Its name, as on the command line.
        suffix: Suffix of its files.
        library: Distribution that reads its files; the card states its version.
        needs: Modules that must be installed.
        inputs: Description of the inputs, for the card.
        usage: Python code that uses a file, for the card.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    library: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[str]
    usage: ClassVar[str]

    def require(self) -> None:
        """Raise `ConfigError`, which says what to install, if a needed module is missing."""
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
        """Write a metric.

        Args:
            metric: A metric in one context.
            path: The file.
            card: Its model card, for formats that can hold metadata.
        """

    @abstractmethod
    def read_back(self, metric: PerceptualMetric, path: Path) -> Distances:
        """Load a written file with the other library.

        Args:
            metric: The metric. Only those of its parts that the file does not contain are used.
            path: The file.

        Returns:
            A function that computes distances with the other library.

        Raises:
            FastDPSError: The library does not read the content that was written.
        """

    def usage_of(self, metric: PerceptualMetric, file: str) -> str:  # noqa: ARG002
        """Return lines of Python that use a file of this name."""
        return self.usage.format(file=file)
