"""Hierarchical Gaussian filters: networks of beliefs about what drifts, how fast it does, and what is seen of it."""

from jaxprob.inference.hgf._filter import filter as filter
from jaxprob.inference.hgf._filter import init as init
from jaxprob.inference.hgf._filter import log_likelihood as log_likelihood
from jaxprob.inference.hgf._filter import step as step
from jaxprob.inference.hgf._network import Network as Network
from jaxprob.inference.hgf._network import Node as Node
from jaxprob.inference.hgf._network import binary as binary
from jaxprob.inference.hgf._network import categorical as categorical
from jaxprob.inference.hgf._network import continuous as continuous
from jaxprob.inference.hgf._network import state as state
from jaxprob.inference.hgf._updates import Beliefs as Beliefs
