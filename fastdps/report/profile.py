"""The content of `profile.json` as rows and sentences: time by stage, rates, memory, the first limit, advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Rows that are not part of the steps that are counted.
_OUTSIDE_STEPS = ("first step", "profiling", "preparation")


def profile_section(profile: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the variables of `templates/profile.html.j2` from the content of `profile.json`; None without one."""
    if profile is None:
        return None
    return {"device": profile["device"], "rows": profile_rows(profile), "lines": profile_lines(profile)}


def profile_rows(profile: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the rows of the table: name, seconds, share and, of what is in steps, milliseconds a step.

    Args:
        profile: Content of `profile.json`.
    """
    total, steps = max(sum(profile["seconds"].values()), 1e-9), max(1, profile["steps"])
    return [
        {
            "name": name,
            "seconds": value,
            "share": value / total,
            "ms_per_step": None if name in _OUTSIDE_STEPS else 1e3 * value / steps,
            "is_limit": name == profile["limit"],
        }
        for name, value in profile["seconds"].items()
    ]


def profile_lines(profile: Mapping[str, Any]) -> list[str]:
    """Return the findings of a profile, one or two sentences a line.

    Args:
        profile: Content of `profile.json`.
    """
    steps, processes = profile["steps"], profile["processes"]
    peak = f"Peak of memory: {profile['peak_MiB']:,.0f} MiB"
    if profile["device_peak_MiB"] is not None:
        peak += f", and {profile['device_peak_MiB']:,.0f} MiB on the device"
    lines = [peak + (" (largest process)." if processes > 1 else ".")]
    if profile["limit"] is None:
        return [*lines, "One step is too short a run to find its limit."]
    of = f"{steps:,} step{'' if steps == 1 else 's'} after the first"
    by = f"{processes} process{'' if processes == 1 else 'es'}"
    rate = f"{profile['images_per_s']:,.0f} images/s in {of}, by {by}; waiting for data: {profile['data_wait']:.1%}."
    lines.insert(0, rate)
    if profile["headspace"] is not None:
        lines.insert(
            1,
            f"Headspace of loading: {profile['headspace'] - 1:.1%}. With all batches in memory it would be "
            f"{profile['in_memory_images_per_s']:,.0f} images/s.",
        )
    lines.append(f"First limit: {profile['limit']}. To change it, {profile['advice']}")
    if profile["trace"]:
        lines.append(f"Trace of some steps: {profile['trace']} in the run, for https://ui.perfetto.dev.")
    return lines
