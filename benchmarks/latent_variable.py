"""Latent-variable models: the checks of four published systems at small scale, with what was measured.

S283 auto-encoding variational Bayes, S156 stochastic backpropagation, S111 autoencoders for collaborative filtering,
S173 categories by Gumbel-softmax. A check says what should be, and whether it was so.

    python benchmarks/latent_variable.py [--parts S283 S156] [--out benchmarks/results/latent_variable-cpu.json]
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from jaxprob import learning, scan
from jaxprob.distributions import Independent, Normal
from jaxprob.inference import factor_analysis, vi
from jaxprob.models import latent

HERE = Path(__file__).resolve().parent


@functools.cache
def digits():
    """Training and held-out images as bits (example, 64)."""
    images = (load_digits().data > 7).astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    return jnp.asarray(images[order[300:]]), jnp.asarray(images[order[:300]])


def train(init, loss, xs, steps, rate, batch=None, seed=0):
    """Parameters after so many steps on random batches; the loss gets {"xs": batch, "step": number}."""
    task = learning.Task(init, loss, optax.adam(optax.cosine_decay_schedule(rate, steps)))
    training = learning.training(task)

    @jax.jit
    def run(key, xs):
        def step(state, i):
            own = jax.random.fold_in(key, i)
            rows = jax.random.randint(jax.random.fold_in(own, 1), (batch or len(xs),), 0, len(xs))
            chosen = xs if batch is None else xs[rows]
            state, _ = training.step(jax.random.fold_in(own, 0), state, {"xs": chosen, "step": i})
            return state, None

        return scan.scan(step, training.init(task.init(key)), jnp.arange(steps))[0].params

    return run(jax.random.key(seed), xs)


def fitted(model, xs, steps, rate, batch=None, seed=0, **options):
    """Parameters of a model by a bound."""
    objective = vi.amortized_elbo(model, **options)
    loss = lambda params, batch, key: objective.loss(params, batch["xs"], key)  # noqa: E731
    return train(model.init, loss, xs, steps, rate, batch, seed)


def bound(model, params, xs, draws=100, **options):
    """The bound on xs in nats."""
    objective = vi.amortized_elbo(model, draws, **options)
    return -float(jax.jit(objective.loss)(params, xs, jax.random.key(9))[0])


def check(rows, name, got, wanted, held):
    rows.append({"check": name, "got": float(got), "wanted": wanted, "held": bool(held)})


def auto_encoding(rows):
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(6, 2))
    xs = jnp.asarray(rng.normal(size=(300, 2)) @ loadings.T + 0.5 * rng.normal(size=(300, 6)), jnp.float32)
    exact = float(jax.vmap(factor_analysis.probabilistic_pca(xs, 2).log_likelihood)(xs).mean())
    model = latent.linear(6, 2)
    params = fitted(model, xs, 2500, 0.03, kl="sampled", gradient="stick_the_landing")
    gap = exact - bound(model, params, xs, kl="sampled")
    check(rows, "pPCA: log likelihood less the best ELBO (nats)", gap, "<= 0.01", abs(gap) <= 0.01)

    training, held = digits()
    model = latent.autoencoder(64, 8, (128,))
    params = fitted(model, training, 3000, 2e-3, 64)
    share = np.clip(np.asarray(training).mean(0), 1e-3, 1 - 1e-3)
    independent = np.asarray(held) @ np.log(share) + (1 - np.asarray(held)) @ np.log1p(-share)
    elbo, weighted = bound(model, params, held), bound(model, params, held, 50, bound="importance_weighted")
    check(rows, "digits: independent bits (nats)", independent.mean(), "", True)
    check(rows, "digits: held-out ELBO (nats)", elbo, ">= independent + 5", elbo >= independent.mean() + 5)
    check(rows, "digits: held-out IWAE of 50 draws (nats)", weighted, ">= ELBO", weighted >= elbo)

    variances = {}
    for gradient in ("path", "score"):
        loss = vi.amortized_elbo(model, 2, gradient=gradient).loss
        one = lambda key, loss=loss: jax.grad(lambda p: loss(p, held[:20], key)[0])(params)["encoder"]  # noqa: E731
        slopes = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 100))
        variances[gradient] = sum(float(jnp.var(leaf, axis=0).sum()) for leaf in jax.tree.leaves(slopes))
    ratio = variances["path"] / variances["score"]
    check(rows, "gradient variance of the encoder, path over score", ratio, "<= 0.1", ratio <= 0.1)


def stochastic_backpropagation(rows):
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(6, 2))
    xs = jnp.asarray(rng.normal(size=(300, 2)) @ loadings.T + 0.5 * rng.normal(size=(300, 6)), jnp.float32)
    best = factor_analysis.probabilistic_pca(xs, 2)
    exact = float(jax.vmap(best.log_likelihood)(xs).mean())
    scale = float(jnp.sqrt(best.noise))
    law = lambda features: Independent(Normal(features, scale))  # noqa: E731
    model = latent.deep_latent_gaussian(6, (2,), (), law, recognition="full")
    gap = (exact - bound(model, fitted(model, xs, 2500, 0.02), xs, 500)) / 6
    check(rows, "affine, full: log likelihood less ELBO (nats a number)", gap, "<= 0.02", abs(gap) <= 0.02)

    # A generative part whose posterior is correlated: only the recognition is trained.
    root = jnp.asarray([[1.0, 1.0], [1, 0.8], [0.5, 0.7], [1, 1.2], [0.2, 0]])
    truth = latent.FactorAnalysis(root, jnp.zeros(5), jnp.asarray(0.25))
    xs = jax.vmap(lambda key: truth.marginal().sample(key))(jax.random.split(jax.random.key(0), 400))
    found = {}
    for kind in ("diagonal", "rank_one", "full"):
        model = latent.deep_latent_gaussian(5, (2,), (), lambda f: Independent(Normal(f, 0.5)), recognition=kind)
        free = model.init(jax.random.key(0))
        network = free["maps"][0]
        rest = {"maps": (type(network)((root.T,), network.biases, network.activation),), "scales": free["scales"]}
        objective = vi.amortized_elbo(model)
        loss = lambda p, b, key, o=objective, r=rest: o.loss({"recognition": p, **r}, b["xs"], key)  # noqa: E731
        params = train(lambda key, m=model: m.init(key)["recognition"], loss, xs, 2000, 0.02)
        found[kind] = bound(model, {"recognition": params, **rest}, xs, 500)
    gain = found["rank_one"] - found["diagonal"]
    check(rows, "correlated posterior: rank one less diagonal (nats)", gain, ">= 0.05", gain >= 0.05)
    check(rows, "correlated posterior: full less rank one (nats)", found["full"] - found["rank_one"], "", True)

    training, held = digits()
    model = latent.deep_latent_gaussian(64, (16, 8), (128,))
    params = fitted(model, training, 3000, 2e-3, 64)
    check(rows, "digits: held-out ELBO of two layers (nats)", bound(model, params, held), "", True)
    seen = jax.random.bernoulli(jax.random.key(2), 0.5, held.shape)
    run = jax.jit(jax.vmap(lambda key, x, seen: latent.impute(key, model, params, x, seen, 220)[20:].mean(0)))
    means = run(jax.random.split(jax.random.key(3), len(held)), held.astype(jnp.float32), seen)
    error = lambda guess: float(jnp.sqrt(jnp.mean((guess - held)[~seen] ** 2)))  # noqa: E731
    ratio = error(means) / error(jnp.broadcast_to(training.mean(0), held.shape))
    check(rows, "digits: RMSE of imputing half, over mean-fill", ratio, "<= 0.8", ratio <= 0.8)


def clicks(seed=0, users=3000, items=300):
    """Counts (user, item) from a non-linear model of five latent numbers, with Zipf's popularity."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(users, 5))
    hidden = np.tanh(z @ rng.normal(size=(5, 30)))
    logits = 1.5 * hidden @ rng.normal(size=(30, items)) / np.sqrt(30) * 2 - np.log(np.arange(1, items + 1))
    numbers = rng.integers(5, 31, users)
    # Without replacement: the highest of logits with Gumbel noise.
    order = np.argsort(-(logits + rng.gumbel(size=logits.shape)), 1)
    counts = np.zeros((users, items), np.int32)
    for user, number in enumerate(numbers):
        counts[user, order[user, :number]] = 1
    return counts


