"""Stopping rules and the status they look at."""

import math

import pytest

from jaxprob import runtime
from jaxprob.runtime import Status


def test_each_rule_looks_at_its_quantity():
    status = Status(seconds=100.0, draws=50, ess_min=400.0, r_hat_max=1.02)
    assert runtime.effective_sample_size(400).met(status)
    assert not runtime.effective_sample_size(401).met(status)
    assert runtime.r_hat(1.02).met(status)
    assert not runtime.r_hat(1.01).met(status)
    assert runtime.wall_clock(100).met(status)
    assert not runtime.wall_clock("2m").met(status)


def test_rules_combine():
    status = Status(seconds=100.0, draws=50, ess_min=400.0, r_hat_max=1.02)
    yes, no = runtime.wall_clock(1), runtime.wall_clock("1h")
    assert (yes | no).met(status)
    assert not (yes & no).met(status)
    assert (no | (yes & runtime.r_hat(1.05))).met(status)
    assert str(yes & no) == "(wall clock 1 s and wall clock 3600 s)"


def test_what_is_not_known_stops_nothing():
    unknown = Status(seconds=1.0, draws=0)
    assert not runtime.effective_sample_size(1).met(unknown)
    assert not runtime.r_hat(10).met(unknown)
    assert not runtime.r_hat(10).met(Status(1.0, 5, math.nan, math.nan))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("1d2h", 93600), ("1h30m", 5400), (3, 3)])
def test_durations(text, seconds):
    assert runtime.wall_clock(text).bound == seconds


@pytest.mark.parametrize("text", ["", "2 hours", "h", "-3s", "2h and", 0, -1.0, math.nan])
def test_bad_durations(text):
    with pytest.raises(ValueError, match="^wall_clock: limit is .*; expected"):
        runtime.wall_clock(text)


def test_bad_bounds():
    with pytest.raises(ValueError, match="effective_sample_size: target is 0; expected"):
        runtime.effective_sample_size(0)
    with pytest.raises(ValueError, match="r_hat: target is 1.0; expected a number above 1"):
        runtime.r_hat(1.0)
