"""Flows: bijectors whose parameters are trained, and the distributions made of them."""

from jaxprob.distributions.flows._affine import DiagonalAffine as DiagonalAffine
from jaxprob.distributions.flows._affine import TriangularAffine as TriangularAffine
from jaxprob.distributions.flows._architecture import Architecture as Architecture
from jaxprob.distributions.flows._networks import Perceptron as Perceptron
from jaxprob.distributions.flows._repeated import Repeated as Repeated
from jaxprob.distributions.flows._standard_normal import StandardNormal as StandardNormal
