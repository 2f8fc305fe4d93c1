"""The baseline that training is compared with, "the usual way": the approach of the paper's group and of most people.

    PNG file --Pillow--> tensor --torchvision, sample by sample--> (ref, p0, p1, judge)   in DataLoader workers
      --> LPIPS(ref, p0), LPIPS(ref, p1): four forward passes --> LPIPS's judge network --> Adam

It has one random pair of distortions per image and one context; the backbone is frozen, or trained with the heads. It
is fast for what it does: images are already 64 px, there is one worker per core, and the workers are persistent. The
only thing it uses of fastdps is the location of the pretrained weights; the network, its heads, dropout and judge come
from the `lpips` package.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import functional

from bench.harness.measure import Workload, repeated
from fastdps.metric.weights import load_pretrained

BATCH = 50
SIZE = 64


def _rotate(image: Tensor) -> Tensor:
    return functional.rotate(image, random.uniform(30, 330))


def _translate(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    shift = [round(random.uniform(-0.5, 0.5) * width), round(random.uniform(-0.5, 0.5) * height)]
    return functional.affine(image, angle=0, translate=shift, scale=1, shear=[0.0, 0.0])


def _darken(image: Tensor) -> Tensor:
    return functional.adjust_brightness(image, random.uniform(0.1, 0.5))


def _color(image: Tensor) -> Tensor:
    return functional.adjust_hue(image, random.uniform(-0.5, 0.5))


def _blur(image: Tensor) -> Tensor:
    return functional.gaussian_blur(image, [11, 21], random.uniform(4, 10))


def _zoom_in(image: Tensor) -> Tensor:
    return functional.affine(image, angle=0, translate=[0, 0], scale=random.uniform(1.1, 2), shear=[0.0, 0.0])


DISTORTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rotate": _rotate,
    "translate": _translate,
    "darken": _darken,
    "color": _color,
    "blur": _blur,
    "zoom_in": _zoom_in,
}


def draw_and_distort(name: str, image: Tensor) -> Tensor:
    """Return one image (3, H, W) distorted with parameters drawn from Python's generator."""
    return DISTORTIONS[name](image)


