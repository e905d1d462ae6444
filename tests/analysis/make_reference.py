"""Arrays with fixed seeds, and what ArviZ says about them: `python make_reference.py` writes data/arviz.json.

Needs an environment with arviz 0.2x (`pip install 'arviz<1'`); the tests only load the arrays and the stored numbers.
A checksum of each array is stored as well, so that a generator that changed cannot pass for a wrong result.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "data" / "arviz.json"
QUANTILES = (0.05,)


def autoregressive(rng, rho, chains, draws):
    noise = rng.normal(size=(chains, draws))
    x = np.empty((chains, draws))
    x[:, 0] = noise[:, 0]
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return x


def chain_arrays():
    """Draws (chain, draw) by name; those of shape (4, 400) come first."""
    rng = np.random.default_rng(20240611)
    same_shape = {
        "iid": rng.normal(size=(4, 400)),
        "autoregressive": autoregressive(rng, 0.9, 4, 400),
        "antithetic": autoregressive(rng, -0.3, 4, 400),
        "very_antithetic": autoregressive(rng, -0.8, 4, 400),
        "cauchy": rng.standard_cauchy(size=(4, 400)),
        "apart": rng.normal(size=(4, 400)) + np.array([0.0, 0.0, 3.0, 3.0])[:, None],
        "different_scales": rng.normal(size=(4, 400)) * np.array([1.0, 1.0, 1.0, 4.0])[:, None],
        "drifting": autoregressive(rng, 0.5, 4, 400) + np.linspace(0, 2, 400),
        "stuck_chain": np.concatenate([rng.normal(size=(3, 400)), np.full((1, 400), 0.25)]),
        "poisson": rng.poisson(2.0, size=(4, 400)).astype(float),
        "binary": (rng.random((4, 400)) < 0.3).astype(float),
        "rare": (rng.random((4, 400)) < 0.03).astype(float),
        "offset": 1e6 + autoregressive(rng, 0.5, 4, 400),
        "huge": 1e20 * rng.normal(size=(4, 400)),
    }
    assert all(x.shape == (4, 400) for x in same_shape.values())
    return same_shape | {
        "one_chain": rng.normal(size=(1, 400)),
        "odd": rng.gamma(2.0, size=(3, 333)),
        "short": rng.normal(size=(4, 7)),
    }


def ratio_arrays():
    """Log ratios (sample,) by name, for Pareto-smoothed importance sampling."""
    rng = np.random.default_rng(7)
    return {
        "light": 0.3 * rng.normal(size=1000),
        "normal": 1.5 * rng.normal(size=1000),
        "heavy": 0.9 * rng.standard_exponential(size=1000),
        "very_heavy": 1.5 * rng.standard_exponential(size=1000),
        "bounded": np.log(rng.random(1000)),
        "far": 500 + 2.0 * rng.normal(size=1000),
        "small": rng.normal(size=30),
    }


def log_likelihood_array():
    """Log likelihoods (chain, draw, observation) of normal data under draws of its mean, one of them an outlier."""
    rng = np.random.default_rng(11)
    y = rng.normal(size=12)
    y[3] = 5.5
    mu = y.mean() + autoregressive(rng, 0.4, 4, 250) / np.sqrt(12)
    return -0.5 * (y - mu[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)


def checksum(x):
    return float(np.sum(np.abs(x)))


def main():
    import warnings

    import arviz as az
    from arviz.stats import diagnostics as d

    warnings.simplefilter("ignore")
    result = {"arviz": az.__version__, "numpy": np.__version__, "chains": {}, "ratios": {}, "elpd": {}}
    for name, x in chain_arrays().items():
        split = d._split_chains(x)
        # Twice the distance from the median. The two middle draws are equally far from it: ArviZ's own fold breaks that
        # tie by the rounding of the median, which moves R-hat by 1e-5 at 2,000 draws and by 5 % at 8.
        middle = np.sort(split, axis=None)[[(split.size - 1) // 2, split.size // 2]]
        folded = abs((split - middle[0]) + (split - middle[1]))
        entry = {
            "checksum": checksum(x),
            # ArviZ refuses a single chain; the same formula on its two halves is what the paper defines.
            "r_hat": float(max(d._rhat(d._z_scale(split)), d._rhat(d._z_scale(folded)))),
            "r_hat_rounded": float(az.rhat(x)) if len(x) > 1 else None,
            "ess_bulk": float(az.ess(x, method="bulk")),
            "ess_tail": float(az.ess(x, method="tail")),
            "mcse_mean": float(az.mcse(x, method="mean")),
            "mcse_sd": float(az.mcse(x, method="sd")),
            "e_bfmi": az.bfmi(x).tolist(),
        }
        for q in QUANTILES:
            entry[f"mcse_quantile_{q}"] = float(az.mcse(x, method="quantile", prob=q))
        result["chains"][name] = entry
    for name, x in ratio_arrays().items():
        for r_eff in (1.0, 0.5):
            weights, k = az.psislw(x.copy(), reff=r_eff)
            result["ratios"][f"{name}/{r_eff}"] = {
                "checksum": checksum(x),
                "k": float(k),
                "largest": np.sort(weights)[-5:].tolist(),
                "sum_of_squares": float(np.sum(np.exp(2 * weights))),
                "sum_of_logs": float(np.sum(weights)),
            }
    x = log_likelihood_array()
    data = az.from_dict(posterior={"mu": x[..., 0]}, log_likelihood={"y": x})
    loo, waic = az.loo(data, reff=0.7, pointwise=True), az.waic(data, pointwise=True)
    result["elpd"] = {
        "checksum": checksum(x),
        "loo": [float(loo.elpd_loo), float(loo.se), float(loo.p_loo), float(loo.good_k)],
        "loo_pointwise": loo.loo_i.values.tolist(),
        "pareto_k": loo.pareto_k.values.tolist(),
        "waic": [float(waic.elpd_waic), float(waic.se), float(waic.p_waic)],
        "waic_pointwise": waic.waic_i.values.tolist(),
    }
    FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
