"""Events asked of a diffusion whose score is exact: moment matching, a plug-in, and twisted particles.

Data are a mixture of three Gaussians in the plane. What is true given an event is integrated on a grid.

Source: Finzi, Boral, Wilson, Sha & Zepeda-Núñez (2023), "User-defined event sampling and uncertainty quantification in
diffusion models for physical dynamical systems".
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize
from scipy import stats as laws

from jaxprob.inference import diffusion as sampling
from jaxprob.models import diffusion

WEIGHTS, SCALES = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.6, 0.5])
CENTRES = np.array([[0.0, 0.0], [2.0, 1.0], [-1.0, 2.0]])
SAMPLES, STEPS, PARTICLES, RUNS = 20_000, 300, 4000, 4

EVENTS = {  # the quantity, and the probability that it is above its level
    "linear": (lambda x: x[0], 0.027),
    "curved": (lambda x: x[0] + 0.15 * x[1] ** 2, 0.023),
    "modes": (lambda x: x[0] ** 2 + x[1] ** 2, None),  # above 9
}


def grid():
    """Points (2, point) and the probability of the cell about each."""
    axis = np.linspace(-8, 8, 3201)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij")).reshape(2, -1)
    density = sum(
        w * laws.norm.pdf(points[0], c[0], s) * laws.norm.pdf(points[1], c[1], s)
        for w, c, s in zip(WEIGHTS, CENTRES, SCALES, strict=True)
    )
    return points, density * (axis[1] - axis[0]) ** 2


def told(xs, weights):
    """P(x2 > 1), E x1 and the standard deviation of x2, and the means, of weighted points (2, point)."""
    weights = weights / weights.sum()
    mean = xs @ weights
    return np.array([weights[xs[1] > 1].sum(), mean[0], np.sqrt((xs[1] - mean[1]) ** 2 @ weights)]), mean


def events():
    process = diffusion.variance_preserving(diffusion.cosine(12.0, -12.0))
    covariances = np.stack([scale**2 * np.eye(2) for scale in SCALES])
    denoiser = diffusion.gaussian_mixture_denoiser(process, WEIGHTS, CENTRES, covariances)
    points, cells = grid()
    checks = []

    def check(what, got, wanted="", held=True):
        checks.append({"check": what, "got": float(got), "wanted": wanted, "held": bool(held)})

    def drawn(log_probability, seed):
        guided = sampling.guided(process, denoiser, log_probability)
        solver = sampling.ancestral(STEPS)
        return np.asarray(sampling.sample(jax.random.key(seed), process, guided, (SAMPLES, 2), solver=solver), float).T

    for name, (quantity, probability) in EVENTS.items():
        values, level = quantity(points), 9.0
        if probability is not None:
            level = optimize.brentq(lambda at, v=values, p=probability: cells[v > at].sum() - p, 0.0, 8.0, xtol=1e-3)
        inside = values > level
        probability = cells[inside].sum()
        true, means = told(points[:, inside], cells[inside])
        check(f"{name}: probability of the event", probability)

        def plug_in(x, t, condition, quantity=quantity, level=level):
            x0 = process.clean(denoiser(x, t, condition), x, t)
            return jax.scipy.stats.norm.logcdf((quantity(x0) - level) / process.scales(t)[1])

        event = sampling.above(process, denoiser, quantity, level)
        found, apart = {}, {}
        for method, log_probability in (("matched", event), ("plug-in", plug_in)):
            xs = drawn(log_probability, 1)
            found[method], own = told(xs, np.ones(SAMPLES))
            apart[method] = np.abs(own - means).max()
            rate = np.mean(quantity(xs) > level)
            bar = (">= 0.9", rate >= 0.9) if (name, method) == ("linear", "matched") else ()
            check(f"{name}, {method}: samples in the event", rate, *bar)
        runs = [
            sampling.twisted(
                jax.random.key(10 + seed), process, denoiser,
                lambda x, q=quantity, at=level: jnp.where(q(x) > at, 0.0, -jnp.inf), event, (2,),
                particles=PARTICLES, steps=2 * STEPS,
            )
            for seed in range(RUNS)
        ]  # fmt: skip
        xs = np.concatenate([np.asarray(run.population.particles, float).T for run in runs], 1)
        own = np.concatenate([np.asarray(run.population.weights, float) for run in runs])
        found["twisted"], own = told(xs, own)
        apart["twisted"] = np.abs(own - means).max()
        for i, quantity_name in enumerate(("P(x2 > 1)", "E x1", "sd x2")):
            check(f"{name}, exact: {quantity_name}", true[i])
            for method, row in found.items():
                check(f"{name}, {method}: {quantity_name}", row[i])
        if name == "linear":
            mean, sd = np.abs(found["matched"][1:] / true[1:] - 1)
            check("linear, matched: error of E x1", mean, "<= 0.02", mean <= 0.02)
            check("linear, matched: error of sd x2", sd, "<= 0.05", sd <= 0.05)
            errors = {method: np.abs(row / true - 1).max() for method, row in found.items()}
            nearer = errors["matched"] / errors["plug-in"]
            check("linear: largest relative error, matched over plug-in", nearer, "< 1", nearer < 1)
        else:
            ratio = apart["twisted"] / apart["matched"]
            check(f"{name}, matched: largest error of a mean", apart["matched"])
            check(f"{name}, plug-in: largest error of a mean", apart["plug-in"])
            check(f"{name}, twisted: largest error of a mean", apart["twisted"], "<= 0.05", apart["twisted"] <= 0.05)
            check(f"{name}: error of twisted over matched", ratio, "<= 0.5", ratio <= 0.5)
        evidence = np.mean(np.exp([float(run.log_evidence) for run in runs])) / probability
        check(f"{name}, twisted: evidence over exact", evidence, "0.9 to 1.1", 0.9 <= evidence <= 1.1)
    return {"checks": checks}
