"""State-space models: what moves in time unseen, and what is seen of it."""

from jaxprob.models.state_space._linear_gaussian import LinearGaussian as LinearGaussian
