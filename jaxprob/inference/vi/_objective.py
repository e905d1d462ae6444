"""What variational inference makes small: objectives as pairs of pure functions.

An objective's `loss` has the signature of a training loss, `(params, batch, key) -> (scalar, metrics)`, so that
`learning.Task(objective.init, objective.loss, optimizer)` trains it on batches under the runtime; `vi.ascent` makes an
`Algorithm` of it where there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxprob import core
from jaxprob.inference.vi._bounds import with_gradient_of
from jaxprob.inference.vi._control_variates import fitted_score_gradient, less_the_others
from jaxprob.inference.vi._guide import Family
from jaxprob.inference.vi._start import as_target

GRADIENTS = ("stick_the_landing", "path", "entropy", "score", "fitted_score")


class Objective(NamedTuple):
    """A pytree of two pure functions.

    Attributes:
      init: `key -> params`, such as a guide.
      loss: `(params, batch, key) -> (scalar, metrics)`, minus the bound; `batch` is None where there are no batches.
        The metric "elbo" is the bound, in nats.
    """

    init: Callable[[core.Key], Any]
    loss: Callable[[Any, Any, core.Key], tuple[jax.Array, dict[str, jax.Array]]]


class Target(NamedTuple):
    """What a guide is fitted to; a pytree, so that the data of a posterior are arguments of compiled functions.

    Attributes:
      log_density: `(position, batch) -> scalar`.
      initial: `key -> position`, where a guide starts.
    """

    log_density: Callable[[Any, Any], jax.Array]
    initial: Callable[[core.Key], Any]


def read_target(function: str, target: Any, initial: Any) -> Target:
    """A target from what a user passes: a log density or a posterior, and a position or a function that draws one."""
    if isinstance(target, Target):
        return target
    _, position, draw = as_target(target, initial, function)
    posterior = hasattr(target, "log_density") and callable(target.log_density)
    if posterior and jax.tree_util.treedef_is_leaf(jax.tree.structure(target)):
        target = target.log_density  # an object that is no pytree, and so a constant
        posterior = False
    log_density = Partial(_of_posterior, target) if posterior else Partial(_of_function, core.as_partial(target))
    if draw is None:
        start = Partial(_at, jax.tree.map(jnp.asarray, position))
    else:
        start = Partial(_draw_of, target) if posterior and initial is None else Partial(_call, core.as_partial(draw))
    return Target(log_density, start)


def _of_posterior(posterior: Any, position: Any, batch: Any) -> jax.Array:
    return posterior.log_density(position)


def _of_function(function: Any, position: Any, batch: Any) -> jax.Array:
    return function(position)


def _at(position: Any, key: core.Key) -> Any:
    return position


def _draw_of(posterior: Any, key: core.Key) -> Any:
    return posterior.initial(key)


def _call(function: Any, key: core.Key) -> Any:
    return function(key)


def subsampled(model: Callable[[Any], Any], size: int, example: Any) -> Target:
    """A posterior of which a step sees a batch of the data: log p(x) + size / batch size * log p(batch | x).

    Args:
      model: `batch -> posterior`, such as `lambda batch: regression(batch["x"]).condition(y=batch["y"])`. What depends
        on data alone belongs to the likelihood, and latent quantities must be the same for all batches.
      size: examples of all data.
      example: one batch (example, ...), for the structure of positions.

    Raises:
      ValueError: if `size` is below the examples of a batch.

    Source: Hoffman, Blei, Wang & Paisley (2013), "Stochastic variational inference", equation 26.
    """
    core.check_whole("subsampled", size=size)
    if size < (number := _examples("subsampled", example)):
        raise core.bad_value("subsampled", "size", size, f"at least the {number} examples of a batch")
    return Target(Partial(core.Bound(_of_batch, model, size)), Partial(_draw_of, model(example)))


def _of_batch(model: Any, size: int, position: Any, batch: Any) -> jax.Array:
    if batch is None:
        raise core.bad_value("subsampled", "batch", None, "a batch", "Train with learning.Task, or pass batches")
    log_prior, log_likelihood = model(batch).split_log_density(position)
    return log_prior + size / _examples("subsampled", batch) * log_likelihood


def _examples(function: str, batch: Any) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes or (0,) in sizes:
        raise core.bad_value(function, "batch", core.describe(batch), "arrays (example, ...) of one length")
    return sizes.pop()[0]


def elbo(
    target: Any, guide: Family, *, draws: int = 1, gradient: str = "stick_the_landing", initial: Any = None
) -> Objective:
    r"""The evidence lower bound of a guide q.

    $$E_q[\log p(x) - \log q(x)] = \log Z - KL(q \| p)$$

    Args:
      target: a posterior, a `position -> scalar` log density on unconstrained positions, or `vi.subsampled`.
      guide: a family of guides, such as `vi.full_rank()`.
      draws: of the guide for each step.
      gradient: how draws give a gradient, without bias in each case. "stick_the_landing" leaves out the score, whose
        mean is zero: its noise vanishes where the guide is exact. "path" differentiates all. "entropy" takes the
        entropy in closed form, which Gaussian guides have; of a flow that of what it starts from, and the mean
        log-determinant of the draws. "score" needs no gradient of the target (and is noisy); the
        mean of the other draws is its baseline. "fitted_score" has a baseline for each parameter, fitted to the other
        draws by regression: less noise where log weights depend on the score, from some tens of draws on; its memory is
        a number for each draw and parameter.
      initial: a position around which the guide starts, a function `key -> position`, or the result of `vi.laplace`
        or `vi.pathfinder`, in whose coordinates the guide is then fitted; by default the posterior's own start.

    Returns:
      an `Objective`, whose parameters are the guide.

    Raises:
      TypeError: if `guide` is no family or `target` has no log density.
      ValueError: for another `gradient`, `draws` below 1, or no `initial` where one is needed.

    >>> from jaxprob.inference.vi import mean_field
    >>> objective = elbo(lambda x: -0.5 * x**2, mean_field(), initial=jnp.zeros(()))
    >>> params = objective.init(jax.random.key(0))
    >>> objective.loss(params, None, jax.random.key(1))[0].shape
    ()

    Source: Kucukelbir et al. (2017); Roeder, Wu & Duvenaud (2017), "Sticking the landing"; Ranganath, Gerrish & Blei
    (2014), "Black box variational inference", section 3; Kool, van Hoof & Welling (2019) for the baseline of "score".
    """
    if gradient not in GRADIENTS:
        raise core.bad_value("elbo", "gradient", core.describe(gradient), f"one of {GRADIENTS}")
    return of_draws("elbo", target, guide, draws, initial, core.Bound(_elbo, draws, gradient))


def of_draws(
    function: str, target: Any, guide: Any, draws: int, initial: Any, loss: Callable[..., Any], *leaves: Any
) -> Objective:
    """The objective of `loss(*leaves, log_density, guide, batch, key)`, once its arguments are checked."""
    if not isinstance(guide, Family):
        raise core.bad_type(function, "guide", guide, "a family of guides", "Such as vi.full_rank()")
    core.check_whole(function, draws=draws)
    read = read_target(function, target, initial)
    return Objective(Partial(core.Bound(_init, guide), read.initial), Partial(loss, *leaves, read.log_density))


def _init(family: Family, initial: Any, key: core.Key) -> Any:
    return family.init(core.fold(key, 0), initial(core.fold(key, 1)))


def weigh(
    log_density: Any, guide: Any, batch: Any, key: core.Key, draws: int, gradient: str
) -> tuple[Any, jax.Array, jax.Array]:
    """Positions (draw, ...) of a guide, their log weights log p - log q (draw,), and log q (draw,).

    Args:
      gradient: "path", "stick_the_landing" for a log q without gradient of the guide's parameters, or "score" for
        positions without a gradient.
    """
    if gradient == "path":
        positions, log_q = guide.sample_and_log_prob(key, draws)
    else:
        positions = guide.sample(key, draws)
        positions = jax.lax.stop_gradient(positions) if gradient == "score" else positions
        log_q = (guide if gradient == "score" else jax.lax.stop_gradient(guide)).log_prob(positions)
    log_p = jax.vmap(lambda x: log_density(x, batch))(positions)
    return positions, log_p - log_q, log_q


def _elbo(draws: int, gradient: str, log_density: Any, guide: Any, batch: Any, key: core.Key) -> Any:
    if gradient == "entropy":
        positions, entropy = guide.sample_and_entropy(key, draws)
        value = jnp.mean(jax.vmap(lambda x: log_density(x, batch))(positions)) + entropy
        return -value, {"elbo": value}
    by_score = gradient.endswith("score")
    positions, log_weights, log_q = weigh(log_density, guide, batch, key, draws, "score" if by_score else gradient)
    value = jnp.mean(log_weights)
    if gradient == "score":
        value = with_gradient_of(value, jnp.mean(jax.lax.stop_gradient(less_the_others(log_weights)) * log_q))
    elif gradient == "fitted_score":
        value = with_gradient_of(value, fitted_score_gradient(log_weights, guide, positions))
    return -value, {"elbo": value}
