"""Names of options of the metric. Imports no torch, so that the command line can show them without it."""

from typing import Literal

#: The floating-point type of the backbone, see `fastdps.metric.precision`.
Precision = Literal["auto", "fp32", "bf16", "fp16"]
