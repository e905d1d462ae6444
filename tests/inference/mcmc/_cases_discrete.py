"""discrete kernels in the battery."""

from tests.inference.mcmc._case import Case

CASES: list[Case] = []
