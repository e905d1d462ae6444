"""Stopping rules: conditions on what is known between two chunks of a run, joined by `|` and `&`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from jaxprob import core


class Status(NamedTuple):
    """What is known of a run between two chunks.

    Attributes:
      seconds: wall-clock seconds since the run (this process's part of it) began.
      draws: draws kept so far in each chain.
      ess_min: smallest online effective sample size over the quantities, summed over chains; NaN while unknown.
      r_hat_max: largest online split R-hat; NaN while unknown.
    """

    seconds: float
    draws: int
    ess_min: float = math.nan
    r_hat_max: float = math.nan


@dataclass(frozen=True)
class Until:
    """A stopping rule: stop when `name` has reached `bound`, or a combination of two rules."""

    name: str
    bound: float = math.nan
    parts: tuple[Until, ...] = ()

    def met(self, status: Status) -> bool:
        """Whether the run should stop. A quantity that is not known yet (NaN) never stops a run."""
        if self.name == "any":
            return any(part.met(status) for part in self.parts)
        if self.name == "all":
            return all(part.met(status) for part in self.parts)
        if self.name == "wall_clock":
            return status.seconds >= self.bound
        if self.name == "effective_sample_size":
            return status.ess_min >= self.bound
        return status.draws > 0 and status.r_hat_max <= self.bound

    def __or__(self, other: Until) -> Until:
        return Until("any", parts=(self, other))

    def __and__(self, other: Until) -> Until:
        return Until("all", parts=(self, other))

    def __str__(self) -> str:
        if self.parts:
            return "(" + (" or " if self.name == "any" else " and ").join(map(str, self.parts)) + ")"
        if self.name == "wall_clock":
            return f"wall clock {self.bound:g} s"
        return f"{self.name.replace('_', ' ')} {self.bound:g}"


def effective_sample_size(target: float) -> Until:
    """Stop when every quantity has this effective sample size (all chains together, estimated online)."""
    if not target > 0:
        raise core.bad_value("effective_sample_size", "target", target, "a positive number of draws")
    return Until("effective_sample_size", float(target))


def r_hat(target: float = 1.01) -> Until:
    """Stop when every quantity's online split R-hat is at most `target`."""
    if not target > 1:
        raise core.bad_value("r_hat", "target", target, "a number above 1")
    return Until("r_hat", float(target))


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def wall_clock(limit: str | float) -> Until:
    """Stop after this much wall-clock time: seconds, or text such as "90s", "30m", "2h", "1h30m".

    >>> str(wall_clock("1h30m"))
    'wall clock 5400 s'
    """
    if isinstance(limit, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", limit)
        if not parts or "".join(a + b for a, b in parts) != limit.strip():
            raise core.bad_value(
                "wall_clock", "limit", core.describe(limit), "a duration such as '90s', '30m', '2h' or '1h30m'"
            )
        limit = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not limit > 0:
        raise core.bad_value("wall_clock", "limit", limit, "a positive duration")
    return Until("wall_clock", float(limit))
