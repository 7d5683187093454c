"""Two models are timed in turns."""

import itertools
import time

import pytest

from amq_onnx.runtime.latency import alternate


class Clock:
    """A clock that only the runs move."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def run(self, name, seconds):
        seconds = itertools.cycle(seconds) if isinstance(seconds, list) else itertools.repeat(seconds)

        def once():
            self.calls.append(name)
            self.now += next(seconds)

        return once


def test_in_turns_after_one_run_of_each_that_is_not_counted(monkeypatch):
    clock = Clock(monkeypatch)
    found = alternate(clock.run("a", [50, 1, 2, 3]), clock.run("b", 4), seconds=0, least_runs=3)
    assert clock.calls == ["a", "b"] * 4
    assert (found.first, found.second, found.runs) == (2, 4, 3)
    assert found.ratio == 2


def test_one_slow_run_does_not_count(monkeypatch):
    clock = Clock(monkeypatch)
    found = alternate(clock.run("a", [1, 1, 1, 1, 1, 900]), clock.run("b", 3), seconds=0, least_runs=5)
    assert found.ratio == 3


def test_ends_after_the_time_or_the_most_runs(monkeypatch):
    clock = Clock(monkeypatch)
    assert alternate(clock.run("a", 0.5), clock.run("b", 0.5), seconds=8).runs == 8
    clock = Clock(monkeypatch)
    assert alternate(clock.run("a", 1e-6), clock.run("b", 1e-6), seconds=8, most_runs=20).runs == 20
    clock = Clock(monkeypatch)
    assert alternate(clock.run("a", 60), clock.run("b", 60), seconds=8, least_runs=5).runs == 5


def test_an_error_of_a_run_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        alternate(lambda: 1 / 0, lambda: None)
