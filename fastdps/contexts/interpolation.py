"""The interpolation of the geometric distortions; a module without torch, for settings that name one."""

from typing import Literal

Interpolation = Literal["nearest", "bilinear"]
