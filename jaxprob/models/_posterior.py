"""A joint model with data: a log density on unconstrained space, with the way back and what follows from draws."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Distribution
from jaxprob.models import _draws, _groups, _marginal, _program, _scoring, _sites, _survey


def condition(program: _program.Program, data: dict[str, Any], marginalize: tuple[str, ...]) -> Posterior:
    """The posterior of a program given data (see `Program.condition`)."""
    posterior = Posterior(program, _program.check_data("condition", program, data), ())
    if not marginalize:
        return posterior
    posterior = Posterior(program, posterior.data, _marginal.plan(posterior, marginalize))
    _marginal.check_elementwise(posterior)
    return posterior


@core.pytree
class Posterior:
    """A program given data.

    It is a pytree: its leaves are the program's and the data, so that a run can pass it to a compiled function, map
    over it, or shard its data. A *position* is a dict from the name of each latent site to its unconstrained array; a
    *draw* is a dict of constrained arrays.

    Attributes:
      program: the program.
      data: the observed values by name.
      groups: how discrete sites are summed out.
    """

    program: _program.Program
    data: dict[str, Any]
    groups: tuple[_groups.Group, ...] = core.static()

    @property
    def observed(self) -> dict[str, Any]:
        """The data by name."""
        return dict(self.data)

    @property
    def sites(self) -> dict[str, _survey.Site]:
        """What every named quantity is, in order; found by tracing, nothing is computed."""
        return _survey.survey(self.program, self.data)

    @property
    def names(self) -> tuple[str, ...]:
        """The latent sites that a position consists of, in order."""
        return tuple(self._latents("names"))

    @property
    def dim(self) -> int:
        """Number of scalars in a position."""
        return sum(site.unconstrained_size for site in self._latents("dim").values())

    def log_density(self, position: dict[str, Any]) -> jax.Array:
        """Log density of the latent quantities and the data on unconstrained space.

        `log p(data, x(u)) + log |det dx/du|`, where x(u) is the map onto the supports. The program runs once.

        Args:
          position: name to unconstrained array.

        Returns:
          scalar.

        Raises:
          ValueError: for a name that is missing or unknown, a wrong shape, or a discrete site that is neither
            observed nor summed out.
        """
        inside, (outside, log_dets) = _scoring.scores(self, position)
        terms = [_groups.log_sum(group, found) for group, found in zip(self.groups, inside, strict=True)]
        terms += [jnp.sum(log_prob) for log_prob in outside.values()]
        return _sites.total([*terms, *log_dets.values()])

    def split_log_density(self, position: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        """The two parts of `log_density`: that of the latent quantities, and that of the data given them.

        What tempering, annealing and evidence need. The first is normalised on unconstrained space, and `sample_prior`
        draws from it; sites that were given a value by `substitute` count as data, discrete sites that are summed out
        are summed out of both.

        Args:
          position: name to unconstrained array.

        Returns:
          log prior and log likelihood, scalars.

        Raises:
          ValueError: as `log_density`.
        """
        inside, (outside, log_dets) = _scoring.scores(self, position)
        prior = list(log_dets.values())
        likelihood: list[jax.Array] = []
        for group, found in zip(self.groups, inside, strict=True):
            known = [name for name in found if name not in log_dets and name not in group.names]
            prior.append(_groups.log_sum(group, {n: x for n, x in found.items() if n not in known}))
            likelihood += _groups.log_likelihood(group, found, known).values()
        for name, log_prob in outside.items():
            (prior if name in log_dets else likelihood).append(log_prob)
        return _sites.total([jnp.sum(x) for x in prior]), _sites.total([jnp.sum(x) for x in likelihood])

    def log_prob_by_site(self, position: dict[str, Any]) -> dict[str, jax.Array]:
        """What `log_density` adds up, by site: name to scalar, of a latent site with the log-determinant of its map.

        Sites around a discrete one that is summed out have one entry together, under the name of the discrete one.
        """
        inside, (outside, log_dets) = _scoring.scores(self, position)
        result = {name: jnp.sum(log_prob) for name, log_prob in outside.items()}
        for name, log_det in log_dets.items():
            result[name] = result.get(name, jnp.zeros_like(log_det)) + log_det
        for group, found in zip(self.groups, inside, strict=True):
            result[", ".join(group.names)] = jnp.sum(_groups.log_sum(group, found))
        return result

    def sample_prior(self, key: core.Key) -> dict[str, jax.Array]:
        """A position drawn from the prior, that is from the first part of `split_log_density`.

        A value that was rounded onto the border of its support is given the position nearest to it that can be told
        from the border.
        """
        key = core.as_key(key, "sample_prior")
        values = _program.simulate(self.program, key, self.data)
        position = self.unconstrain({name: values[name] for name in self._latents("sample_prior")})

        def inside(u: jax.Array) -> jax.Array:
            info = jnp.finfo(u.dtype)
            return jnp.nan_to_num(u, nan=jnp.nan, posinf=-math.log(info.eps), neginf=math.log(info.tiny))

        return jax.tree.map(inside, position)

    def initial(self, key: core.Key) -> dict[str, jax.Array]:
        """A position to start from: uniform on (-2, 2) in unconstrained space, as Stan does.

        It need not have a finite density; whoever runs a chain draws again with another key if it has not.
        """
        key = core.as_key(key, "initial")
        return {
            name: core.random.uniform(_sites.site_key(key, name), site.unconstrained_shape or (), site.dtype, -2, 2)
            for name, site in self._latents("initial").items()
        }

    def constrain(self, position: dict[str, Any]) -> dict[str, jax.Array]:
        """The draw at a position: its latent quantities, and the deterministic ones.

        Deterministic quantities that depend on a site which is summed out have no value and are left out.
        """
        latent: dict[str, jax.Array] = {}

        def read(name: str, distribution: Distribution) -> jax.Array:
            latent[name], _ = _scoring.onto_support("constrain", position, name, distribution)
            return latent[name]

        outcome = _scoring.run(self, read)
        _sites.check_known("constrain", "position", position, latent)
        hidden = {name for group in self.groups for name in group.hidden}
        recorded = {name: outcome.values[name] for name in outcome.deterministic if name not in hidden}
        return latent | recorded

    def unconstrain(self, values: dict[str, Any]) -> dict[str, jax.Array]:
        """The position of a draw: the inverse of `constrain`; deterministic quantities are not looked at."""
        position: dict[str, jax.Array] = {}

        def read(name: str, distribution: Distribution) -> jax.Array:
            _scoring.check_continuous("unconstrain", name, distribution)
            value = _sites.look_up("unconstrain", "values", values, name, distribution)
            position[name] = distribution.support.bijector.inverse(value)
            return value

        outcome = _scoring.run(self, read)
        _sites.check_known("unconstrain", "values", values, list(outcome.values))
        return position

    def predict(self, key: core.Key, draws: dict[str, Any]) -> dict[str, jax.Array]:
        """Replicated data, one set for each draw: the posterior predictive.

        Discrete sites that were summed out are drawn from their prior given the rest, unless `draws` has them.

        Args:
          key: random key.
          draws: name to array (*lead, ...), such as (chain, draw, ...).

        Returns:
          observed name to array (*lead, ...).
        """
        key = core.as_key(key, "predict")
        given, lead, size = self._given("predict", draws)
        return _draws.over_draws(_predict_one, self, key, given, lead, size)

    def prior_predict(self, key: core.Key, num: int) -> dict[str, jax.Array]:
        """Data simulated from the prior: observed name to array (num, ...)."""
        key = core.as_key(key, "prior_predict")
        return _draws.over_draws(_predict_one, self, key, {}, (num,), self._size(self.sites))

    def log_likelihood(self, draws: dict[str, Any]) -> dict[str, jax.Array]:
        """Log density of each observation given each draw.

        Args:
          draws: name to array (*lead, ...), such as (chain, draw, ...).

        Returns:
          observed name to array (*lead, *batch), batch being the shape of independent observations at the site; where
          a discrete site of shape (n,) was summed out, (*lead, n).
        """
        given, lead, size = self._given("log_likelihood", draws)
        return _draws.over_draws(_log_likelihood_one, self, None, given, lead, size)

    def infer_discrete(self, key: core.Key, draws: dict[str, Any]) -> dict[str, jax.Array]:
        """Draws of the discrete sites that were summed out, given the data and each draw.

        Args:
          key: random key.
          draws: name to array (*lead, ...), such as (chain, draw, ...).

        Returns:
          name to array (*lead, ...) of integers; together with `draws` these are draws of the whole posterior.
        """
        key = core.as_key(key, "infer_discrete")
        given, lead, size = self._given("infer_discrete", draws)
        given = {name: value for name, value in given.items() if name not in self._summed()}
        return _draws.over_draws(_infer_one, self, key, given, lead, size)

    def condition(self, *, marginalize: str | tuple[str, ...] = (), **data: Any) -> Posterior:
        """The posterior given further data as well (see `Program.condition`)."""
        for name in data:
            if name in self.data:
                raise core.bad_value("condition", name, "observed already", "a quantity without data")
        marginalize = (marginalize,) if isinstance(marginalize, str) else tuple(marginalize)
        earlier = tuple(name for name in self._summed() if name not in data)
        return condition(self.program, {**self.data, **data}, earlier + marginalize)

    def _summed(self) -> tuple[str, ...]:
        return tuple(name for group in self.groups for name in group.names)

    def _size(self, sites: dict[str, _survey.Site]) -> int:
        """Numbers that one run of the program handles, by a rough count."""
        values = max((group.size for group in self.groups), default=1)
        return values * sum(site.size for site in sites.values())

    def _latents(self, function: str) -> dict[str, _survey.Site]:
        """The sites of a position, or the error that there is a discrete one."""
        latents = {}
        for name, site in self.sites.items():
            if site.role == "latent" and name not in self._summed():
                if site.is_discrete:
                    raise _scoring.discrete_error(function, name, site.family)
                latents[name] = site
        return latents

    def _given(self, function: str, draws: dict[str, Any]) -> tuple[dict[str, Any], tuple[int, ...], int]:
        """The latent quantities among draws, their leading shape, and the size of one run."""
        sites = self.sites
        _sites.check_known(function, "draws", draws, list(sites))
        given = {}
        for name, site in sites.items():
            if site.role == "latent" and name in draws:
                given[name] = draws[name]
            elif site.role == "latent" and name not in self._summed():
                raise core.bad_value(function, "draws", f"without {name!r}", "draws of every latent quantity")
        return given, _draws.leading_shape(function, given, sites), self._size(sites)

    def __repr__(self) -> str:
        summed = f", summed out={list(self._summed())}" if self.groups else ""
        return f"Posterior({self.program.name}, observed={list(self.data)}{summed})"


def _predict_one(posterior: Posterior, key: core.Key, draw: dict[str, Any]) -> dict[str, jax.Array]:
    values = _program.simulate(posterior.program, key, draw)
    return {name: values[name] for name in posterior.data}


def _log_likelihood_one(posterior: Posterior, key: None, draw: dict[str, Any]) -> dict[str, jax.Array]:
    inside, found = _scoring.score_draw(posterior, draw)
    for group, log_probs in zip(posterior.groups, inside, strict=True):
        found |= _groups.log_likelihood(group, log_probs, posterior.data)
    return {name: found[name] for name in posterior.data}


def _infer_one(posterior: Posterior, key: core.Key, draw: dict[str, Any]) -> dict[str, jax.Array]:
    inside, _ = _scoring.score_draw(posterior, draw)
    result: dict[str, jax.Array] = {}
    for group, log_probs in zip(posterior.groups, inside, strict=True):
        logits = _groups.log_joint(group, log_probs, group.names + group.dependents)
        # "high": plain Gumbel noise in float32 drops values rarer than 1e-7.
        index = core.random.categorical(_sites.site_key(key, group.names[0]), logits, axis=0, mode="high")
        result |= {name: group.value(name, index) for name in group.names}
    return result