class TripletDataset(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """A data set of a reference, two of its distorted versions, and the one that must be closer in one ranking."""

    def __init__(self, files: Sequence[Path], ranking: Sequence[str]) -> None:
        self._files, self._ranking = list(files), list(ranking)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.judged(self.load(index))

    def load(self, index: int) -> Tensor:
        """Return one image (3, H, W), float in [0, 1]."""
        with Image.open(self._files[index]) as image:
            return functional.to_tensor(image.convert("RGB"))

    def judged(self, ref: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the triplet of one image: ref, p0, p1 (3, H, W) each, and judge (1, 1, 1)."""
        first, second = random.sample(range(len(self._ranking)), 2)
        p0, p1 = (draw_and_distort(self._ranking[rank], ref) for rank in (first, second))
        return ref, p0, p1, torch.tensor([[[float(second < first)]]])


class Pictures(Dataset[Tensor]):
    """A data set of image files, resized to (3, size, size), float: the baseline of loading."""

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self._files, self._size = list(files), size

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._files[index]) as image:
            rgb = image.convert("RGB")
        return functional.to_tensor(rgb if rgb.size == (self._size, self._size) else rgb.resize((self._size,) * 2))


@contextmanager
def loading(files: Sequence[Path], size: int, batch_size: int, workers: int) -> Iterator[Workload]:
    """Yield a workload whose unit is an epoch of files in a `DataLoader`; its workers end with the context."""
    loader: Any = DataLoader(
        Pictures(files, size),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )

    def work(amount: int) -> float:
        return sum(len(batch) for _ in range(amount) for batch in loader)

    yield work
    loader._iterator = None  # ends the workers


class _Drawn(Sampler[int]):
    """A sampler of `count` random numbers below `size`, with replacement."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(random.choices(range(self.size), k=self.count))


class Reference:
    """The training loop of the baseline, which continues with each call. A context manager that ends its workers.

    Args:
        files: The image files.
        ranking: The ranking that decides the judgements.
        device: The device of the network.
        workers: The number of `DataLoader` workers.
        train_backbone: Train the backbone with the heads.

    Attributes:
        lpips: The network.
    """

    def __init__(
        self,
        files: Sequence[Path],
        ranking: Sequence[str],
        device: torch.device,
        workers: int,
        *,
        train_backbone: bool = False,
    ) -> None:
        self._device, self._workers = device, workers
        self.lpips, self._loss = network(device, train_backbone=train_backbone)
        trained = [p for module in (self.lpips, self._loss) for p in module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(trained, lr=1e-4 if train_backbone else 1e-3, betas=(0.5, 0.999))
        self._sampler = _Drawn(len(files))
        self._triplets = TripletDataset(files, ranking)
        self._loader: Any = DataLoader(
            self._triplets,
            BATCH,
            sampler=self._sampler,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
            # Forking a process with threads may hang. The start method does not matter once the workers run.
            multiprocessing_context="spawn",
        )

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        del self._loader  # ends the workers

    def train(self, batches: int) -> int:
        """Train on a number of batches. Return the number of triplets."""
        self._sampler.count = batches * BATCH
        for ref, p0, p1, judge in self._loader:
            self._step(*(t.to(self._device, non_blocking=True) for t in (ref, p0, p1, judge)))
        return batches * BATCH

    def _step(self, ref: Tensor, p0: Tensor, p1: Tensor, judge: Tensor) -> None:
        self._descend(self.lpips(ref, p0, normalize=True), self.lpips(ref, p1, normalize=True), judge)

    def _descend(self, d0: Tensor, d1: Tensor, judge: Tensor) -> None:
        loss = self._loss(d0, d1, judge * 2 - 1)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        for head in self.lpips.lins:
            head.model[-1].weight.data.clamp_(min=0)

    def parts(self) -> dict[str, Workload]:
        """Return the parts of a training step with a frozen backbone as workloads, in triplets.

        The rates of loading and distorting are those of one process, multiplied by the number of workers: an upper
        bound, as if the workers never waited.
        """
        import lpips

        refs = [self._triplets.load(index % len(self._triplets)) for index in range(BATCH)]
        columns = zip(*(self._triplets.judged(ref) for ref in refs), strict=True)
        ref, p0, p1, judge = (torch.stack(column).to(self._device) for column in columns)

        def load() -> None:
            with one_thread():
                for index in range(BATCH):
                    self._triplets.load(index % len(self._triplets))

        def distort() -> None:
            with one_thread():
                for image in refs:
                    self._triplets.judged(image)

        def features() -> list[Any]:
            scaled = [self.lpips.scaling_layer(2 * image - 1) for image in (ref, p0, ref, p1)]
            return [self.lpips.net(image) for image in scaled]

        def distances(maps: list[Any]) -> list[list[Tensor]]:
            normal = [[lpips.normalize_tensor(tap) for tap in taps] for taps in maps]
            return [[(a - b) ** 2 for a, b in zip(normal[i], normal[i + 1], strict=True)] for i in (0, 2)]

        def heads(differences: list[list[Tensor]]) -> None:
            d0, d1 = (
                sum(
                    lpips.spatial_average(head(difference), keepdim=True)
                    for head, difference in zip(self.lpips.lins, taps, strict=True)
                )
                for taps in differences
            )
            self._descend(d0, d1, judge)

        maps = features()
        differences = distances(maps)
        return {
            "load": repeated(load, BATCH * self._workers),
            "distort": repeated(distort, BATCH * self._workers),
            "features": repeated(features, BATCH),
            "distances": repeated(lambda: distances(maps), BATCH),
            "heads": repeated(lambda: heads(differences), BATCH),
        }


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, as in a worker of a `DataLoader`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def network(device: torch.device, *, train_backbone: bool = False) -> tuple[Any, Any]:
    """Return LPIPS on AlexNet with random heads, in training mode, and its judge with the loss."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision in a deprecated way
        metric = lpips.LPIPS(
            net="alex", pnet_rand=True, pnet_tune=train_backbone, pretrained=False, eval_mode=False, verbose=False
        )
    slices = metric.net.state_dict()  # named slice3.6.weight where torchvision has features.6.weight
    state = load_pretrained("alexnet", ["features." + key.split(".", 1)[1] for key in slices])
    metric.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in slices})
    return metric.to(device), lpips.BCERankingLoss().to(device)
