"""Both loaders on a GPU, against the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from helpers.loaded import SIZES
from helpers.packed import encoded, noise, photo, read_set
from helpers.shard_sets import raw_samples, write_set


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
class TestOnGpu:
    def test_batches_equal_the_cpu(self, tmp_path, loader):
        pixels = [photo(32, 24, seed) for seed in range(23)]
        for encoding, extension, tolerance in (("raw", "bin", 0), ("png", "png", 0), ("jpeg", "jpg", 8)):
            forms = [p.tobytes() if encoding == "raw" else encoded(p, encoding.upper()) for p in pixels]
            samples = [{extension: data} for data in forms]
            directory = write_set(tmp_path / encoding, samples, SIZES, encoding=encoding, image_size=(32, 24))
            on_cpu = open_shards(directory, batch_size=4, options=LoadOptions(loader="portable")).epoch(0)
            on_gpu = open_shards(directory, batch_size=4, device="cuda", options=LoadOptions(loader=loader)).epoch(0)
            for expected, batch in zip(on_cpu, on_gpu, strict=True):
                assert batch.images.device.type == "cuda"
                assert batch.ids.device.type == "cpu"
                assert torch.equal(batch.ids, expected.ids)
                assert (batch.images.cpu().int() - expected.images.int()).abs().max() <= tolerance

    def test_scalars(self, tmp_path, loader):
        pixels = noise(10, 6, 4, 3)
        samples = [
            {"p0.bin": p.tobytes(), "p1.bin": p.tobytes(), "same.f32": np.float32(i / 16).tobytes()}
            for i, p in enumerate(pixels)
        ]
        directory = write_set(tmp_path / "set", samples, [10], kind="pairs")
        for batch in open_shards(directory, batch_size=4, device="cuda", options=LoadOptions(loader=loader)).epoch(0):
            assert batch.components["same"].device.type == "cuda"
            assert (16 * batch.components["same"].cpu()).tolist() == batch.ids.tolist()

    def test_memory_is_not_used_again_before_the_device_has_read_it(self, tmp_path, loader):
        directory = write_set(tmp_path / "set", raw_samples(4000, 32, 32), [2000, 2000], image_size=(32, 32))
        there = read_set(directory)
        totals = []
        for batch in open_shards(directory, batch_size=100, device="cuda", options=LoadOptions(loader=loader)).epoch(0):
            torch.cuda._sleep(20_000_000)  # the device lags behind, while the batch is freed at once
            totals.append((batch.ids, batch.images.double().sum((1, 2, 3))))
            del batch
        for ids, total in totals:
            expected = [sum(there[sample_id]["bin"]) for sample_id in ids.tolist()]
            assert total.cpu().tolist() == expected
