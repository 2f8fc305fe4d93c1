"""Processes that watch each other, simulated as heartbeats with one store in one process."""

import time
from contextlib import ExitStack
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from fastdps.errors import StoppedError
from fastdps.runtime import heartbeat
from fastdps.runtime.heartbeat import DONE, EXCHANGES, Heartbeat


@pytest.fixture
def job(monkeypatch):
    """Start the ranks of a job; return their heartbeats and their errors."""
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=5), wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    with ExitStack() as stack:

        def start(world_size: int, *, silent_s: float = 5.0, stalled_s: float = 60.0):
            failed: dict[int, str] = {}
            ranks = [
                Heartbeat(
                    rank,
                    world_size,
                    stalled_s=stalled_s,
                    silent_s=silent_s,
                    fail=lambda message, rank=rank: failed.setdefault(rank, message),
                )
                for rank in range(world_size)
            ]
            for rank in ranks:
                stack.enter_context(rank)
            return ranks, failed

        yield start


def wait_until(condition, limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def silence(rank: Heartbeat) -> None:
    """Stop the heartbeats of a process, as SIGSTOP does."""
    rank._ended.set()
    rank._thread.join()


def test_one_that_falls_silent_is_named_by_all(job):
    ranks, failed = job(3, silent_s=0.5)
    for rank in ranks:
        rank.beat("computes", 7)
    time.sleep(0.3)
    assert not failed
    silence(ranks[2])
    wait_until(lambda: {0, 1} <= failed.keys())
    assert failed[0].startswith("rank 2 of 3 (host ")
    assert "has sent no heartbeat for" in failed[0]
    assert failed[0].endswith("its last step was 7")
    assert failed[1] == failed[0]


def test_the_first_one_is_watched_too(job):
    ranks, failed = job(2, silent_s=0.5)
    silence(ranks[0])
    wait_until(lambda: failed)
    assert failed[1].startswith("rank 0 of 2 (host ")


def test_the_hung_process_is_named_and_not_the_waiting_ones(job):
    ranks, failed = job(3, stalled_s=0.5)
    for rank in (0, 2):
        ranks[rank].beat(EXCHANGES, 3)
    ranks[1].beat("waits for data", 3)
    wait_until(lambda: failed.keys() == {0, 1, 2})
    assert all(message.startswith("rank 1 of 3") for message in failed.values())
    assert "it waits for data at step 3" in failed[0]


def test_all_in_the_same_exchange_is_the_network(job):
    ranks, failed = job(2, stalled_s=0.3)
    for rank in ranks:
        rank.beat(EXCHANGES, 1)
    wait_until(lambda: failed.keys() == {0, 1})
    assert "waiting for each other" in failed[0]


def test_steps_that_go_on_are_no_hang(job):
    ranks, failed = job(2, stalled_s=0.4)
    for step in range(20):
        for rank in ranks:
            rank.beat("computes", step)
        time.sleep(0.05)
    for rank in ranks:
        rank.beat("")  # a phase without a time limit
    time.sleep(0.8)
    assert not failed


def test_one_that_fails_ends_the_others_with_its_error(job):
    ranks, failed = job(2)
    ranks[1].__exit__(ValueError, ValueError("shard 7 is cut"), None)
    wait_until(lambda: 0 in failed)
    assert failed[0].startswith("rank 1 of 2")
    assert failed[0].endswith("ended: shard 7 is cut")


@pytest.mark.parametrize("error", [None, StoppedError("stopped", 15)])
def test_one_that_ends_first_is_not_missed(job, error):
    ranks, failed = job(2, silent_s=0.3, stalled_s=0.3)
    ranks[1].__exit__(None if error is None else StoppedError, error, None)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        ranks[0].beat("computes", int(time.monotonic() * 100))
        time.sleep(0.02)
    assert not failed


def test_waiting_for_all_lasts_until_the_last(job):
    ranks, failed = job(2)
    ranks[1].beat("computes", 1)
    wait_until(lambda: ranks[0]._others()[0]["phase"] == "computes")
    ranks[1].beat(DONE)
    ranks[0].wait_for_all()
    assert ranks[0]._others()[0]["phase"] == DONE
    assert not failed


def test_a_single_process_watches_nothing():
    with Heartbeat(0, 1, stalled_s=0.0) as alone:
        alone.beat("computes", 1)
        alone.wait_for_all()
        assert alone._thread is None
