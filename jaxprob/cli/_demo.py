"""The demo: breast cancer in 301 counties, a hierarchical Poisson model.

Small counties have extreme raw rates by chance alone. The model lets each county have a rate of its own, draws these
rates from a common population, and so moves the rates of small counties towards the average and leaves those of large
ones where they are.

Data: breast cancer mortality 1950-1960 and the number of adult white women in 1960, by county (North Carolina, South
Carolina, Georgia), from Rice, "Mathematical Statistics and Data Analysis"; shipped with statsmodels as `cancer`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprob import models
from jaxprob.distributions import HalfNormal, Normal, Poisson


@models.joint
def county_rates(women):  # type: ignore[no-untyped-def]
    """Cases in each county, given its number of women. Rates are per 1,000 women.

    The rates are centred on their mean rather than written as offsets from it: the data of most counties say more about
    a rate than the population does.
    """
    mu = yield "mu", Normal(0.0, 2.0)
    tau = yield "tau", HalfNormal(1.0)
    log_rate = yield "log_rate", Normal(jnp.full_like(women, mu), tau)
    yield "cases", Poisson(women / 1000 * jnp.exp(log_rate))


def load_counties() -> tuple[np.ndarray, np.ndarray]:
    """Cases and women of each county, (301,) integers and (301,) floats.

    Raises:
      ImportError: without statsmodels.
    """
    try:
        from statsmodels.datasets import cancer
    except ImportError:
        raise ImportError(
            "demo: the data come with statsmodels. Install it with: pip install 'jaxprob[examples]'."
        ) from None
    data = cancer.load_pandas().data
    return data["cancer"].to_numpy(np.int32), data["population"].to_numpy(np.float32)


def posterior() -> Any:
    """The model given the data."""
    cases, women = load_counties()
    return county_rates(jnp.asarray(women)).condition(cases=jnp.asarray(cases))


def figures(result: Any) -> dict[str, Any]:
    """Raw rates beside the rates the model finds, for the report."""
    import matplotlib
    from matplotlib.figure import Figure

    cases, women = load_counties()
    raw = cases / women * 1000
    rate = np.exp(np.asarray(result.draws["log_rate"], np.float64))
    mean = rate.mean(axis=(0, 1))
    low, high = np.quantile(rate, [0.05, 0.95], axis=(0, 1))
    average = float(cases.sum() / women.sum() * 1000)
    with matplotlib.rc_context({"font.size": 8.5, "axes.titlesize": 9.5}):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axis in (left, right):
            axis.axhline(average, color="#8b98a1", lw=0.8, ls="--", zorder=0)
            axis.spines[["top", "right"]].set_visible(False)
        left.vlines(women, np.minimum(raw, mean), np.maximum(raw, mean), color="#c9d3da", lw=0.7)
        left.plot(women, raw, ".", color="#e08a1e", ms=5, alpha=0.8, label="raw: cases / women")
        left.plot(women, mean, ".", color="#2b6a99", ms=5, label="shrunken: posterior mean")
        left.set(
            xscale="log", xlabel="women in the county", ylabel="cases per 1,000 women", title="small counties move most"
        )
        left.legend(frameon=False)
        order = np.argsort(mean)
        place = np.arange(len(order))
        right.vlines(place, low[order], high[order], color="#2b6a99", alpha=0.35, lw=1)
        right.plot(place, mean[order], ".", color="#2b6a99", ms=3, label="posterior mean and 90 % interval")
        right.plot(place, raw[order], ".", color="#e08a1e", ms=3, alpha=0.8, label="raw rate")
        right.set(xlabel="counties, by posterior mean", title="what is known of each county")
        right.legend(frameon=False, loc="upper left")
    return {"Raw and shrunken rates": figure}