def collaborative_filtering(rows):
    counts = clicks()
    rng = np.random.default_rng(1)
    training, test = jnp.asarray(counts[200:]), counts[:200]
    out = (rng.random(test.shape) < 0.2) & (test > 0)
    given, held = jnp.asarray(np.where(out, 0, test)), jnp.asarray(out.astype(np.int32))

    def gain(scores):
        scores = jnp.where(given > 0, -jnp.inf, scores)
        each = jax.vmap(lambda s, h: latent.normalized_discounted_cumulative_gain_at(s, h, 20))(scores, held)
        return float(jnp.nanmean(each))

    def score(model, cap, steps=2500):
        schedule = optax.linear_schedule(0.0, cap, steps // 2)

        def loss(params, batch, key):
            objective = vi.amortized_elbo(model, kl_weight=schedule(batch["step"]), corrupt=latent.dropout(0.5))
            return objective.loss(params, batch["xs"], key)

        params = train(model.init, loss, training, steps, 2e-3, 200)
        return gain(jax.jit(jax.vmap(lambda x: latent.recommend(model, params, x)))(given))

    popular = gain(jnp.broadcast_to(training.sum(0).astype(jnp.float32), given.shape))
    _, _, axes = np.linalg.svd(np.asarray(training, float), full_matrices=False)
    pca = max(gain(jnp.asarray(np.asarray(given) @ axes[:k].T @ axes[:k], jnp.float32)) for k in (5, 10, 20, 40))
    model = latent.multinomial_autoencoder(300, 20, (100,))
    annealed, whole = score(model, 0.2), score(model, 1.0)
    logistic = score(latent.autoencoder(300, 20, (100,)), 0.2)
    check(rows, "NDCG@20 by popularity", popular, "", True)
    check(rows, "NDCG@20 by the best of four truncated SVDs", pca, "", True)
    check(rows, "NDCG@20 of the annealed multinomial", annealed, ">= SVD + 5 %", annealed >= 1.05 * pca)
    check(rows, "the same over popularity", annealed / popular, ">= 1.3", annealed >= 1.3 * popular)
    check(rows, "the same over a cap of 1", annealed / whole, ">= 1.03", annealed >= 1.03 * whole)
    check(rows, "the same over independent bits", annealed / logistic, ">= 1", annealed >= logistic)


def categories(rows):
    logits, target = jnp.asarray([0.3, -0.2, 0.1]), jnp.asarray([0.45, 0.2, 0.7])
    f = lambda z: jnp.sum((z - target) ** 2 * jnp.asarray([1.0, 2.0, 0.5]))  # noqa: E731
    exact = jax.grad(lambda x: vi.discrete_expectation(f, x, estimator="exact"))(logits)
    variances = {}
    for estimator in ("score", "straight_through", "gumbel_softmax"):
        for temperature in (1.0, 0.5, 0.1):
            slope = jax.grad(
                lambda x, key, e=estimator, t=temperature: vi.discrete_expectation(
                    f, x, key, estimator=e, temperature=t
                )
            )
            found = jax.jit(jax.vmap(slope, (None, 0)))(logits, jax.random.split(jax.random.key(0), 20_000))
            variances[estimator, temperature] = float(found.var(0).sum())
            bias = float(jnp.linalg.norm(found.mean(0) - exact))
            if estimator != "score":
                check(rows, f"bias of {estimator} at temperature {temperature}", bias, "", True)
    for estimator in ("straight_through", "gumbel_softmax"):
        ratio = variances[estimator, 1.0] / variances["score", 1.0]
        check(rows, f"gradient variance, {estimator} over score", ratio, "<= 0.1", ratio <= 0.1)

    training, held = digits()
    model = latent.categorical_autoencoder(64, 10, 8, (128,))
    found = {}
    for gradient in ("score", "straight_through", "gumbel_softmax"):
        # Two draws: the other one is the baseline of the score.
        params = fitted(model, training, 3000, 1e-3, 64, draws=2, gradient=gradient, temperature=0.5)
        found[gradient] = bound(model, params, held, 100, gradient="score")
        check(rows, f"digits: held-out ELBO by {gradient} (nats)", found[gradient], "", True)
    gain = found["gumbel_softmax"] - found["score"]
    check(rows, "digits: Gumbel-softmax less score (nats)", gain, ">= 1", gain >= 1)


PARTS = {
    "S283": auto_encoding,
    "S156": stochastic_backpropagation,
    "S111": collaborative_filtering,
    "S173": categories,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "latent_variable-cpu.json")
    args = parser.parse_args()
    report = json.loads(args.out.read_text()) if args.out.exists() else {}
    report |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    table = Table("system", "check", "got", "wanted", "held")
    for part in args.parts:
        began, rows = time.perf_counter(), []
        PARTS[part](rows)
        report[part] = {"seconds": time.perf_counter() - began, "checks": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        for row in rows:
            verdict = ("yes" if row["held"] else "no") if row["wanted"] else ""
            table.add_row(part, row["check"], f"{row['got']:.4g}", row["wanted"], verdict)
    Console().print(table)


if __name__ == "__main__":
    main()
