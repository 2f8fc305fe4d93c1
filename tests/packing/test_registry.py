"""`open_source`: every kind of data set by name, and the errors for what a kind does not take."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from fastdps.errors import ConfigError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources import registry
from fastdps.packing.sources.bapps import Bapps
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.packing.sources.folder import Folder
from fastdps.packing.sources.imagenet import ImageNet
from fastdps.packing.sources.judgements import JudgementFile
from fastdps.packing.sources.registry import SOURCES, SourceSettings, open_source
from fastdps.packing.sources.torchvision_sets import stl10, svhn
from fastdps.packing.sources.triplets import Triplets
from fastdps.packing.sources.webdataset_shards import WebDatasetShards
from helpers.packed import digests, write_noise_folder

HERE = Path("somewhere")
MADE = {
    "imagenet": ImageNet(HERE),
    "bapps": Bapps(HERE),
    "stl10": stl10(HERE),
    "svhn": svhn(HERE),
    "folder": Folder(HERE),
    "webdataset": WebDatasetShards(HERE),
    "triplets": Triplets(HERE),
    "judgements": JudgementFile(HERE),
    "deadleaves": DeadLeaves(count=1500, size=64, seed=0),
}


def test_every_kind_is_tested():
    assert set(MADE) == set(SOURCES)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_kind_makes_its_data_set(kind):
    path = HERE if "path" in SOURCES[kind].settings else None
    assert open_source(kind, path) == MADE[kind]
    assert open_source(kind, path and str(path)) == MADE[kind]


def test_settings_reach_the_data_set():
    assert open_source("stl10", HERE, download=True) == stl10(HERE, download=True)
    assert open_source("svhn", HERE, download=True) == svhn(HERE, download=True)
    assert open_source("judgements", HERE, by="p", holdout_by="row") == JudgementFile(HERE, "p", "row")
    assert open_source("webdataset", HERE, component="jpg") == WebDatasetShards(HERE, "jpg")
    assert open_source("deadleaves", count=7, size=32, seed=5) == DeadLeaves(count=7, size=32, seed=5)


def test_an_opened_source_packs_to_the_same_bytes(tmp_path):
    write_noise_folder(tmp_path / "in", 5)
    pack(Folder(tmp_path / "in"), tmp_path / "a", PackOptions(size=16))
    pack(open_source("folder", tmp_path / "in"), tmp_path / "b", PackOptions(size=16))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_an_unknown_kind_is_an_error_that_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"'imagenette' is not a kind of source: .*\. Did you mean 'imagenet'\?"):
        open_source("imagenette", HERE)


@pytest.mark.parametrize("kind", [kind for kind, row in SOURCES.items() if "path" in row.settings])
def test_a_missing_path_is_an_error(kind):
    with pytest.raises(ConfigError, match=rf'^{kind} needs a path: open_source\("{kind}", PATH\)\.$'):
        open_source(kind)


def test_a_row_that_forgets_to_list_its_path_is_an_error():
    with pytest.raises(ConfigError, match="needs a path"):
        SOURCES["folder"].make(SourceSettings())


GIVEN = {"path": "x", "download": True, "count": 3, "size": 32, "seed": 1, "by": "person", "holdout_by": "row"}
GIVEN["component"] = "jpg"
REFUSED = [(kind, setting) for kind, row in SOURCES.items() for setting in GIVEN if setting not in row.settings]


@pytest.mark.parametrize(("kind", "setting"), REFUSED)
def test_a_setting_that_a_kind_does_not_take_is_an_error(kind, setting):
    path = {"path": HERE} if "path" in SOURCES[kind].settings else {}
    with pytest.raises(ConfigError, match=rf"^{kind} takes no {setting}; it takes {', '.join(SOURCES[kind].settings)}"):
        open_source(kind, **{**path, setting: GIVEN[setting]})


def test_a_bad_value_is_the_error_of_the_source():
    with pytest.raises(ConfigError, match="dead leaves need a count of 1"):
        open_source("deadleaves", count=0)


def test_the_example_holds():
    assert doctest.testmod(registry, extraglobs={"open_source": open_source}).failed == 0
    assert doctest.testmod(registry).attempted == 1
