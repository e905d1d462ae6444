"""Partially Bayesian networks: some parameters have a law, held by particles; the others have a value each.

Which is which goes by leaf paths. What is known of the stochastic ones is a population of equally weighted particles,
and a prediction is the mixture over them.

Source: Zhao, Mair, Schön & Sjölund (2024), "On Feynman-Kac training of partial Bayesian neural networks".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Distribution


def partition(params: Any, stochastic: str | Sequence[str]) -> tuple[Any, Any]:
    """Parts parameters in two by the paths of leaves.

    Args:
      params: pytree.
      stochastic: a glob pattern of whole leaf paths, or several, as for `learning.by_path`.

    Returns:
      the leaves that no pattern meets, and those that one does: two pytrees like `params`, with None for the leaves
      of the other.

    Raises:
      ValueError: if a pattern takes no leaf.

    >>> partition({"hidden": {"kernel": 1.0, "bias": 2.0}, "last": 3.0}, ["last", "*.bias"])
    ({'hidden': {'bias': None, 'kernel': 1.0}, 'last': None}, {'hidden': {'bias': 2.0, 'kernel': None}, 'last': 3.0})
    """
    patterns = [stochastic] if isinstance(stochastic, str) else list(stochastic)
    names = [name for name, _ in core.named_leaves(params)]
    places = core.match_patterns("partition", "pattern {}", patterns, names)
    leaves, structure = jax.tree.flatten(params)
    chosen = [place < len(patterns) for place in places]
    fixed = [None if taken else leaf for taken, leaf in zip(chosen, leaves, strict=True)]
    taken = [leaf if taken else None for taken, leaf in zip(chosen, leaves, strict=True)]
    return jax.tree.unflatten(structure, fixed), jax.tree.unflatten(structure, taken)


def combine(deterministic: Any, stochastic: Any) -> Any:
    """Puts together what `partition` parted.

    >>> combine({"kernel": 1.0, "bias": None}, {"kernel": None, "bias": 2.0})
    {'bias': 2.0, 'kernel': 1.0}
    """
    return jax.tree.map(lambda x, y: y if x is None else x, deterministic, stochastic, is_leaf=lambda x: x is None)


class PartialParams(NamedTuple):
    """Parameters of a partially Bayesian network, as a task trains them.

    Attributes:
      deterministic: pytree like the network's parameters, None where a leaf is stochastic.
      particles: pytree with the other leaves (particle, ...), equally weighted.
      carried: what training carries from step to step; None where it carries nothing.
    """

    deterministic: Any
    particles: Any
    carried: Any = None

    @property
    def num_particles(self) -> int:
        """How many particles there are."""
        return jax.tree.leaves(self.particles)[0].shape[0]

    def each(self, function: Callable[[Any], Any]) -> Any:
        """A function of whole parameters, for each particle: pytree (particle, ...).

        A mean prediction is `jnp.mean(params.each(lambda p: apply(p, xs)), axis=0)`.

        Args:
          function: `params -> pytree`.
        """
        return jax.vmap(lambda particle: function(combine(self.deterministic, particle)))(self.particles)


@dataclasses.dataclass(frozen=True)
class PartialBayes:
    """A network of which some parameters are stochastic.

    Args:
      init: `key -> params`, a pytree of real floating arrays. Where stochastic parameters begin counts for nothing:
        they are drawn from their prior.
      log_likelihood: `(params, example) -> scalar`, log density of one example. NaN counts as impossible.
      stochastic: which leaves are stochastic: a glob pattern of whole leaf paths, or several, as for
        `learning.by_path`.
      prior: of stochastic parameters: a distribution of one number, for all of them alike, or `prior(name, shape)`,
        which makes one (or one of that shape) for each leaf by its path and shape.

    Raises:
      TypeError: if a function or the prior is not one.
      ValueError: if a pattern takes no leaf, or a prior has another shape.

    >>> from jaxprob.distributions import Normal
    >>> network = PartialBayes(
    ...     init=lambda key: {"slope": jnp.zeros(()), "offset": jnp.zeros(())},
    ...     log_likelihood=lambda p, example: Normal(p["slope"] * example[0] + p["offset"], 1.0).log_prob(example[1]),
    ...     stochastic="slope",
    ...     prior=Normal(0.0, 1.0),
    ... )
    >>> network.start(jax.random.key(0), 5).particles["slope"].shape
    (5,)

    Source: Zhao et al. (2024).
    """

    init: Callable[[core.Key], Any]
    log_likelihood: Callable[[Any, Any], Any]
    stochastic: str | Sequence[str]
    prior: Distribution | Callable[[str, tuple[int, ...]], Distribution]

    def __post_init__(self) -> None:
        for argument in ("init", "log_likelihood"):
            if not callable(getattr(self, argument)):
                raise core.bad_type("PartialBayes", argument, getattr(self, argument), "a function")
        if not isinstance(self.prior, Distribution) and not callable(self.prior):
            expected = "a distribution, or a function of a leaf's path and shape that makes one"
            raise core.bad_type("PartialBayes", "prior", self.prior, expected)
        patterns = (self.stochastic,) if isinstance(self.stochastic, str) else tuple(self.stochastic)
        if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
            raise core.bad_value("PartialBayes", "stochastic", self.stochastic, "one pattern of leaf paths, or several")
        object.__setattr__(self, "stochastic", patterns)
        for name, leaf in core.named_leaves(self._shapes()):
            jax.eval_shape(lambda name=name, leaf=leaf: _entries(self._law(name, leaf.shape), leaf.shape))

    def log_prior(self, particle: Any) -> jax.Array:
        """Log density of stochastic parameters, (), in the dtype in which they are summed."""
        dtype = core.accumulator_dtype(core.result_dtype(particle))
        named = core.named_leaves(particle)
        densities = [self._law(name, leaf.shape).log_prob(leaf.astype(dtype)) for name, leaf in named]
        return sum((jnp.sum(density).astype(dtype) for density in densities), start=jnp.zeros((), dtype))

    def sample_prior(self, key: core.Key) -> Any:
        """Draws stochastic parameters: a pytree like the network's, None for the others."""
        shapes, drawn = self._shapes(), []
        for index, (name, leaf) in enumerate(core.named_leaves(shapes)):
            law = self._law(name, leaf.shape)
            drawn.append(law.sample(core.fold(key, index), _entries(law, leaf.shape)).astype(leaf.dtype))
        return jax.tree.unflatten(jax.tree.structure(shapes), drawn)

    def start(self, key: core.Key, num_particles: int) -> PartialParams:
        """Parameters to begin with: deterministic ones by `init`, stochastic ones drawn from their prior.

        Raises:
          ValueError: if `num_particles` is no whole number above 0.
        """
        core.check_whole("PartialBayes.start", num_particles=num_particles)
        key = core.as_key(key, "PartialBayes.start")
        params = jax.tree.map(jnp.asarray, self.init(core.fold(key, 0)))
        keys = core.chain_keys(core.fold(key, 1), jnp.arange(num_particles))
        return PartialParams(partition(params, self.stochastic)[0], jax.vmap(self.sample_prior)(keys))

    def log_likelihoods(self, params: PartialParams, batch: Any) -> jax.Array:
        """Log likelihoods of examples under each particle, (particle, example); -inf where one is NaN.

        Args:
          params: of this network.
          batch: pytree of arrays (example, ...).

        Raises:
          ValueError: if a log likelihood is not one number.
        """

        def value(whole: Any, example: Any) -> jax.Array:
            found = core.as_float(self.log_likelihood(whole, example))
            if found.shape:
                todo = "Sum over everything an example is made of"
                raise core.bad_value("PartialBayes", "the value of log_likelihood", found, "one number", todo)
            return found.astype(core.accumulator_dtype(found.dtype))

        terms = params.each(lambda whole: jax.vmap(lambda example: value(whole, example))(batch))
        return jnp.where(jnp.isnan(terms), -jnp.inf, terms)

    def _shapes(self) -> Any:
        """The stochastic parameters as shapes; nothing is computed."""
        params = jax.eval_shape(self.init, jax.eval_shape(jax.random.key, 0))
        return partition(params, self.stochastic)[1]

    def _law(self, name: str, shape: tuple[int, ...]) -> Distribution:
        law = self.prior if isinstance(self.prior, Distribution) else self.prior(name, shape)
        if not isinstance(law, Distribution):
            raise core.bad_type("PartialBayes", f"prior for {name!r}", law, "a distribution")
        return law


def _entries(law: Distribution, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of draws that makes one of `shape` of a law that is of one number, or of that shape itself."""
    if law.shape not in ((), shape):
        raise core.bad_value("PartialBayes", "prior", f"of shape {law.shape}", f"shape () or {shape}")
    return shape[len(law.shape) :]


def log_predictive(network: PartialBayes, params: PartialParams, batch: Any) -> jax.Array:
    """Log predictive density of examples, `log (1 / N) sum_i p(y | x, phi_i; psi)`: the mixture over the particles.

    Args:
      network: a `PartialBayes`.
      params: of it, with equally weighted particles.
      batch: pytree of arrays (example, ...).

    Returns:
      (example,); -inf where no particle thinks an example possible.

    Raises:
      ValueError: if a log likelihood is not one number.

    Source: Zhao et al. (2024).
    """
    return mixture(network.log_likelihoods(params, batch))


def mixture(terms: jax.Array) -> jax.Array:
    """Log densities of an equal mixture, (example,), from those of its parts (particle, example)."""
    return core.logsumexp(terms, axis=0) - math.log(terms.shape[0])
