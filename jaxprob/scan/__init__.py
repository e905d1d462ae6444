"""Recurrences: the one place that runs loops over time."""

from jaxprob.scan import monoids as monoids
from jaxprob.scan._affine import Trajectory as Trajectory
from jaxprob.scan._affine import affine as affine
from jaxprob.scan._associative import associative as associative
from jaxprob.scan._bounded import bounded as bounded
from jaxprob.scan._bounded import repeat as repeat
from jaxprob.scan._cumulative import cumulative_sum as cumulative_sum
from jaxprob.scan._decays import Complex as Complex
from jaxprob.scan._decays import Exponential as Exponential
from jaxprob.scan._explain import explain as explain
from jaxprob.scan._methods import Choice as Choice
from jaxprob.scan._newton import NewtonResult as NewtonResult
from jaxprob.scan._newton import newton as newton
from jaxprob.scan._scan import scan as scan
from jaxprob.scan._scan import stream as stream
