"""Latent-variable models: the checks of four published systems at small scale, with what was measured.

S283 auto-encoding variational Bayes, S156 stochastic backpropagation, S111 autoencoders for collaborative filtering,
S173 categories by Gumbel-softmax. A check says what should be, and whether it was so.

    python benchmarks/latent_variable.py [--parts S283 S156] [--out benchmarks/results/latent_variable-cpu.json]
"""

import argparse
import functools
import json
import math
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


def clicks(seed, repeated, users=3200, items=300):
    """Counts (user, item) from a non-linear model of latent numbers, with Zipf's popularity.

    Either five latent numbers and items that are chosen once at most, or twenty and any number of times.
    """
    rng = np.random.default_rng(seed)
    size = 20 if repeated else 5
    hidden = np.tanh(rng.normal(size=(users, size)) @ rng.normal(size=(size, 30)) * math.sqrt(5 / size))
    logits = 3 * hidden @ rng.normal(size=(30, items)) / math.sqrt(30) - np.log(np.arange(1, items + 1))
    numbers = rng.integers(5, 31, users)
    if repeated:
        chances = np.exp(logits - logits.max(1, keepdims=True))
        return rng.multinomial(numbers, chances / chances.sum(1, keepdims=True)).astype(np.int32)
    # Without replacement: the highest of logits with Gumbel noise.
    order = np.argsort(-(logits + rng.gumbel(size=logits.shape)), 1)
    counts = np.zeros((users, items), np.int32)
    for user, number in enumerate(numbers):
        counts[user, order[user, :number]] = 1
    return counts


def folded(counts, seed, times):
    """Counts that are given and those that are held out, a fifth of each user's, so many times over."""
    counts = np.tile(counts, (times, 1))
    out = (np.random.default_rng(seed).random(counts.shape) < 0.2) & (counts > 0)
    return jnp.asarray(np.where(out, 0, counts)), jnp.asarray(out.astype(np.int32))


def ranked(scores, given, held):
    """NDCG@20 of each user."""
    scores = jnp.where(given > 0, -jnp.inf, scores)
    return jax.vmap(lambda s, h: latent.normalized_discounted_cumulative_gain_at(s, h, 20))(scores, held)


def truncated(counts, given, size):
    """Scores for new users by their projection on the first right singular vectors."""
    _, _, axes = np.linalg.svd(np.asarray(counts, float), full_matrices=False)
    return jnp.asarray(np.asarray(given) @ axes[:size].T @ axes[:size], jnp.float32)


def weighted_factors(counts, given, size, weight=10.0, ridge=10.0, sweeps=10):
    """Scores for new users by alternating least squares, clicks with more weight than the rest (Hu et al. 2008)."""
    rng = np.random.default_rng(0)
    counts, given = (np.asarray(x > 0, float) for x in (counts, given))
    items = 0.1 * rng.normal(size=(counts.shape[1], size))

    def solve(clicked, factors):
        outer = np.einsum("ik,il->ikl", factors, factors).reshape(len(factors), -1)
        grams = factors.T @ factors + ridge * np.eye(size) + weight * (clicked @ outer).reshape(-1, size, size)
        return np.linalg.solve(grams, (1 + weight) * (clicked @ factors)[..., None])[..., 0]

    for _ in range(sweeps):
        users = solve(counts, items)
        items = solve(counts.T, users)
    return jnp.asarray(solve(given, items) @ items.T, jnp.float32)


