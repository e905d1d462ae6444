"""State-space models: what moves in time unseen, and what is seen of it."""

from jaxprob.models.state_space._conditional_random_field import LinearChain as LinearChain
from jaxprob.models.state_space._durations import explicit_durations as explicit_durations
from jaxprob.models.state_space._durations import factorial as factorial
from jaxprob.models.state_space._hidden_markov import HiddenMarkov as HiddenMarkov
from jaxprob.models.state_space._linear_gaussian import LinearGaussian as LinearGaussian
