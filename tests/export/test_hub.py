"""Metrics on a hub of this machine: pushed, loaded by another process, pinned, kept for offline use, and refused."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants

import fastdps
from fastdps.commands.cli import main
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings
from fastdps.errors import ConfigError, FastDPSError
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from fastdps.training.bases import open_base
from helpers.fake_hub import TOKEN, FakeHub, Repository, fake_hub
from helpers.made_up_judges import make_judged_run
from helpers.made_up_runs import make_run

#: Of huggingface_hub, when it uploads a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
RANKINGS = all_rankings(NAMES)[::300]
TAPS = (1, 4)
NAME = "anna/food"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = noise(2, 4, 3, 64, 64)


@pytest.fixture(autouse=True)
def _weights(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that this process uses, with an empty cache and a token that may write."""
    with fake_hub() as running:
        use(monkeypatch, running.url, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def use(monkeypatch, url: str, cache: Path) -> None:
    """Set what huggingface_hub reads from the environment when it is imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    values = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(cache)}
    values |= {"HF_HUB_DISABLE_XET": True, "HF_TOKEN_PATH": str(cache / "token"), "HF_HUB_DISABLE_PROGRESS_BARS": True}
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)


def small(seed: int, **options) -> PerceptualMetric:
    return PerceptualMetric(Backbone("alexnet", taps=TAPS), noise(1, 256, seed=seed), **options)


def same(loaded: fastdps.ImageMetric, metric: PerceptualMetric) -> bool:
    return torch.allclose(loaded(X, Y), metric(X, Y)[:, 0], atol=1e-6, rtol=0)


def files_of(hub: FakeHub) -> dict[str, bytes]:
    """The newest files, which can be changed as somebody with access to the hub can."""
    repository = hub.repositories[NAME]
    return repository.commits[repository.names["main"]]


def front_matter(hub: FakeHub) -> tuple[dict, str]:
    _, metadata, text = files_of(hub)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


@pytest.fixture(scope="module")
def run(tmp_path_factory, weights_dir):
    """A scored run of three contexts."""
    run = RunDirectory(make_run(tmp_path_factory.mktemp("runs") / "mine", [list(ranking) for ranking in RANKINGS]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        PerceptualMetric(Backbone("alexnet"), noise(len(RANKINGS), 1152), RANKINGS).save(run.metric)
    return run


def test_another_process_loads_what_was_pushed(hub, run, tmp_path, capsys):
    assert main(["export", str(run.path), "--push", NAME, "--licence", "apache-2.0", "--tag", "v1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    commit = hub.repositories[NAME].names["main"]
    assert f"3 contexts pushed: {hub.url}/{NAME}/commit/{commit}" in said
    assert f'fastdps.load("hub:{NAME}@{commit}")' in said
    assert set(files_of(hub)) == {"metric.safetensors", "fastdps.json", "README.md"}
    code = (
        "import fastdps, sys, torch; torch.set_num_threads(1)\n"
        "x, y = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))\n"
        "for context in sys.argv[1:]: print(*fastdps.load('hub:anna/food@v1', context)(x, y).tolist())"
    )
    command = [sys.executable, "-c", code, *(",".join(ranking) for ranking in RANKINGS)]
    environment = {**os.environ, **hub.environment(tmp_path / "home", token=None)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    found = torch.tensor([[float(word) for word in line.split()] for line in done.stdout.splitlines()])
    assert torch.allclose(found.T, PerceptualMetric.load(run.metric)(X, Y), atol=1e-6, rtol=0)


def test_the_card_and_its_metadata(hub, run):
    pushed = fastdps.push_to_hub(run.path, NAME, licence="apache-2.0")
    metadata, text = front_matter(hub)
    scores = json.loads(run.scores.read_text())
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "fastdps"
    assert {"perceptual-similarity", "alexnet"} <= set(metadata["tags"])
    values = [one["metrics"][0]["value"] for one in metadata["model-index"][0]["results"]]
    assert values[0] == pytest.approx(scores["summary"]["adapted_accuracy"], abs=1e-6)
    assert len(values) == 1 + len(scores["bapps"]["2afc"]) + len(scores["bapps"]["jnd"])
    for part in (
        "| contexts | 3 |",
        "Means over its 3 contexts",
        f"95 % interval of {scores['summary']['intervals']['change']['low']:+.4f} to",
        'fastdps.load("hub:anna/food", context="',
        "ImageNet",
    ):
        assert part in text.replace("context='", 'context="')
    assert str(run.path.parent) not in text + files_of(hub)["fastdps.json"].decode()
    assert json.loads(files_of(hub)["fastdps.json"])["card"] == pushed.card
    json.dumps(pushed.to_dict())

    address = fastdps.load(run.path, RANKINGS[1]).push_to_hub("anna/one", private=True)
    assert hub.repositories["anna/one"].private
    assert address == f"hub:anna/one@{hub.repositories['anna/one'].names['main']}"
    card = json.loads(hub.repositories["anna/one"].commits[address[-40:]]["fastdps.json"])["card"]
    assert card["context"] == list(RANKINGS[1])
    own = next(row for row in scores["contexts"] if row["ranking"] == list(RANKINGS[1]))
    assert card["scores"]["adapted_accuracy"] == own["adapted_accuracy"]
    assert fastdps.load(address).context == RANKINGS[1]


def test_the_card_of_judges_has_intervals(hub, tmp_path):
    path = make_judged_run(tmp_path / "judged", ["anna"])
    PerceptualMetric(Backbone("alexnet"), noise(2, 1152), judges=("pooled", "anna")).save(path / "metric.safetensors")
    fastdps.push_to_hub(path, NAME)
    metadata, text = front_matter(hub)
    pooled = json.loads((path / "scores.json").read_text())["judgements"]["pooled"]["votes"]
    assert metadata["license"] == "other"
    assert metadata["model-index"][0]["results"][-1]["metrics"][0]["value"] == pytest.approx(pooled["after"]["value"])
    assert f"95 % interval of {pooled['change']['low']:+.4f} to {pooled['change']['high']:+.4f}" in text
    assert fastdps.load(f"hub:{NAME}").judge == "pooled"
    assert fastdps.load(f"hub:{NAME}", "anna").judge == "anna"
    with pytest.raises(ConfigError, match=r"hub:anna/food has no judge 'ann'\. Did you mean 'anna'"):
        fastdps.load(f"hub:{NAME}", "ann")


def test_scores_are_not_those_of_a_metric_that_was_changed(hub, run):
    metric = fastdps.load(run.path, RANKINGS[0])
    metric.metric.weights[0, 3] += 0.1
    metric.push_to_hub(NAME)
    card = json.loads(files_of(hub)["fastdps.json"])["card"]
    assert card["scores"] is None
    assert card["training"] is None


def test_contexts_with_a_backbone_each_are_downloaded_alone(hub, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.metric_of(0).parent.mkdir(parents=True)
    metrics = [
        PerceptualMetric(Backbone("alexnet", taps=TAPS, pretrained=False, seed=seed), rankings=[RANKINGS[seed]])
        for seed in range(2)
    ]
    for number, metric in enumerate(metrics):
        metric.save(run.metric_of(number), include_backbone=True)
    assert fastdps.push_to_hub(run.path, NAME).contexts == 2
    hub.requests.clear()
    loaded = fastdps.load(f"hub:{NAME}", RANKINGS[1])
    assert same(loaded, metrics[1])
    assert [line.rpartition("/")[2] for line in hub.requests if line.startswith("GET")] == [
        "fastdps.json",
        "001.safetensors",
    ]
    with pytest.raises(ConfigError, match=r"hub:anna/food has 2 contexts. Choose one"):
        fastdps.load(f"hub:{NAME}")
    with pytest.raises(ConfigError, match="2 contexts with a backbone each"):
        open_base(f"hub:{NAME}")
    assert torch.equal(open_base(f"hub:{NAME}", RANKINGS[0]).metric(X, Y), metrics[0](X, Y))


def test_a_revision_stays_what_it_was(hub):
    first, second = small(1), small(2)
    pinned = fastdps.push_to_hub(first, NAME, tag="v1").address
    assert fastdps.push_to_hub(second, NAME).address != pinned
    for address, metric in ((pinned, first), (f"hub:{NAME}@v1", first), (f"hub:{NAME}", second)):
        assert same(fastdps.load(address), metric)


def test_after_the_first_download_no_hub_is_needed(hub, monkeypatch):
    metric = small(1)
    pinned = fastdps.push_to_hub(metric, NAME).address
    fastdps.load(f"hub:{NAME}")
    hub.requests.clear()
    assert same(fastdps.load(pinned), metric)
    assert not hub.requests  # a commit does not change, so the cache is not compared with the hub
    hub.fails_with = 503
    assert same(fastdps.load(f"hub:{NAME}"), metric)
    hub.fails_with = None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert same(fastdps.load(f"hub:{NAME}"), metric)
    with pytest.raises(FastDPSError, match=r"hub:anna/else: HF_HUB_OFFLINE is set, and fastdps.json of it is not in"):
        fastdps.load("hub:anna/else")
    with pytest.raises(FastDPSError, match="HF_HUB_OFFLINE is set, and nothing can be pushed"):
        fastdps.push_to_hub(metric, NAME)


def test_without_a_hub_the_network_is_named(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between attempts
    hub.fails_with = 503
    with pytest.raises(FastDPSError, match=r"hub:anna/food: the hub cannot be reached, and .* Check the network"):
        fastdps.load(f"hub:{NAME}")
    with pytest.raises(FastDPSError, match="hub:anna/food: the hub refuses with status 503"):
        fastdps.push_to_hub(small(1), NAME)
    use(monkeypatch, "http://127.0.0.1:9", Path(constants.HF_HUB_CACHE))
    with pytest.raises(FastDPSError, match=r"hub:anna/food: the hub cannot be reached, and .* Check the network"):
        fastdps.load(f"hub:{NAME}")
    with pytest.raises(FastDPSError, match=r"hub:anna/food: the request to the hub failed: .* Check the network"):
        fastdps.push_to_hub(small(1), NAME)


def test_what_does_not_exist_or_is_not_allowed(hub, monkeypatch):
    fastdps.push_to_hub(small(1), NAME, private=True)
    with pytest.raises(ConfigError, match=r"hub:anna/food@v9 does not exist: the repository has no such branch, tag"):
        fastdps.load(f"hub:{NAME}@v9")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for address in (f"hub:{NAME}", "hub:anna/nothing"):
        with pytest.raises(ConfigError, match=f"{address} does not exist, or is private.*hf auth login"):
            fastdps.load(address)
    with pytest.raises(FastDPSError, match=r"status 403: .* The token may not write there"):
        fastdps.push_to_hub(small(1), NAME)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"Pushing to anna/food needs a token that may write\. Log in with `hf auth"):
        fastdps.push_to_hub(small(1), NAME)
    for address in ("hub:anna", "hub:anna/food@", "hub:../../etc/passwd", "hub:anna/food/more"):
        with pytest.raises(ConfigError, match="is not an address on the hub: give hub:user/name"):
            fastdps.load(address)
    with pytest.raises(ConfigError, match="'food' is not the name of a repository on the hub: give user/name"):
        fastdps.push_to_hub(small(1), "food")
    with pytest.raises(ConfigError, match="A loaded metric is pushed as it is"):
        fastdps.push_to_hub(small(1), NAME, context="anna")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"The hub needs huggingface_hub .*pip install 'fastdps\[hub\]'"):
        fastdps.load(f"hub:{NAME}")


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def changed_manifest(files: dict[str, bytes], change) -> None:
    manifest = json.loads(files["fastdps.json"])
    change(manifest)
    files["fastdps.json"] = json.dumps(manifest).encode()


def test_a_file_that_was_changed_on_the_hub_is_refused(hub):
    fastdps.push_to_hub(small(1), NAME)
    files = files_of(hub)
    files["metric.safetensors"] = flipped(files["metric.safetensors"])
    with pytest.raises(FastDPSError, match=r"hub:anna/food@\w{40}: metric.safetensors is not the file that was"):
        fastdps.load(f"hub:{NAME}")


def test_a_file_that_was_changed_with_its_hash_is_refused_by_its_own(hub):
    fastdps.push_to_hub(small(1), NAME)
    files = files_of(hub)
    files["metric.safetensors"] = bad = flipped(files["metric.safetensors"])
    changed_manifest(files, lambda one: one["files"][0].update(sha256=hashlib.sha256(bad).hexdigest()))
    with pytest.raises(FastDPSError, match=r"metric\.safetensors is damaged: the hash of its tensors"):
        fastdps.load(f"hub:{NAME}")


def test_a_file_that_was_changed_in_the_cache_is_refused_until_it_is_removed(hub):
    metric = small(1)
    pinned = fastdps.push_to_hub(metric, NAME).address
    fastdps.load(pinned)
    (pointer,) = Path(constants.HF_HUB_CACHE).rglob("metric.safetensors")
    blob = pointer.resolve()
    blob.write_bytes(flipped(blob.read_bytes()))
    with pytest.raises(FastDPSError, match=f"is not the file that was pushed: .* remove {blob}"):
        fastdps.load(pinned)
    blob.unlink()
    assert same(fastdps.load(pinned), metric)


def test_foreign_repositories_are_refused(hub):
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].add({"model.safetensors": b"of another library"})
    with pytest.raises(FastDPSError, match=r"hub:anna/food has no file fastdps\.json: it is not a metric of fastdps"):
        fastdps.load(f"hub:{NAME}")
    hub.repositories[NAME].add({"fastdps.json": b"{"})
    with pytest.raises(FastDPSError, match=r"fastdps\.json is damaged"):
        fastdps.load(f"hub:{NAME}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda one: one["files"][0].update(name="metric.pth"),
            r"names the file 'metric\.pth'\. Only metric.safe",
        ),
        (lambda one: one["contexts"][0].update(file="../x.safetensors"), r"names the file '\.\./x\.safetensors'"),
        (lambda one: one["contexts"][0].update(file="metrics/000.safetensors"), "names the file 'metrics/000"),
        (lambda one: one["contexts"][0].update(row=5), r"does not have the context .* in row 5"),
        (lambda one: one["contexts"].clear(), "contexts must be a list with at least one item"),
        (lambda one: one.update(format_version=2), r"version 2, but this fastdps reads .* Update fastdps"),
    ],
)
def test_foreign_lists_of_files_are_refused(hub, change, message):
    fastdps.push_to_hub(small(1), NAME)
    changed_manifest(files_of(hub), change)
    with pytest.raises(FastDPSError, match=message):
        fastdps.load(f"hub:{NAME}")


def test_a_pickle_is_refused(hub):
    fastdps.push_to_hub(small(1), NAME)
    files = files_of(hub)
    files["metric.safetensors"] = bad = pickle.dumps({"weights": noise(1, 256)})
    changed_manifest(files, lambda one: one["files"][0].update(sha256=hashlib.sha256(bad).hexdigest()))
    with pytest.raises(FastDPSError, match=r"metric\.safetensors cannot be read as a metric"):
        fastdps.load(f"hub:{NAME}")