def trainer(model, loss, steps=2000, every=50):
    """A jitted `(key, training, given, held) -> params`, those with the best NDCG@20 of the last two arguments."""
    training = learning.training(learning.Task(model.init, loss, optax.adam(1e-3)))

    @jax.jit
    def run(key, xs, given, held):
        def one(state, i):
            own = jax.random.fold_in(key, i)
            rows = jax.random.randint(jax.random.fold_in(own, 1), (200,), 0, len(xs))
            state, _ = training.step(jax.random.fold_in(own, 0), state, {"xs": xs[rows], "step": i})
            return state, None

        def look(carry, i):
            state, best, value = carry
            state, _ = scan.scan(one, state, i * every + jnp.arange(every))
            new = jnp.nanmean(ranked(jax.vmap(lambda x: latent.recommend(model, state.params, x))(given), given, held))
            best = jax.tree.map(lambda a, b: jnp.where(new > value, a, b), state.params, best)
            return (state, best, jnp.maximum(new, value)), None

        params = model.init(jax.random.fold_in(key, steps))
        return scan.scan(look, (training.init(params), params, jnp.zeros(())), jnp.arange(steps // every))[0][1]

    return run


def collaborative_filtering(rows, seeds=tuple(range(5))):
    # A smaller weight of the divergence and a multinomial likelihood pay where there are many tastes and an item may be
    # chosen again; where each is chosen once, by few tastes, bits are best, and the whole weight.
    for name, repeated in (("once", False), ("repeated", True)):
        recommendations(rows, name, repeated, seeds)


def recommendations(rows, law, repeated, seeds):
    def varied(model, cap, first=0.0):
        def loss(params, batch, key):
            weight = jnp.clip(batch["step"] / 2000, first, cap)
            objective = vi.amortized_elbo(model, kl_weight=weight, corrupt=latent.dropout(0.5))
            return objective.loss(params, batch["xs"], key)

        return model, trainer(model, loss)

    def denoising(model):
        def loss(params, batch, key):
            def one(key, x):
                z = model.recognition(params, latent.dropout(0.5)(key, x)).mean()
                return model.likelihood(params, z).log_prob(x)

            xs = batch["xs"]
            return -jnp.mean(jax.vmap(one)(jax.random.split(key, len(xs)), xs)), {}

        return model, trainer(model, loss)

    multinomial, bits = (make(300, 20, (100,)) for make in (latent.multinomial_autoencoder, latent.autoencoder))
    methods = {
        "annealed multinomial": varied(multinomial, 0.2),
        # Stopped at the best ranking on the way to 1, this one chooses its weight; the next is the bound itself.
        "multinomial, cap of 1": varied(multinomial, 1.0),
        "multinomial, weight 1": varied(multinomial, 1.0, first=1.0),
        "independent bits": varied(bits, 0.2),
        "denoising": denoising(multinomial),
    }
    each = {}  # method to arrays (user,), of all sets of clicks
    for seed in seeds:
        counts = clicks(seed, repeated)
        training = jnp.asarray(counts[400:])
        # Stopping and sizes by 200 users; then 200 others, each folded five times.
        valid, test = folded(counts[:200], 1, 1), folded(counts[200:400], 2, 5)
        scores = {"popularity": jnp.broadcast_to(training.sum(0).astype(jnp.float32), test[0].shape)}
        for name, fold in (("truncated SVD", truncated), ("weighted factors", weighted_factors)):
            tried = {k: float(jnp.nanmean(ranked(fold(training, valid[0], k), *valid))) for k in (5, 10, 20, 40)}
            scores[name] = fold(training, test[0], max(tried, key=tried.get))
        once = [jnp.minimum(x, 1) for x in (training, valid[0], valid[1], test[0])]
        for name, (model, fit) in methods.items():
            xs, *stop, given = once if model is bits else (training, *valid, test[0])
            params = fit(jax.random.key(seed), xs, *stop)
            scores[name] = jax.jit(jax.vmap(lambda x, m=model, p=params: latent.recommend(m, p, x)))(given)
        for name, own in scores.items():
            gains = np.asarray(ranked(own, *test)).reshape(5, -1)
            each.setdefault(name, []).append(np.nanmean(gains, axis=0))
    each = {name: np.concatenate(own) for name, own in each.items()}
    for name, own in each.items():
        check(rows, f"{law}: NDCG@20, {name}", np.nanmean(own), "", True)
    first = each["annealed multinomial"]
    least = {
        "truncated SVD": 1.05,
        "weighted factors": 1.05,
        "popularity": 1.3,
        "multinomial, cap of 1": 1.03,
        "multinomial, weight 1": None,
        "independent bits": 1.0,
        "denoising": None,
    }
    for name, bar in least.items():
        ratio = np.nanmean(first) / np.nanmean(each[name])
        spread = first - ratio * each[name]  # paired, by the delta method
        error = np.nanstd(spread) / np.sqrt(np.isfinite(spread).sum()) / np.nanmean(each[name])
        wanted = "" if bar is None else f">= {bar:g}"
        check(rows, f"{law}: annealed over {name} (s.e. {error:.3f})", ratio, wanted, bar is None or ratio >= bar)


def categories(rows):
    f = lambda z: jnp.sum((z[:, 1] - 0.45) ** 2)  # noqa: E731
    for variables in (1, 10):
        logits = jnp.zeros((variables, 2))
        exact = jax.grad(lambda x: vi.discrete_expectation(f, x, estimator="exact"))(logits)
        noise, place = {}, f"{variables} variable" + "s" * (variables > 1)
        for estimator in ("score", "straight_through", "gumbel_softmax"):
            biases = []
            for temperature in (1.0, 0.5, 0.25):
                slope = jax.grad(
                    lambda x, key, e=estimator, t=temperature: vi.discrete_expectation(
                        f, x, key, estimator=e, temperature=t
                    )
                )
                found = jax.jit(jax.vmap(slope, (None, 0)))(logits, jax.random.split(jax.random.key(0), 40_000))
                noise[estimator, temperature] = float(found.var(0).sum())
                biases.append(float(jnp.linalg.norm(found.mean(0) - exact)))
            if estimator == "score":
                continue
            falls = biases[0] > biases[1] > biases[2]
            check(rows, f"{place}: bias of {estimator} at 0.25 over that at 1", biases[2] / biases[0], "falls", falls)
            for temperature in (1.0, 0.5):
                # REINFORCE multiplies each variable's score by the whole sum, so its noise grows as the cube of
                # their number, that of the others in proportion; of one variable no bar is set.
                ratio = noise[estimator, temperature] / noise["score", temperature]
                wanted, held = ("<= 0.1", ratio <= 0.1) if variables > 1 else ("", True)
                check(rows, f"{place}: noise, {estimator} at {temperature} over score", ratio, wanted, held)

    training, held = digits()
    model = latent.categorical_autoencoder(64, 20, 10, (128,))
    found = {}
    for gradient in ("score", "straight_through", "gumbel_softmax"):
        # Two draws: the other one is the baseline of the score.
        params = fitted(model, training, 3000, 3e-3, 64, draws=2, gradient=gradient, temperature=0.5)
        found[gradient] = bound(model, params, held, 100, gradient="score")
        check(rows, f"digits: held-out ELBO by {gradient} (nats)", found[gradient], "", True)
    for gradient in ("straight_through", "gumbel_softmax"):
        gain = found[gradient] - found["score"]
        check(rows, f"digits: {gradient} less score (nats)", gain, ">= 1", gain >= 1)


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
