"""Gaussian targets for the samplers of continuous densities, and networks whose control is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np

CENTER, SCALE = np.array([0.5, -1.0]), 1.5
MEAN, VARIANCE = np.array([0.3, -0.4]), np.array([0.25, 0.4])  # in coordinates (x - CENTER) / SCALE
LOG_Z = 0.7


def log_density(x):
    """A Gaussian density times exp(LOG_Z)."""
    center, mean, variance = (jnp.asarray(v, x.dtype) for v in (CENTER, MEAN, VARIANCE))
    z = (x - center) / SCALE
    return LOG_Z - 0.5 * jnp.sum((z - mean) ** 2 / variance + jnp.log(2 * math.pi * SCALE**2 * variance))


class Control:
    """A network without parameters from `function(z, time) -> control`."""

    def __init__(self, function):
        self.function = function

    def init(self, key, z, time, gradient):
        return jnp.zeros((), z.dtype)

    def apply(self, params, z, time, gradient):
        return self.function(z, time) + params


class Linear:
    """A network of few parameters that sees all of its inputs."""

    def init(self, key, z, time, gradient):
        return 0.4 * jax.random.normal(key, (4, z.shape[0]), z.dtype)

    def apply(self, params, z, time, gradient):
        return params[0] + params[1] * z + params[2] * time + 0.3 * params[3] * jnp.tanh(gradient)


ZERO = Control(lambda z, time: jnp.zeros_like(z))


def gap(sampler, num=4000):
    """log Z less the mean log weight, and the standard deviation of log weights; no training."""
    draws = sampler.draw(jax.random.key(1), sampler.init(jax.random.key(0)), num)
    log_weights = np.asarray(draws.log_weights, float)
    return LOG_Z - log_weights.mean(), log_weights.std()
