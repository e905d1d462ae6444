"""Recurrences: the one place that runs loops over time."""

from jaxprob.scan._bounded import bounded as bounded
from jaxprob.scan._bounded import repeat as repeat
