"""The filter as a loop over time."""

from __future__ import annotations

from typing import Any

import jax

from jaxprob import scan
from jaxprob.inference.kalman import _adjoint as adjoint
from jaxprob.inference.kalman._sharing import sharing
from jaxprob.inference.kalman._square_root import Moments, Seen, observe, predict
from jaxprob.inference.kalman._steps import Step, Steps


def advance(moments: Moments, step: Step) -> tuple[Moments, Moments, Seen]:
    """From the prediction of a time to that of the next; the filtered moments; and what was seen."""
    filtered, seen = observe(moments, step.emission, step.emission_covariance, step.values, step.seen)
    return predict(filtered, step.dynamics, step.dynamics_offset, step.dynamics_root), filtered, seen


def run(steps: Steps, keep: bool = True) -> tuple[Any, Any, Seen]:
    """Predicted and filtered moments and what was seen, time leading; None for the moments unless they are kept."""
    found = sharing(lambda steps: all_times(steps, keep))(steps)
    return found if keep else (None, None, found)


def all_times(steps: Steps, keep: bool) -> Any:
    """What `run` returns, or what was seen only, of a series by itself."""
    return _moments(steps) if keep else adjoint.seen(*steps)


def _moments(steps: Steps) -> tuple[Moments, Moments, Seen]:
    """Predicted and filtered moments and what was seen, time leading."""

    def body(moments: Moments, varying: Step) -> tuple[Moments, Any]:
        after, filtered, seen = advance(moments, steps.at(varying))
        return after, (moments, filtered, seen)

    # For a gradient only the moments between steps are kept: to compute a step again costs less than to store it.
    found: tuple[Moments, Moments, Seen] = scan.scan(
        jax.checkpoint(body, prevent_cse=False), steps.start, steps.varying
    )[1]
    return found
