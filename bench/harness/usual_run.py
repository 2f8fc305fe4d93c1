"""The usual way as a program: train one context, save its accuracy on held-out images.

    python -m bench.harness.usual_run FILES HELD_OUT RANKING EPOCHS RESULT

FILES is a directory of PNG files, HELD_OUT a shard set of other images. It prints `TRAINED` when training has ended,
and writes the accuracy, on the same draws as `fastdps evaluate`, to RESULT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.harness.reference import BATCH, Reference
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import Ranking, labels, pairs, parse_ranking
from fastdps.evaluation.options import DRAWS
from fastdps.evaluation.tally import evaluation_views
from fastdps.loading.loader import open_shards
from fastdps.metric.scores import two_afc
from fastdps.runtime.machine import cores

#: The line that is printed when training has ended.
TRAINED = "trained"


def main(files: Path, held_out: Path, ranking: Ranking, epochs: int, result: Path) -> None:
    """Train, then score."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = sorted(files.glob("*.png"))
    with Reference(paths, ranking, device, workers=cores()) as reference:
        reference.train(-(-epochs * len(paths) // BATCH))
        print(TRAINED, flush=True)
        result.write_text(json.dumps(accuracy(reference.lpips, held_out, ranking, device)), encoding="utf-8")


@torch.no_grad()
def accuracy(lpips: Any, held_out: Path, ranking: Ranking, device: torch.device) -> float:
    """Return the share of all pairs of the distortions of held-out images that an LPIPS network ranks as it should."""
    lpips.eval()
    first, second = pairs(len(NAMES)).to(device).unbind(dim=1)
    votes = labels([ranking], NAMES).to(device)[:, 0]
    scores = []
    for batch in open_shards(held_out, batch_size=BATCH, device=device, seed=None).epoch(0):
        for draw in range(DRAWS):
            views = evaluation_views(batch, draw, device, "nearest").clone()
            d = torch.stack(
                [lpips(views[:, 0], views[:, 1 + k], normalize=True).flatten() for k in range(len(NAMES))], dim=1
            )
            scores.append(two_afc(d[:, first].double(), d[:, second].double(), votes.double()).mean(dim=1))
    return float(torch.cat(scores).mean())


if __name__ == "__main__":
    files, held_out, ranking, epochs, result = sys.argv[1:]
    main(Path(files), Path(held_out), parse_ranking(ranking, NAMES), int(epochs), Path(result))
