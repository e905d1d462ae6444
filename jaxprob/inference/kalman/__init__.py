"""Gaussian inference in state-space models: filters, smoothers, forecasts and likelihoods."""

from jaxprob.inference.kalman._filter import Filtered as Filtered
from jaxprob.inference.kalman._filter import filter as filter
from jaxprob.inference.kalman._filter import log_likelihood as log_likelihood
from jaxprob.inference.kalman._forecast import Forecast as Forecast
from jaxprob.inference.kalman._forecast import forecast as forecast
from jaxprob.inference.kalman._innovations import InnovationTests as InnovationTests
from jaxprob.inference.kalman._innovations import innovation_tests as innovation_tests
from jaxprob.inference.kalman._marginal import Marginal as Marginal
from jaxprob.inference.kalman._marginal import marginal as marginal
from jaxprob.inference.kalman._marginal import simulate as simulate
from jaxprob.inference.kalman._smoother import Smoothed as Smoothed
from jaxprob.inference.kalman._smoother import sample as sample
from jaxprob.inference.kalman._smoother import smooth as smooth
from jaxprob.inference.kalman._stream import StreamState as StreamState
from jaxprob.inference.kalman._stream import init as init
from jaxprob.inference.kalman._stream import step as step
