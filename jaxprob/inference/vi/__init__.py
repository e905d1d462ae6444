"""Gaussian approximations: at a mode, and on the way to one."""

from jaxprob.inference.vi._laplace import Laplace as Laplace
from jaxprob.inference.vi._laplace import laplace as laplace
from jaxprob.inference.vi._pathfinder import Pathfinder as Pathfinder
from jaxprob.inference.vi._pathfinder import pathfinder as pathfinder
from jaxprob.inference.vi._quasi_newton_metric import QuasiNewtonMetric as QuasiNewtonMetric
