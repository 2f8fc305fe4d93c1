"""Time limits of processes."""

#: Default time in one phase (a step, say) after which a process counts as hung and the job is aborted.
STALL_TIMEOUT_S = 600.0
