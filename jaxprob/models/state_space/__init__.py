"""State-space models: what moves in time unseen, and what is seen of it."""

from jaxprob.models.state_space._conditional_random_field import LinearChain as LinearChain
from jaxprob.models.state_space._continuous import integrated_wiener as integrated_wiener
from jaxprob.models.state_space._continuous import matern as matern
from jaxprob.models.state_space._durations import explicit_durations as explicit_durations
from jaxprob.models.state_space._durations import factorial as factorial
from jaxprob.models.state_space._hidden_markov import HiddenMarkov as HiddenMarkov
from jaxprob.models.state_space._linear_gaussian import LinearGaussian as LinearGaussian
from jaxprob.models.state_space._state_space_model import StateSpaceModel as StateSpaceModel
from jaxprob.models.state_space._structural import Component as Component
from jaxprob.models.state_space._structural import cycle as cycle
from jaxprob.models.state_space._structural import decompose as decompose
from jaxprob.models.state_space._structural import local_level as local_level
from jaxprob.models.state_space._structural import local_linear_trend as local_linear_trend
from jaxprob.models.state_space._structural import observed_with as observed_with
from jaxprob.models.state_space._structural import regression as regression
from jaxprob.models.state_space._structural import seasonal as seasonal
from jaxprob.models.state_space._structural import trigonometric_seasonal as trigonometric_seasonal
