"""The joint normal law of all states and observations, in float64 NumPy: what every filter must agree with."""

import numpy as np


def entries(model, times):
    """The entries of a model as float64 arrays with a leading axis of time."""
    result = {}
    for name in (
        "dynamics",
        "dynamics_covariance",
        "dynamics_offset",
        "emission",
        "emission_covariance",
        "emission_offset",
    ):
        array = np.asarray(getattr(model, name), np.float64)
        if name not in model.time_varying:
            array = np.broadcast_to(array, (times, *array.shape))
        if name == "emission_covariance" and array.ndim == 2:
            array = array[..., None] * np.eye(array.shape[-1])
        result[name] = array
    return result


def joint(model, times, diffuse_variance=0.0):
    """Mean (T n,) and covariance of all states; H (T m, T n), offset (T m,) and noise of the observations."""
    e = entries(model, times)
    n, m = e["dynamics"].shape[-1], e["emission"].shape[-2]
    mean, covariance = np.zeros((times, n)), np.zeros((times, n, times, n))
    mean[0] = np.asarray(model.initial_mean, np.float64)
    spread = np.asarray(model.initial_diffuse, np.float64)
    covariance[0, :, 0] = np.asarray(model.initial_covariance, np.float64) + diffuse_variance * spread @ spread.T
    for t in range(1, times):
        f = e["dynamics"][t - 1]
        mean[t] = f @ mean[t - 1] + e["dynamics_offset"][t - 1]
        for s in range(t):
            covariance[t, :, s] = f @ covariance[t - 1, :, s]
            covariance[s, :, t] = covariance[t, :, s].T
        covariance[t, :, t] = f @ covariance[t - 1, :, t - 1] @ f.T + e["dynamics_covariance"][t - 1]
    emission = np.zeros((times, m, times, n))
    noise = np.zeros((times, m, times, m))
    for t in range(times):
        emission[t, :, t], noise[t, :, t] = e["emission"][t], e["emission_covariance"][t]
    size = times * m
    return (
        mean.ravel(),
        covariance.reshape(times * n, times * n),
        emission.reshape(size, times * n),
        e["emission_offset"].ravel(),
        noise.reshape(size, size),
    )


def condition(model, ys, upto=None):
    """Log likelihood, mean (T, n) and covariance (T, n, T, n) of all states, given observations of the times `upto`."""
    ys = np.asarray(ys, np.float64).reshape(len(ys), -1)
    times = len(ys)
    mean, covariance, emission, offset, noise = joint(model, times)
    seen = ~np.isnan(ys)
    seen[times if upto is None else upto :] = False
    seen = seen.ravel()
    h, residual = emission[seen], ys.ravel()[seen] - offset[seen]
    residual = residual - h @ mean
    variance = h @ covariance @ h.T + noise[np.ix_(seen, seen)]
    # In units in which all observations have variance one: their scales may differ by many orders of magnitude.
    scale = np.sqrt(np.diag(variance)) if len(variance) else np.ones(0)
    correlation = variance / scale[:, None] / scale
    gain = np.linalg.solve(correlation, (h @ covariance) / scale[:, None]).T
    white = residual / scale
    log_det = np.linalg.slogdet(correlation)[1] + 2 * np.sum(np.log(scale))
    likelihood = -0.5 * (white @ np.linalg.solve(correlation, white) + log_det + len(white) * np.log(2 * np.pi))
    n = model.state_size
    after = covariance - gain @ ((h @ covariance) / scale[:, None])
    return likelihood, (mean + gain @ white).reshape(times, n), after.reshape(times, n, times, n)


def loop(model, ys):
    """The log likelihood by a plain filter in float64, for series too long for the joint law."""
    ys = np.asarray(ys, np.float64).reshape(len(ys), -1)
    e = entries(model, len(ys))
    mean, covariance = (np.asarray(x, np.float64) for x in (model.initial_mean, model.initial_covariance))
    total, means = 0.0, []
    for t, y in enumerate(ys):
        seen = ~np.isnan(y)
        h, r = e["emission"][t][seen], e["emission_covariance"][t][np.ix_(seen, seen)]
        residual = y[seen] - e["emission_offset"][t][seen] - h @ mean
        variance = h @ covariance @ h.T + r
        gain = np.linalg.solve(variance, h @ covariance).T
        total -= 0.5 * (
            residual @ np.linalg.solve(variance, residual)
            + np.linalg.slogdet(variance)[1]
            + len(residual) * np.log(2 * np.pi)
        )
        mean = mean + gain @ residual
        keep = np.eye(len(mean)) - gain @ h
        covariance = keep @ covariance @ keep.T + gain @ r @ gain.T
        means.append(mean)
        if t < len(e["dynamics"]):
            mean = e["dynamics"][t] @ mean + e["dynamics_offset"][t]
            covariance = e["dynamics"][t] @ covariance @ e["dynamics"][t].T + e["dynamics_covariance"][t]
    return total, np.array(means)
