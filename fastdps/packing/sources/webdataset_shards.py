"""WebDataset shards that others wrote, such as img2dataset's: tars whose members are grouped into samples by name.

    00000.tar: 000000000.jpg  000000000.json  000000000.txt  000000001.jpg ...
    00000.parquet, 00000_stats.json beside it are ignored

The members of a sample follow each other and have one name up to the first dot. One of them is the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastdps.errors import FastDPSError
from fastdps.packing.sources.folder import is_image_name
from fastdps.packing.sources.source import Sample, Source
from fastdps.packing.sources.tars import TarMember, list_files, read_file_at
from fastdps.runtime.files import printable
from fastdps.shards.format import MANIFEST
from fastdps.shards.webdataset import expand_braces, group_members


class ShardImage(NamedTuple):
    """The image of one sample.

    Attributes:
        shard: The name of the tar.
        member: The member with the image, or the key of a sample without one and the fault.
    """

    shard: str
    member: TarMember


@dataclass(frozen=True)
class WebDatasetShards(Source):
    """The images in the tars of a directory, in one tar, or in those that a pattern such as {000..099}.tar names.

    Attributes:
        path: The directory, the tar, or the pattern.
        component: The extension of the image in each sample, such as "jpg" or "jpg;png", without the first dot. None
            if each sample has one image.
    """

    path: Path
    component: str | None = None

    def items(self) -> Sequence[ShardImage]:
        """Return the images of all samples, in the order of shards and members; a sample without one has a fault.

        Raises:
            FastDPSError: There are no shards, or one cannot be read, has a sample in two places, or has a sample with
                several images and no component was chosen.
        """
        found = [image for path in self._shards() for image in self._samples(path)]
        if not found:
            raise FastDPSError(f"the source {self.path} contains no samples: its tars are empty. Correct --source.")
        return found

    def read(self, item: ShardImage) -> Sample:
        """Return the content of the image."""
        return {"image": read_file_at(self._parent / item.shard, item.member, self.name(item))}

    def name(self, item: ShardImage) -> str:
        """Return the names of shard and member."""
        return printable(f"{item.shard}/{item.member.name}")

    def describe(self) -> dict[str, Any]:
        """Return the name of the source and the component: the location is not a property of the set."""
        return {"name": "webdataset"} | ({} if self.component is None else {"component": self.component})

    @property
    def _parent(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def _shards(self) -> list[Path]:
        """Return the tars in order. Raises `FastDPSError` without any."""
        if not self.path.is_dir():
            return [self.path.with_name(name) for name in expand_braces(self.path.name)]
        if (self.path / MANIFEST).exists():
            raise FastDPSError(f"the source {self.path} is a shard set of fastdps, packed already: use it as it is.")
        if paths := sorted(self.path.glob("*.tar")):
            return paths
        compressed = next(self.path.glob("*.tar.*"), None) or next(self.path.glob("*.tgz"), None)
        remedy = f"Decompress {compressed.name} and the others." if compressed else "Correct --source."
        raise FastDPSError(f"the source {self.path} has no shards: no file is named *.tar. {remedy}")

    def _samples(self, path: Path) -> Iterator[ShardImage]:
        """Yield the image of each sample of a shard."""
        keys = set()
        try:
            for key, members in group_members((member.name, member) for member in list_files(path)):
                if key in keys:
                    raise FastDPSError(
                        f"the shard {path} has the sample {printable(key)} in two places. The members of a sample must "
                        "follow each other: write the tar again with `tar --sort=name`."
                    )
                keys.add(key)
                yield ShardImage(path.name, self._image(path, key, members))
        except ValueError as error:
            raise FastDPSError(f"the shard {path} is not a WebDataset: {error.args[0]}. Write it again.") from error

    def _image(self, path: Path, key: str, members: dict[str, TarMember]) -> TarMember:
        """Return the image among the members of a sample, by their extensions."""
        if self.component is None:
            wanted = [name for name in members if is_image_name(f"x.{name}")]
        else:
            wanted = [name for name in self.component.lower().split(";") if name in members]
        if len(wanted) == 1:
            return members[wanted[0]]
        if not wanted:
            what = "image" if self.component is None else self.component
            return TarMember(key, fault=f"has no {what}: it has {', '.join(members) or 'no members'}")
        raise FastDPSError(
            f"the sample {printable(key)} of the shard {path} has {len(wanted)} images: {', '.join(wanted)}. Choose "
            f"one with --component {wanted[0]}."
        )
