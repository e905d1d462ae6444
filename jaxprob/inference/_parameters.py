"""The posterior of the parameters of a state-space model, its states integrated out: a log density for NUTS and others.

log p(parameters | ys) = log p(parameters) + log p(ys | build(parameters)) + constant
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxprob import core, models
from jaxprob.distributions import Distribution
from jaxprob.inference import hmm, kalman
from jaxprob.inference._series import SeriesLaw, as_series, check_priors
from jaxprob.models.state_space import HiddenMarkov, LinearGaussian, StateSpaceModel

Model = LinearGaussian | HiddenMarkov | StateSpaceModel
NAME = "parameter_posterior"


def parameter_posterior(
    build: Callable[[dict[str, jax.Array]], Model],
    priors: dict[str, Distribution],
    ys: Any,
    *,
    missing: Any = None,
    method: str = "auto",
    linearize: Any = None,
) -> models.Posterior:
    """The posterior of the parameters of a state-space model given a series, with the states integrated out.

    Exact for a `LinearGaussian` (by `kalman.log_likelihood`) and a `HiddenMarkov` (by `hmm.log_likelihood`); for a
    `StateSpaceModel` the likelihood is that of a Gaussian filter, an approximation.

    Args:
      build: the model of given parameters, by name and on the supports of their priors: `build(parameters)`. Define it
        once: each new lambda compiles anew.
      priors: the law of each parameter, which are independent. For parameters that depend on one another, write a
        joint model with a site `kalman.marginal(model, length)`.
      ys: (time, ...), as for the likelihood; NaN is missing.
      missing: booleans of the shape of ys, true where not observed.
      method: see `kalman.filter` and `hmm.filter`.
      linearize: see `kalman.filter`; for a `StateSpaceModel`.

    Returns:
      a `models.Posterior`: `log_density` of an unconstrained position, for `jaxprob.sample` and every other method;
      `constrain` gives the parameters.

    Raises:
      TypeError: if a prior is no distribution.
      models.ModelError: if `build` raises, or returns no state-space model.
      ValueError: if a shape does not fit.

    >>> from jaxprob.distributions import LogNormal
    >>> def build(parameters):
    ...     variance, one = jnp.expand_dims(parameters["variance"], 0), jnp.ones((1, 1))
    ...     return LinearGaussian(jnp.zeros(1), one, one, one, one, variance)
    >>> posterior = parameter_posterior(build, {"variance": LogNormal(0.0, 1.0)}, jnp.array([1.0, jnp.nan, 3.0]))
    >>> f"{posterior.log_density({'variance': jnp.float32(0.0)}):.3f}"  # -3.954 of the series, -0.919 of the prior
    '-4.873'
    """
    if not callable(build):
        raise core.bad_type(NAME, "build", build, "a function from parameters to a state-space model")
    check_priors(NAME, priors, {"ys": "series"})
    ys = as_series(NAME, ys)
    program = _model(build, priors, ys.shape, missing, method, linearize)
    return program.condition(ys=ys)


@models.joint
def _model(build: Any, priors: Any, shape: tuple[int, ...], missing: Any, method: str, linearize: Any) -> Any:
    parameters = {}
    for name, prior in priors.items():
        parameters[name] = yield name, prior
    yield "ys", _Series(build(parameters), missing, shape, method, linearize)


@core.pytree
class _Series(SeriesLaw):
    """The law of a whole series."""

    model: Any
    missing: Any
    series_shape: tuple[int, ...] = core.static()
    method: str = core.static()
    linearize: Any = core.static()

    def __post_init__(self) -> None:
        if not isinstance(self.model, Model):
            expected = "a function that returns a LinearGaussian, a HiddenMarkov or a StateSpaceModel"
            raise core.bad_type(NAME, "build", f"a function that returns {core.describe(self.model)}", expected)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.series_shape

    def _log_prob_of_one(self, series: jax.Array) -> jax.Array:
        if isinstance(self.model, HiddenMarkov):
            return hmm.log_likelihood(self.model, series, missing=self.missing, method=self.method)
        options = {"linearize": self.linearize} if isinstance(self.model, StateSpaceModel) else {}
        return kalman.log_likelihood(self.model, series, missing=self.missing, method=self.method, **options)

    def _draw_one(self, key: core.Key) -> jax.Array:
        model, steps = self.model, self.series_shape[0]
        drawn = kalman.simulate(key, model, steps) if isinstance(model, LinearGaussian) else model.sample(key, steps)
        return drawn[1].reshape(self.series_shape)
