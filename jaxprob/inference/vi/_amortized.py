"""The bound of a latent-variable model: the mean over a batch, with a guide that is a function of the example.

    log p(x) >= E_q(z | x)[log p(x | z)] - KL(q(z | x) || p(z))

Source: Kingma & Welling (2014), "Auto-encoding variational Bayes", equations 3 and 10; and as said at the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from jaxprob import core
from jaxprob.distributions import OneHotCategorical
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.vi._bounds import (
    doubly_reparameterized_bound,
    importance_weighted_bound,
    vimco_bound,
    with_gradient_of,
)
from jaxprob.inference.vi._control_variates import less_the_others
from jaxprob.inference.vi._discrete import discrete_expectation
from jaxprob.inference.vi._divergence import kl_divergence
from jaxprob.inference.vi._objective import Objective, _examples
from jaxprob.models.latent import LatentVariableModel

# Of guides that are one-hot categories, by `vi.discrete_expectation`.
CATEGORICAL = ("exact", "straight_through", "gumbel_softmax", "rebar")
GRADIENTS = {
    "elbo": ("path", "stick_the_landing", "score", *CATEGORICAL),
    "importance_weighted": ("path", "doubly_reparameterized", "score"),
}


def amortized_elbo(
    model: LatentVariableModel,
    draws: int = 1,
    *,
    kl: str = "closed",
    kl_weight: Any = 1.0,
    bound: str = "elbo",
    gradient: str = "path",
    temperature: Any = 0.5,
    corrupt: Callable[[core.Key, Any], Any] | None = None,
) -> Objective:
    r"""The evidence lower bound of a latent-variable model, or its importance-weighted one.

    $$E_q[\log p(x | z)] - \beta KL(q(z | x) \| p(z)), \qquad E \log \frac{1}{n} \sum_i \frac{p(x, z_i)}{q(z_i | x)}$$

    To anneal the weight, build the objective inside of a loss: `kl_weight` may be traced, such as that of a schedule of
    a step that the batch brings along:

        def loss(params, batch, key):
            objective = vi.amortized_elbo(model, kl_weight=schedule(batch["step"]))
            return objective.loss(params, batch["xs"], key)

    Args:
      model: a `LatentVariableModel`.
      draws: of z for each example and step.
      kl: "closed" for the divergence in closed form, of normal and categorical guides (see `vi.kl_divergence`), or
        "sampled", by the same draws. Without a part in the importance-weighted bound.
      kl_weight: (), at least 0: the factor beta of the divergence in what is minimised.
      bound: "elbo" or "importance_weighted".
      gradient: "path" for the gradient through the draws. "stick_the_landing" leaves out the score, with
        `kl="sampled"`; "doubly_reparameterized" does the same for the importance-weighted bound. "score" is for draws
        without a path, such as discrete ones: the mean of the other draws is its baseline, and for the
        importance-weighted bound VIMCO's. Guides that are `OneHotCategorical` have "exact", "straight_through",
        "gumbel_softmax" and "rebar" as well (see `vi.discrete_expectation`), with `kl="closed"`.
      temperature: (), above 0, of these; it may be traced, as `kl_weight` may.
      corrupt: `(key, x) -> x`, what the recognition sees in place of an example in training.

    Returns:
      an `Objective` with `params = model.init(key)`: `loss(params, batch, key)` is minus the mean over the batch, and
      metrics are means: "elbo" (the bound, whatever the weight), "log_likelihood" and "kl" (of the draws, but for
      `kl="closed"`). A batch is (example, ...), and for a conditional model a pair of such.

    Raises:
      TypeError: if `model` is none, or at the first loss if the divergence has no closed form.
      ValueError: for an unknown option or a weight below 0, or at a loss if the batch has no examples.

    >>> from jaxprob.models import latent
    >>> objective = amortized_elbo(latent.autoencoder(4, 2, 8))
    >>> params = objective.init(jax.random.key(0))
    >>> value, metrics = objective.loss(params, jnp.ones((3, 4)), jax.random.key(1))
    >>> sorted(metrics), bool(value == -metrics["elbo"])
    (['elbo', 'kl', 'log_likelihood'], True)

    Source: Burda, Grosse & Salakhutdinov (2016); Higgins et al. (2017), "beta-VAE"; Roeder, Wu & Duvenaud (2017);
    Tucker et al. (2019); Mnih & Rezende (2016); Vincent et al. (2008) for the corruption.
    """
    name = "amortized_elbo"
    if not isinstance(model, LatentVariableModel):
        raise core.bad_type(name, "model", model, "a LatentVariableModel", "Such as latent.autoencoder(64, 8)")
    core.check_whole(name, draws=draws)
    if kl not in ("closed", "sampled"):
        raise core.bad_value(name, "kl", core.describe(kl), "'closed' or 'sampled'")
    if bound not in GRADIENTS:
        raise core.bad_value(name, "bound", core.describe(bound), f"one of {tuple(GRADIENTS)}")
    if gradient not in GRADIENTS[bound]:
        raise core.bad_value(
            name, "gradient", core.describe(gradient), f"one of {GRADIENTS[bound]} for the bound {bound!r}"
        )
    if gradient in CATEGORICAL and kl != "closed":
        raise core.bad_value(name, "kl", core.describe(kl), f"'closed' with gradient={gradient!r}")
    if gradient == "stick_the_landing" and kl == "closed":
        todo = "A closed form has no score to leave out"
        raise core.bad_value(name, "gradient", core.describe(gradient), "'path' or 'score' with kl='closed'", todo)
    if corrupt is not None and not callable(corrupt):
        raise core.bad_type(name, "corrupt", corrupt, "a function of a key and an example")
    weight = _weight(name, kl_weight, bound)
    loss = core.Bound(_loss, model, draws, kl == "closed", bound, gradient, corrupt)
    temperature = known_number(name, "temperature", temperature, lambda t: 0 < t < math.inf, "a positive number")
    return Objective(Partial(core.Bound(_init, model)), Partial(loss, weight, temperature))


def _weight(name: str, weight: Any, bound: str) -> Any:
    expected = "a number, at least 0"
    if isinstance(weight, jax.core.Tracer):
        return weight
    if not (core.is_number(weight) or isinstance(weight, jax.Array)) or jnp.shape(weight) != ():
        todo = "Call a schedule with the step" if callable(weight) else ""
        raise core.bad_type(name, "kl_weight", weight, expected, todo)
    if not 0 <= float(weight) < float("inf"):
        raise core.bad_value(name, "kl_weight", weight, expected)
    if bound != "elbo" and float(weight) != 1:
        raise core.bad_value(name, "kl_weight", weight, "1 for the importance-weighted bound")
    return jnp.asarray(weight, float)


def _init(model: LatentVariableModel, key: core.Key) -> Any:
    return model.init(core.as_key(key, "amortized_elbo"))


def _loss(
    model: LatentVariableModel,
    draws: int,
    closed: bool,
    bound: str,
    gradient: str,
    corrupt: Any,
    weight: jax.Array,
    temperature: jax.Array,
    params: Any,
    batch: Any,
    key: core.Key,
) -> Any:
    if model.conditional and not (isinstance(batch, tuple) and len(batch) == 2):
        todo = "This model is conditional"
        raise core.bad_value("amortized_elbo", "batch", core.describe(batch), "a pair (xs, conditions)", todo)
    xs, condition = (batch[0], batch[1:]) if model.conditional else (batch, ())
    keys = core.chain_keys(core.as_key(key, "amortized_elbo"), jnp.arange(_examples("amortized_elbo", batch)))

    def one(key: core.Key, x: Any, condition: tuple[Any, ...]) -> Any:
        seen = x if corrupt is None else corrupt(core.fold(key, 1), x)
        guide = model.recognition(params, seen, *condition)
        example = _Example(model, params, guide, x, condition)
        if gradient in CATEGORICAL:
            return _categorical(example, draws, gradient, weight, temperature, core.fold(key, 0))
        if bound == "elbo":
            return _elbo(example, draws, closed, gradient, weight, core.fold(key, 0))
        return _importance_weighted(example, draws, gradient, core.fold(key, 0))

    value, metrics = jax.vmap(one)(keys, xs, condition)
    return -jnp.mean(value), jax.tree.map(jnp.mean, metrics)


class _Example:
    """One example: what is asked of its laws, summed over batch axes of independent parts, in one dtype."""

    def __init__(self, model: LatentVariableModel, params: Any, guide: Any, x: Any, condition: tuple[Any, ...]) -> None:
        self.model, self.params, self.guide, self.x, self.condition = model, params, guide, x, condition
        self.dtype = core.accumulator_dtype(core.result_dtype(params))

    def fixed(self) -> _Example:
        """Without gradients of the parameters."""
        params, guide = lax.stop_gradient((self.params, self.guide))
        return _Example(self.model, params, guide, self.x, self.condition)

    def log_likelihood(self, zs: jax.Array) -> jax.Array:
        """Of each draw, (draw,)."""

        def one(z: jax.Array) -> jax.Array:
            return self.model.likelihood(self.params, z, *self.condition).log_prob(self.x)

        return self._each(jax.vmap(one)(zs))

    def log_prior(self, zs: jax.Array) -> jax.Array:
        """Of each draw, (draw,)."""
        return self._each(self.model.prior(self.params, *self.condition).log_prob(zs))

    def log_guide(self, zs: jax.Array) -> jax.Array:
        """Of each draw, (draw,)."""
        return self._each(self.guide.log_prob(zs))

    def kl(self) -> jax.Array:
        """In closed form, ()."""
        return jnp.sum(kl_divergence(self.guide, self.model.prior(self.params, *self.condition)).astype(self.dtype))

    def _each(self, values: jax.Array) -> jax.Array:
        values = values.astype(self.dtype)
        return jnp.sum(values, tuple(range(1, values.ndim)))


def _metrics(bound: jax.Array, log_likelihood: jax.Array, kl: jax.Array) -> dict[str, jax.Array]:
    return {"elbo": bound, "log_likelihood": log_likelihood, "kl": kl}


def _elbo(example: _Example, draws: int, closed: bool, gradient: str, weight: jax.Array, key: core.Key) -> Any:
    zs = example.guide.sample(key, draws)
    if gradient == "score":
        zs = lax.stop_gradient(zs)
    log_likelihood = example.log_likelihood(zs)
    weight = weight.astype(log_likelihood.dtype)
    if closed:
        exact, sampled = example.kl(), jnp.zeros_like(log_likelihood)
    else:
        # The score has mean zero under the guide: it is noise where the gradient does not need it.
        guide = example if gradient == "path" else example.fixed()
        exact, sampled = jnp.zeros_like(log_likelihood[0]), guide.log_guide(zs) - example.log_prior(zs)
    terms = log_likelihood - weight * sampled
    value = jnp.mean(terms) - weight * exact
    if gradient == "score":
        log_q = example.log_guide(zs)
        # The terms' own gradient, of the generative part, stays as it is.
        credit = less_the_others(lax.stop_gradient(terms))
        value = with_gradient_of(value, value + jnp.mean(credit * log_q))
    total, kl = jnp.mean(log_likelihood), jnp.mean(sampled) + exact
    return value, _metrics(total - kl, total, kl)


def _categorical(
    example: _Example, draws: int, gradient: str, weight: jax.Array, temperature: jax.Array, key: core.Key
) -> Any:
    if not isinstance(example.guide, OneHotCategorical):
        got, todo = f"{gradient!r} for a {type(example.guide).__name__}", "Use 'score'"
        raise core.bad_type("amortized_elbo", "gradient", got, "a guide that is a OneHotCategorical", todo)
    log_likelihood = discrete_expectation(
        lambda z: example.log_likelihood(jnp.expand_dims(z, 0))[0],
        core.safe_log(example.guide.probs) if example.guide.logits is None else example.guide.logits,
        None if gradient == "exact" else key,
        estimator=gradient,
        draws=draws,
        temperature=temperature,
    )
    kl = example.kl()
    return log_likelihood - weight.astype(kl.dtype) * kl, _metrics(log_likelihood - kl, log_likelihood, kl)


def _importance_weighted(example: _Example, draws: int, gradient: str, key: core.Key) -> Any:
    zs = example.guide.sample(key, draws)
    if gradient == "score":
        zs = lax.stop_gradient(zs)
    fixed, still = example.fixed(), lax.stop_gradient(zs)
    guide = fixed if gradient == "doubly_reparameterized" else example
    log_likelihood, log_prior, log_q = example.log_likelihood(zs), example.log_prior(zs), guide.log_guide(zs)
    log_weights = log_likelihood + log_prior - log_q
    if gradient == "score":
        value = vimco_bound(log_weights, log_q)
    elif gradient == "path":
        value = importance_weighted_bound(log_weights)
    else:
        moved = fixed.log_likelihood(zs) + fixed.log_prior(zs) - fixed.log_guide(zs)
        learned = example.log_likelihood(still) + example.log_prior(still) - fixed.log_guide(still)
        value = importance_weighted_bound(learned)
        value = with_gradient_of(value, value + doubly_reparameterized_bound(moved))
    return value, _metrics(value, jnp.mean(log_likelihood), jnp.mean(log_q - log_prior))
