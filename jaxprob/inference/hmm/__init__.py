"""Discrete inference in hidden Markov models: filters, smoothers, paths, forecasts, likelihoods and EM."""

from jaxprob.inference._expectation_maximization import Fitted as Fitted
from jaxprob.inference.hmm._em import em_step as em_step
from jaxprob.inference.hmm._em import fit as fit
from jaxprob.inference.hmm._filter import Filtered as Filtered
from jaxprob.inference.hmm._filter import filter as filter
from jaxprob.inference.hmm._filter import log_likelihood as log_likelihood
from jaxprob.inference.hmm._gradient_em import fit_by_gradient as fit_by_gradient
from jaxprob.inference.hmm._smoother import Path as Path
from jaxprob.inference.hmm._smoother import Smoothed as Smoothed
from jaxprob.inference.hmm._smoother import pairwise as pairwise
from jaxprob.inference.hmm._smoother import sample as sample
from jaxprob.inference.hmm._smoother import smooth as smooth
from jaxprob.inference.hmm._smoother import viterbi as viterbi
from jaxprob.inference.hmm._stream import Forecast as Forecast
from jaxprob.inference.hmm._stream import State as State
from jaxprob.inference.hmm._stream import forecast as forecast
from jaxprob.inference.hmm._stream import init as init
from jaxprob.inference.hmm._stream import step as step
