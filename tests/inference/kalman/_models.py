"""Linear-Gaussian models that are awkward for a filter, and series from them."""

import numpy as np

from jaxprob.models.state_space import LinearGaussian


def simulate(rng, m, times, **entries):
    """A series (time, m) of observations, whatever the law."""
    return rng.normal(size=(times, m)) * 2 + np.linspace(0, 1, times)[:, None]


def stable(rng, n):
    """A matrix whose spectral radius is 0.9."""
    matrix = rng.normal(size=(n, n))
    return 0.9 * matrix / np.abs(np.linalg.eigvals(matrix)).max()


def covariance(rng, n, rank=None):
    root = rng.normal(size=(n, rank or n))
    return root @ root.T


def random(rng, times=9, n=3, m=2):
    return dict(
        initial_mean=rng.normal(size=n),
        initial_covariance=covariance(rng, n),
        dynamics=stable(rng, n),
        dynamics_covariance=covariance(rng, n),
        emission=rng.normal(size=(m, n)),
        emission_covariance=covariance(rng, m),
        dynamics_offset=rng.normal(size=n),
        emission_offset=rng.normal(size=m),
    )


def autoregression(rng, times=9):
    """AR(2) in companion form, Q of rank one, no noise in what is observed."""
    return dict(
        initial_mean=np.zeros(2),
        initial_covariance=np.eye(2) * 1.5,
        dynamics=np.array([[1.2, -0.5], [1.0, 0.0]]),
        dynamics_covariance=np.diag([0.7, 0.0]),
        emission=np.array([[1.0, 0.0]]),
        emission_covariance=np.zeros((1, 1)),
    )


def constant_velocity(rng, times=9):
    """Position and velocity driven by one noise."""
    gain = np.array([[0.5], [1.0]])
    return dict(
        initial_mean=np.array([0.0, 1.0]),
        initial_covariance=np.eye(2) * 4,
        dynamics=np.array([[1.0, 1.0], [0.0, 1.0]]),
        dynamics_covariance=0.01 * gain @ gain.T,
        emission=np.array([[1.0, 0.0]]),
        emission_covariance=np.array([[0.5]]),
    )


def known_start(rng, times=9):
    return {**random(rng), "initial_covariance": np.zeros((3, 3))}


def static_parameter(rng, times=9):
    """A regression: nothing moves."""
    return dict(
        initial_mean=np.zeros(2),
        initial_covariance=np.eye(2) * 100,
        dynamics=np.eye(2),
        dynamics_covariance=np.zeros((2, 2)),
        emission=rng.normal(size=(times, 1, 2)),
        emission_covariance=np.array([[0.3]]),
        time_varying=("emission",),
    )


def growing_noise(rng, times=13):
    """Variances over twelve orders of magnitude, up and down again."""
    size = 10.0 ** np.concatenate([np.linspace(-6, 6, times // 2), np.linspace(6, -6, times - times // 2)])
    return {
        **random(rng),
        "emission_covariance": size[:, None, None] * covariance(rng, 2),
        "dynamics_covariance": size[::-1][:-1, None, None] * covariance(rng, 3),
        "time_varying": ("emission_covariance", "dynamics_covariance"),
    }


def everything_varies(rng, times=9):
    draws = [random(rng) for _ in range(times)]
    names = ("dynamics", "dynamics_covariance", "dynamics_offset", "emission", "emission_covariance", "emission_offset")
    return {**draws[0], **{name: np.stack([d[name] for d in draws]) for name in names}, "time_varying": names}


def correlated_noise(rng, times=9):
    """More numbers observed than states, noise of rank one."""
    return {**random(rng, n=2, m=4), "emission_covariance": covariance(rng, 4, 1) + np.diag([1e-3, 0, 1e-3, 1e-3])}


def independent_noise(rng, times=9):
    return {**random(rng, n=2, m=3), "emission_covariance": np.array([0.5, 1e-4, 2.0])}


def large(rng, times=6):
    """More states and observations than loops are written out for."""
    return random(rng, n=11, m=10)


MODELS = {
    f.__name__: f
    for f in (
        random,
        autoregression,
        constant_velocity,
        known_start,
        static_parameter,
        growing_noise,
        everything_varies,
        correlated_noise,
        independent_noise,
        large,
    )
}


def make(name, seed=0, times=None, gaps=False, dtype=np.float64):
    """A model and a series (time, m), with missing entries and whole times if `gaps`."""
    rng = np.random.default_rng(seed)
    times = times or {"growing_noise": 13, "large": 6}.get(name, 9)
    entries = MODELS[name](rng, times)
    arrays = {k: v if k == "time_varying" else np.asarray(v, dtype) for k, v in entries.items()}
    model = LinearGaussian(**arrays)
    ys = simulate(rng, model.observation_size, times)
    if gaps:
        ys[rng.uniform(size=ys.shape) < 0.25] = np.nan
        ys[times // 2] = np.nan
    return model, ys.astype(dtype)
