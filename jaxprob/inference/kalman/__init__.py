"""Gaussian inference in state-space models: filters, smoothers, forecasts and likelihoods."""

from jaxprob.inference.kalman._filter import Filtered as Filtered
from jaxprob.inference.kalman._filter import filter as filter
from jaxprob.inference.kalman._filter import log_likelihood as log_likelihood
from jaxprob.inference.kalman._smoother import Smoothed as Smoothed
from jaxprob.inference.kalman._smoother import sample as sample
from jaxprob.inference.kalman._smoother import smooth as smooth
