"""Hidden Markov models by enumeration of all paths, and by a plain forward recursion: float64 NumPy, nothing shared."""

import itertools

import numpy as np


def paths(states, times):
    """All paths (states ** times, times)."""
    return np.array(list(itertools.product(range(states), repeat=times)), int).reshape(-1, times)


def weights(initial, transition, densities):
    """The joint density of each path and the observations: (paths,)."""
    times, states = densities.shape
    every = paths(states, times)
    transition = np.broadcast_to(transition, (max(times - 1, 0), states, states))
    result = np.ones(len(every))
    for t in range(times):
        step = initial[every[:, 0]] if t == 0 else transition[t - 1][every[:, t - 1], every[:, t]]
        result = result * step * densities[t, every[:, t]]
    return every, result


def marginal(every, weight, time, states):
    """Probabilities of the state of a time."""
    return np.array([weight[every[:, time] == k].sum() for k in range(states)]) / weight.sum()


def filtered(initial, transition, densities, upto=0):
    """(time, K): each state given observations up to `upto` times after it."""
    times, states = densities.shape
    rows = []
    for t in range(times):
        known = densities.copy()
        known[t + 1 + upto :] = 1
        every, weight = weights(initial, transition, known)
        rows.append(marginal(every, weight, t, states))
    return np.array(rows)


def smoothed(initial, transition, densities):
    every, weight = weights(initial, transition, densities)
    return np.array([marginal(every, weight, t, densities.shape[1]) for t in range(len(densities))])


def pairwise(initial, transition, densities):
    every, weight = weights(initial, transition, densities)
    times, states = densities.shape
    found = np.zeros((times - 1, states, states))
    for t in range(times - 1):
        for i in range(states):
            for j in range(states):
                found[t, i, j] = weight[(every[:, t] == i) & (every[:, t + 1] == j)].sum() / weight.sum()
    return found


def forward(initial, transition, log_densities):
    """The log likelihood by a normalised recursion, for long series."""
    total, state = 0.0, np.asarray(initial, np.float64)
    for t, row in enumerate(np.asarray(log_densities, np.float64)):
        if t:
            state = state @ transition
        state = state * np.exp(row - row.max())
        total += np.log(state.sum()) + row.max()
        state = state / state.sum()
    return total
