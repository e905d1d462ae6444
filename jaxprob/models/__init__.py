"""What generates data: joint models written as generator functions.

`@joint` makes a model of a generator function; with arguments it is a `Program`, with data a `Posterior`.
"""

from jaxprob.models import sequence as sequence
from jaxprob.models import state_space as state_space
from jaxprob.models._nets import Net as Net
from jaxprob.models._nets import random_net as random_net
from jaxprob.models._posterior import Posterior as Posterior
from jaxprob.models._program import Joint as Joint
from jaxprob.models._program import Program as Program
from jaxprob.models._program import joint as joint
from jaxprob.models._sites import ModelError as ModelError
from jaxprob.models._sites import deterministic as deterministic
from jaxprob.models._sites import prefix as prefix
from jaxprob.models._survey import Site as Site
from jaxprob.models.state_space import StateSpaceModel as StateSpaceModel
