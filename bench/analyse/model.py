"""A model of training on N devices of M nodes, from rates measured on one device. Pure arithmetic.

    store:    MB/s of all nodes together --> images/s
    node:     storage MB/s --> images/s     CPU cores --> staged images/s, decoded images/s
    process:  its images of a step x seconds an image, one after another
    job:      a step ends with the all-reduce of the heads' gradients, 4 K C bytes
    images/s = the least of shared storage, storage, staging, decode and steps

What it takes for granted: reading and decoding go on beside a GPU; on a CPU decoding takes the cores from the rest, and
the processes of a node share its cores. Gradients are exchanged after the step, not within it: heads have one layer.
The time an image takes does not depend on the batch. Nodes are alike, and each gets its storage's rate for itself. What
staging takes of a CPU's cores is not taken from computing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bench.analyse.results import find_row
from fastdps.errors import ConfigError

FLOAT_BYTES = 4
#: Images of a step in rows of `train` that do not say so.
DEFAULT_BATCH = 50
RAW = "raw 64 px"
#: Assumed where a plan does not say, and stated with every plan. On a CPU as measured of two processes over gloo, where
#: 3.3 MB took 1.2 to 2.3 ms and 4 bytes 0.08 to 0.14 ms; on GPUs a modest link between nodes, which nobody measured.
BANDWIDTH_BYTES_PER_S = {"cuda": 10e9, "cpu": 2e9}
LATENCY_S = {"cuda": 30e-6, "cpu": 50e-6}


@dataclass(frozen=True)
class Rates:
    """What was measured of one process on one device, or on all `cores` of a CPU.

    `device_s` are the seconds that an image takes a process, waiting for data left out where loading goes on beside
    it. `largest_part` is what takes most of them. `decode_images_per_s` is loading alone on all `cores`;
    `staged_bytes_per_s` is what a process brought of a store beside it on the same cores, None where shards are here.
    """

    contexts: int
    device_s: float
    largest_part: str
    decode_images_per_s: float
    cores: int
    batch_images: int
    shared_cores: bool
    staged_bytes_per_s: float | None = None


@dataclass(frozen=True)
class Cluster:
    """What it is to run on. `batch_images` are those of a step of all processes together.

    `storage_bytes_per_s` is what each node reads, `shared_storage_bytes_per_s` what all of them together do; without
    either the images are in memory. Raises `ConfigError` for what cannot be.
    """

    devices: int
    nodes: int
    batch_images: int
    image_bytes: float
    cores_per_node: int
    bandwidth_bytes_per_s: float
    latency_s: float
    storage_bytes_per_s: float | None = None
    shared_storage_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.devices < 1 or self.devices % self.nodes:
            raise ConfigError(f"{self.devices} devices do not spread over {self.nodes} nodes evenly.")
        if self.batch_images < self.devices:
            raise ConfigError(f"a step of {self.batch_images} images leaves some of {self.devices} processes without.")
        for name in ("image_bytes", "cores_per_node", "bandwidth_bytes_per_s", "latency_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}.")
        for name in ("storage_bytes_per_s", "shared_storage_bytes_per_s"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}.")


@dataclass(frozen=True)
class Prediction:
    """What the model says. `limits` are images/s of the whole job if there were only that limit."""

    images_per_s: float
    limits: dict[str, float]
    all_reduce_bytes: int
    all_reduce_s: float
    step_s: float
    one_device_images_per_s: float

    @property
    def limit(self) -> str:
        """What is to be changed first: the least of the limits."""
        return min(self.limits, key=lambda name: self.limits[name])

    @property
    def speedup(self) -> float:
        """How many times the rate of one device."""
        return self.images_per_s / self.one_device_images_per_s


def predict(rates: Rates, cluster: Cluster, channels: int) -> Prediction:
    """What a cluster would do with heads of `channels` channels."""
    n, per_node = cluster.devices, cluster.devices // cluster.nodes
    # The processes of a node share its cores; where each has a device of its own, they do not know of each other.
    speed = cluster.cores_per_node / rates.cores
    image_s = rates.device_s * (per_node / speed if rates.shared_cores else 1)
    step_images_per_process = cluster.batch_images / n
    device_step_s = step_images_per_process * image_s
    reduced_bytes = FLOAT_BYTES * rates.contexts * channels
    reduce_s = all_reduce_s(reduced_bytes, n, cluster.bandwidth_bytes_per_s, cluster.latency_s)
    step_s = device_step_s + reduce_s
    limits = {"device": cluster.batch_images / device_step_s}
    if not rates.shared_cores:
        limits["decode"] = cluster.nodes * rates.decode_images_per_s * speed
    if cluster.storage_bytes_per_s is not None:
        limits["storage"] = cluster.nodes * cluster.storage_bytes_per_s / cluster.image_bytes
    if cluster.shared_storage_bytes_per_s is not None:
        limits["shared storage"] = cluster.shared_storage_bytes_per_s / cluster.image_bytes
    if rates.staged_bytes_per_s is not None:  # one process uses no more cores than it was measured on
        limits["staging"] = cluster.nodes * min(per_node, speed) * rates.staged_bytes_per_s / cluster.image_bytes
    if n > 1:
        limits["all-reduce"] = cluster.batch_images / reduce_s
    beside = [limit for name, limit in limits.items() if name not in ("device", "all-reduce")]
    return Prediction(
        images_per_s=min([cluster.batch_images / step_s, *beside]),
        limits=limits,
        all_reduce_bytes=reduced_bytes,
        all_reduce_s=reduce_s,
        step_s=step_s,
        one_device_images_per_s=1 / (rates.device_s / (speed if rates.shared_cores else 1)),
    )


def all_reduce_s(nbytes: float, processes: int, bandwidth_bytes_per_s: float, latency_s: float) -> float:
    """Seconds to add up `nbytes` over processes so that all have the sum: none for one process.

    Every process sends and receives 2 (N-1)/N of the bytes in 2 log2 N messages (Thakur et al. 2005, section 4.5),
    over the slowest link between any two of them.
    """
    if processes == 1:
        return 0.0
    sent = 2 * (processes - 1) / processes * nbytes
    return sent / bandwidth_bytes_per_s + 2 * math.ceil(math.log2(processes)) * latency_s


def measured_cases(results: dict[str, Any], channels: int) -> list[tuple[str, float, float]]:
    """The rows of `scaling`, each with the images/s that were measured and those that the model gives.

    The model knows nothing of these rows: only of `train` and `load`.
    """
    device = results["settings"]["device"]
    cases = []
    for row in results["measurements"]:
        if row["stage"] != "scaling":
            continue
        notes = row["notes"]
        rates = rates_from(results, contexts=int(notes["contexts"]), data=RAW)
        cluster = Cluster(
            devices=int(notes["processes"]),
            nodes=1,
            batch_images=int(notes["batch_images"]),
            image_bytes=1,
            cores_per_node=int(notes["processes"] * notes["threads_per_process"]) if device == "cpu" else rates.cores,
            bandwidth_bytes_per_s=BANDWIDTH_BYTES_PER_S[device],
            latency_s=LATENCY_S[device],
        )
        cases.append((row["what"], row["median"], predict(rates, cluster, channels).images_per_s))
    return cases


def rates_from(results: dict[str, Any], *, contexts: int, data: str) -> Rates:
    """The rates of a results file: those of the row of `train` with so many contexts, and of the row `data` of `load`.

    Raises `ConfigError` if a row is missing.
    """
    shared_cores = results["settings"]["device"] == "cpu"
    train = find_row(results, "train", f"lin, {contexts} context{'s' if contexts > 1 else ''}")
    load = find_row(results, "load", data)
    device_s = 1 / train["median"]
    if shared_cores:  # loading is part of what the cores do
        device_s += 1 / load["median"] - 1 / find_row(results, "load", RAW)["median"]
    else:
        device_s *= 1 - train["notes"]["data_wait_fraction"]
    parts_s = {name: part_s for name, part_s in train["parts_s"].items() if shared_cores or name != "load"}
    if shared_cores:
        parts_s["load"] = 1 / load["median"]
    return Rates(
        contexts=contexts,
        device_s=device_s,
        largest_part=max(parts_s, key=lambda name: parts_s[name]),
        decode_images_per_s=load["median"],
        cores=results["machine"]["cores"],
        batch_images=int(train["notes"].get("batch_images", DEFAULT_BATCH)),
        shared_cores=shared_cores,
    )
