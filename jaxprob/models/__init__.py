"""What generates data: joint models written as generator functions.

`@joint` makes a model of a generator function; with arguments it is a `Program`, with data a `Posterior`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxprob.models import diffusion as diffusion
from jaxprob.models import latent as latent
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

if TYPE_CHECKING:
    from jaxprob.models import sequence as sequence


def __getattr__(name: str) -> Any:
    # Sequence cores are Flax modules, and Flax takes its time to import.
    if name == "sequence":
        return importlib.import_module("jaxprob.models.sequence")
    raise AttributeError(f"module 'jaxprob.models' has no attribute {name!r}")
