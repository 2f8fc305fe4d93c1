"""Groups of judgements that share few images, so that a step computes the features of each image once.

    judgements: images (R, 3) --> groups: at most B images each, and all judgements that these images allow

A group starts with a judgement that is drawn at random. Then it takes, one after another, the image that completes the
most judgements; where none completes one, the images of a judgement that shares an image with the group, or of another
judgement drawn at random.

Groups depend on the judgements, the seed and the epoch only: not on the number of processes. There are `PLANS`
different divisions; epochs use them in turns, in a random order of the groups. All divisions have the same number of
groups, because those with fewer are completed by dividing their largest groups.
Shapes: n images, R judgements, m images and T judgements of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import ConfigError
from fastdps.loading.order import permutation

#: Number of different divisions, which epochs use in turns.
PLANS = 4
#: Least number of images of a group: those of a judgement.
LEAST_IMAGES = 3
#: Numbers of the random streams of a division and of an epoch.
_STARTS_STREAM, _TIES_STREAM, _PARTS_STREAM, _ORDER_STREAM = range(4)


@dataclass(frozen=True)
class ImageGroup:
    """Judgements with their images.

    Attributes:
        images: The images, each once, ascending, int64 (m,).
        judgements: Indices of the judgements, ascending, int64 (T,).
    """

    images: NDArray[np.int64]
    judgements: NDArray[np.int64]


class JudgedGroups:
    """The groups of each epoch.

    Args:
        images: Images of ref, a and b of each judgement, as numbers from 0 to n - 1, int64 (R, 3).
        most_images: Most images of a group, B.
        seed: Seed of the groups and of their order.

    Attributes:
        steps: Number of groups of an epoch.

    Raises:
        ConfigError: `most_images` is below the three images of a judgement, or there are no judgements.
    """

    def __init__(self, images: NDArray[np.int64], most_images: int, seed: int) -> None:
        if most_images < LEAST_IMAGES:
            raise ConfigError(
                f"--batch-size is {most_images}, but a judgement has {LEAST_IMAGES} images. Choose at least that many."
            )
        if not len(images):
            raise ConfigError("there are no judgements to train on. Check the set with `fastdps check`.")
        self._images, self._seed = images, seed
        found = [_greedy_groups(images, most_images, seed, number) for number in range(PLANS)]
        self.steps = max(map(len, found))
        self._plans = [self._completed(groups, number) for number, groups in enumerate(found)]

    def epoch(self, epoch: int) -> list[ImageGroup]:
        """Return the groups of an epoch, in its order: `steps` of them, with each judgement once."""
        groups = self._plans[epoch % PLANS]
        return [groups[place] for place in permutation(len(groups), self._seed, epoch, _ORDER_STREAM)]

    def _completed(self, groups: list[NDArray[np.int64]], number: int) -> list[ImageGroup]:
        """Return `steps` groups: the largest ones are divided until there are enough."""
        groups = sorted(groups, key=len)
        while len(groups) < self.steps:
            largest = groups.pop()
            mixed = largest[permutation(len(largest), self._seed, number, _PARTS_STREAM)]
            groups += [mixed[::2], mixed[1::2]]
            groups.sort(key=len)
        return [ImageGroup(np.unique(self._images[judgements]), np.sort(judgements)) for judgements in groups]


def _greedy_groups(images: NDArray[np.int64], most: int, seed: int, number: int) -> list[NDArray[np.int64]]:
    """Return a division of all judgements into groups of at most `most` images."""
    builder = _GroupBuilder(images, permutation(images.max() + 1, seed, number, _TIES_STREAM))
    starts = permutation(len(images), seed, number, _STARTS_STREAM).tolist()
    return [builder.build(start, most) for start in starts if builder.unused[start]]


class _GroupBuilder:
    """Builds one group after another of the judgements that are left.

    Args:
        images: Images of each judgement, int64 (R, 3).
        priority: A number of each image, by which equal images are told apart, (n,).
    """

    def __init__(self, images: NDArray[np.int64], priority: NDArray[np.int64]) -> None:
        self._images, self._totals = images, images.sum(axis=1)
        self._priority = priority / len(priority)  # below 1, so that it only decides between equal scores
        self.unused = np.ones(len(images), bool)
        by_image = np.argsort(images.reshape(-1), kind="stable")
        ends = np.cumsum(np.bincount(images.reshape(-1), minlength=len(priority)))
        self._of_image = np.split(by_image // images.shape[1], ends[:-1])

    def build(self, start: int, most: int) -> NDArray[np.int64]:
        """Return the judgements of a group that begins with `start`, and mark them as used."""
        self._missing = np.full(len(self._images), LEAST_IMAGES)  # images of a judgement that are not in the group
        self._left = self._totals.copy()  # the sum of their numbers: the number of the last one
        self._completes = np.zeros(len(self._priority))  # judgements that an image would complete
        self._group: list[int] = []
        self._is_in = np.zeros(len(self._priority), bool)
        self._taken: list[NDArray[np.int64]] = []
        following = self._images[start].tolist()
        while following:
            for image in following:
                self._add(image)
            following = self._next(most - len(self._group))
        taken = np.concatenate(self._taken)
        self.unused[taken] = False
        return taken

    def _add(self, image: int) -> None:
        own = self._of_image[image]
        own = self._of_image[image] = own[self.unused[own]]
        missing = self._missing[own] - 1
        left = self._left[own] - image
        self._missing[own], self._left[own] = missing, left
        np.add.at(self._completes, left[missing == 1], 1)
        self._completes[image] = 0
        self._is_in[image] = True
        self._group.append(image)
        self._taken.append(own[missing == 0])

    def _next(self, room: int) -> list[int]:
        """Return the images to add to the group, none if it is full or nothing fits."""
        if not room:
            return []
        best = int((self._completes + self._priority).argmax())
        if self._completes[best] >= 1:
            return [best]
        if room == 1:
            return []
        for image in reversed(self._group):
            own = self._of_image[image]
            own = own[self.unused[own] & (self._missing[own] == 2)]
            if len(own):
                return self._new_images(int(own[0]))
        if room < LEAST_IMAGES:
            return []
        rest = np.flatnonzero(self.unused & (self._missing == LEAST_IMAGES))
        return self._new_images(int(rest[int(self._priority[self._group[0]] * len(rest))])) if len(rest) else []

    def _new_images(self, judgement: int) -> list[int]:
        return [image for image in self._images[judgement].tolist() if not self._is_in[image]]
