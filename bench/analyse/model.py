"""A model of training on N devices of M nodes, from rates measured on one device. Pure arithmetic.

    store:    MB/s of all nodes together --> images/s
    node:     storage MB/s --> images/s     CPU cores --> staged images/s, decoded images/s
    process:  images of its step x seconds per image, one after another
    job:      a step ends with the all-reduce of the heads' gradients, 4 K C bytes
    images/s = the minimum of shared storage, storage, staging, decode and steps

Assumptions: reading and decoding overlap with a GPU's computation; on a CPU, decoding uses the same cores, and the
processes of a node share its cores. Gradients are exchanged after the step, not during it: heads have one layer. The
time per image does not depend on the batch size. Nodes are identical, and each has the full rate of its storage. The
cores that staging uses on a CPU are not subtracted from computation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bench.analyse.results import find_row
from fastdps.errors import ConfigError

FLOAT_BYTES = 4
#: Images of a step in rows of `train` without the note `batch_images`.
DEFAULT_BATCH = 50
RAW = "raw 64 px"
#: Defaults of the link, which every prediction states. CPU: measured with two processes over gloo, where 3.3 MB took
#: 1.2 to 2.3 ms and 4 bytes 0.08 to 0.14 ms. GPU: a modest link between nodes, not measured.
BANDWIDTH_BYTES_PER_S = {"cuda": 10e9, "cpu": 2e9}
LATENCY_S = {"cuda": 30e-6, "cpu": 50e-6}


@dataclass(frozen=True)
class Rates:
    """Measured rates of one process on one device, or on all cores of a CPU.

    Attributes:
        contexts: The number of contexts that were trained.
        device_s: The seconds per image of a process, without waiting for data if loading overlaps with computation.
        largest_part: The part that takes most of `device_s`.
        decode_images_per_s: The rate of loading only, on all cores.
        cores: The number of cores.
        batch_images: The images of a step.
        shared_cores: Whether loading and computation share the cores, as on a CPU.
        staged_bytes_per_s: The rate at which a process staged shards of a store on the same machine; None without
            staging.
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
    """The cluster of a prediction.

    Attributes:
        devices: The number of devices, with one process each.
        nodes: The number of nodes.
        batch_images: The images of a step of all processes together.
        image_bytes: The bytes of an image in the shards.
        cores_per_node: The number of cores of each node.
        bandwidth_bytes_per_s: The bandwidth of the slowest link between two processes.
        latency_s: The latency of a message on that link.
        storage_bytes_per_s: The rate at which each node reads; None if the images are in memory.
        shared_storage_bytes_per_s: The rate at which all nodes together read; None if it is not limited.

    Raises:
        ConfigError: A value is out of range, or the values are inconsistent.
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
            raise ConfigError(f"{self.devices} devices cannot be divided evenly over {self.nodes} nodes.")
        if self.batch_images < self.devices:
            raise ConfigError(
                f"a step of {self.batch_images} images has less than one image for each of {self.devices} processes."
            )
        for name in ("image_bytes", "cores_per_node", "bandwidth_bytes_per_s", "latency_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}.")
        for name in ("storage_bytes_per_s", "shared_storage_bytes_per_s"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value}.")


@dataclass(frozen=True)
class Prediction:
    """The result of the model.

    Attributes:
        images_per_s: The predicted rate of the whole job.
        limits: The rate in images/s that each limit alone would allow.
        all_reduce_bytes: The bytes of an all-reduce.
        all_reduce_s: The seconds of an all-reduce.
        step_s: The seconds of a step, all-reduce included.
        one_device_images_per_s: The rate of one device.
    """

    images_per_s: float
    limits: dict[str, float]
    all_reduce_bytes: int
    all_reduce_s: float
    step_s: float
    one_device_images_per_s: float

    @property
    def limit(self) -> str:
        """The name of the lowest limit."""
        return min(self.limits, key=lambda name: self.limits[name])

    @property
    def speedup(self) -> float:
        """The ratio of the predicted rate to that of one device."""
        return self.images_per_s / self.one_device_images_per_s


def predict(rates: Rates, cluster: Cluster, channels: int) -> Prediction:
    """Predict the rate of training on a cluster.

    Args:
        rates: Measured rates of one process.
        cluster: The cluster.
        channels: The number of channels of the heads.

    Returns:
        The predicted rate and its limits.
    """
    n, per_node = cluster.devices, cluster.devices // cluster.nodes
    # The processes of a CPU node share its cores. Processes with a GPU each are independent.
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
    if rates.staged_bytes_per_s is not None:  # one process uses no more cores than in the measurement
        limits["staging"] = cluster.nodes * min(per_node, speed) * rates.staged_bytes_per_s / cluster.image_bytes
    if n > 1:
        limits["all-reduce"] = cluster.batch_images / reduce_s
    other_limits = [limit for name, limit in limits.items() if name not in ("device", "all-reduce")]
    return Prediction(
        images_per_s=min([cluster.batch_images / step_s, *other_limits]),
        limits=limits,
        all_reduce_bytes=reduced_bytes,
        all_reduce_s=reduce_s,
        step_s=step_s,
        one_device_images_per_s=1 / (rates.device_s / (speed if rates.shared_cores else 1)),
    )


def all_reduce_s(nbytes: float, processes: int, bandwidth_bytes_per_s: float, latency_s: float) -> float:
    """Return the seconds of an all-reduce of `nbytes` over processes: 0 for one process.

    Every process sends and receives 2 (N-1)/N of the bytes in 2 log2 N messages (Thakur et al. 2005, section 4.5),
    over the slowest link between any two of them.
    """
    if processes == 1:
        return 0.0
    sent = 2 * (processes - 1) / processes * nbytes
    return sent / bandwidth_bytes_per_s + 2 * math.ceil(math.log2(processes)) * latency_s


def measured_cases(results: dict[str, Any], channels: int) -> list[tuple[str, float, float]]:
    """Compare the model with the measured rows of `scaling`. The model itself uses only rows of `train` and `load`.

    Args:
        results: The content of a results file.
        channels: The number of channels of the heads.

    Returns:
        The name, the measured and the predicted images/s of each row.
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
    """Return the rates in a results file.

    Args:
        results: The content of the file.
        contexts: The number of contexts, which selects the row of `train`.
        data: The name of the row of `load`.

    Returns:
        The rates of one process.

    Raises:
        ConfigError: A row is missing.
    """
    shared_cores = results["settings"]["device"] == "cpu"
    train = find_row(results, "train", f"lin, {contexts} context{'s' if contexts > 1 else ''}")
    load = find_row(results, "load", data)
    device_s = 1 / train["median"]
    if shared_cores:  # loading uses the same cores
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
