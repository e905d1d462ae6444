"""The published equations of hierarchical Gaussian filters, for three networks, as loops in float64 NumPy."""

import numpy as np

TAU = 2 * np.pi


def volatility(enhanced, prior, precision, known, force, kappa, kept, added, square):
    """Mean and precision of a volatility parent: Mathys et al. (2014), eq. 11 to 14; tapas_ehgf where enhanced.

    Args:
      prior: expected mean.
      precision: expected precision.
      known: precision from value children.
      force: from value children.
      kept, added, square: of the child: variance before, variance added, expected square of what it moved.
    """
    total = kept + added
    w, da = added / total, square / total - 1
    if not enhanced:
        pi = precision + known + 0.5 * (kappa * w) ** 2 + (kappa * w) ** 2 * da - 0.5 * kappa**2 * w * da
        return prior + (force + 0.5 * kappa * w * da) / pi, pi
    mu = prior + (force + 0.5 * kappa * w * da) / (precision + known)
    v = added * np.exp(kappa * (mu - prior))
    pihat = 1 / (kept + v)
    ww, rr, dd = v * pihat, (v - kept) * pihat, square * pihat - 1
    return mu, precision + known + max(0.0, 0.5 * kappa**2 * ww * (ww + rr * dd))


def generalised(ys, steps, enhanced):
    """u <- x1; x1 drifts, returns to 0.3, and is pushed by tanh of x4; x2 is its volatility, x3 that of x2."""
    mean = {"x1": 0.2, "x2": 0.1, "x3": -0.2, "x4": 0.4}
    precision = {"x1": 2.0, "x2": 1.5, "x3": 3.0, "x4": 0.8}
    rows, surprises = [], []
    for y, dt in zip(ys, steps, strict=True):
        hat, pihat, kept, added = {}, {}, {}, {}
        for name, omega, kappa, parent in (("x4", -2.0, 0, None), ("x3", -3.0, 0, None), ("x2", -2.5, 1.2, "x3")):
            hat[name] = mean[name]
            kept[name] = 1 / precision[name]
            added[name] = dt * np.exp(omega + (kappa * hat[parent] if parent else 0))
            pihat[name] = 1 / (kept[name] + added[name])
        left = 0.9**dt
        hat["x1"] = 0.3 + left * (mean["x1"] - 0.3) + dt * (0.05 + 0.4 * np.tanh(hat["x4"]))
        kept["x1"] = left**2 / precision["x1"]
        added["x1"] = dt * np.exp(-1.5 + 0.7 * hat["x2"])
        pihat["x1"] = 1 / (kept["x1"] + added["x1"])
        noise = np.exp(-0.5)
        variance = noise + 1 / pihat["x1"]
        if np.isnan(y):
            mean, precision = dict(hat), dict(pihat)
            surprises.append(0.0)
        else:
            surprises.append(0.5 * ((y - hat["x1"]) ** 2 / variance + np.log(variance * TAU)))
            precision["x1"] = pihat["x1"] + 1 / noise
            mean["x1"] = hat["x1"] + (y - hat["x1"]) / noise / precision["x1"]
            gap = mean["x1"] - hat["x1"]
            slope = 0.4 * dt * (1 - np.tanh(hat["x4"]) ** 2)
            bend = 0.4 * dt * -2 * np.tanh(hat["x4"]) * (1 - np.tanh(hat["x4"]) ** 2)
            gain = pihat["x1"] * (slope**2 - bend * gap)
            precision["x4"] = pihat["x4"] + (max(gain, 0) if enhanced else gain)
            mean["x4"] = hat["x4"] + slope * pihat["x1"] * gap / precision["x4"]
            square = 1 / precision["x1"] + gap**2
            mean["x2"], precision["x2"] = volatility(
                enhanced, hat["x2"], pihat["x2"], 0, 0, 0.7, kept["x1"], added["x1"], square
            )
            square = 1 / precision["x2"] + (mean["x2"] - hat["x2"]) ** 2
            mean["x3"], precision["x3"] = volatility(
                enhanced, hat["x3"], pihat["x3"], 0, 0, 1.2, kept["x2"], added["x2"], square
            )
        rows.append([*(mean[f"x{i}"] for i in (1, 2, 3, 4)), *(precision[f"x{i}"] for i in (1, 2, 3, 4))])
    return np.array(rows), np.array(surprises)


def binary(ys, omega, meta, kappa, enhanced):
    """The three-level filter of Mathys et al. (2011): u = 1 with log odds x2, whose volatility is x3."""
    mu2, pi2, mu3, pi3 = 0.0, 1.0, 1.0, 1.0
    rows, surprises = [], []
    for u in ys:
        p = 1 / (1 + np.exp(-mu2))
        kept, added = 1 / pi2, np.exp(kappa * mu3 + omega)
        pihat2, pihat3 = 1 / (kept + added), 1 / (1 / pi3 + np.exp(meta))
        surprises.append(-np.log(p if u else 1 - p))
        pi2 = pihat2 + p * (1 - p)
        step = (u - p) / pi2
        mu2 = mu2 + step
        mu3, pi3 = volatility(enhanced, mu3, pihat3, 0, 0, kappa, kept, added, 1 / pi2 + step**2)
        rows.append([mu2, mu3, pi2, pi3])
    return np.array(rows), np.array(surprises)


def noisy(ys, enhanced):
    """Two observations of x1, the noise of the second with log variance -1 + 0.8 x2."""
    mu, pi = np.array([0.0, 0.0]), np.array([1.0, 1.0])
    rows, surprises = [], []
    for first, second in ys:
        pihat = 1 / (1 / pi + np.exp([-2.0, -3.0]))
        noise = np.array([0.5, np.exp(-1 + 0.8 * mu[1])])
        slopes, values = np.array([1.0, 2.0]), np.array([first, second])
        gap = values - slopes * mu[0]
        variance = noise + slopes**2 / pihat[0]
        surprises.append(np.sum(0.5 * (gap**2 / variance + np.log(TAU * variance))))
        pi1 = pihat[0] + np.sum(slopes**2 / noise)
        mu1 = mu[0] + np.sum(slopes * gap / noise) / pi1
        square = (second - 2 * mu1) ** 2 + 4 / pi1
        mu2, pi2 = volatility(enhanced, mu[1], pihat[1], 0, 0, 0.8, 0.0, noise[1], square)
        mu, pi = np.array([mu1, mu2]), np.array([pi1, pi2])
        rows.append([*mu, *pi])
    return np.array(rows), np.array(surprises)
