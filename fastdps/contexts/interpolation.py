"""The interpolation of the geometric distortions; a module without torch, for settings that name one."""

from typing import Literal

#: Sampling of the geometric distortions; "mixed" is nearest or bilinear, drawn for each image.
Interpolation = Literal["nearest", "bilinear", "mixed"]
