"""The standard tasks on which sequence cores are compared, as pure functions of a key that make one example.

`jax.vmap(lambda key: tasks.copy(key, delay=20))(keys)` is a batch, and `learning.data.generated` an endless source of
them. Tokens are integers, to be embedded or made one-hot.
"""

from jaxprob.models.sequence.tasks._digits import digits as digits
from jaxprob.models.sequence.tasks._dynamics import lorenz as lorenz
from jaxprob.models.sequence.tasks._dynamics import mackey_glass as mackey_glass
from jaxprob.models.sequence.tasks._example import Example as Example
from jaxprob.models.sequence.tasks._memory import adding as adding
from jaxprob.models.sequence.tasks._memory import associative_recall as associative_recall
from jaxprob.models.sequence.tasks._memory import copy as copy
from jaxprob.models.sequence.tasks._memory import parity as parity
from jaxprob.models.sequence.tasks._memory import selective_copy as selective_copy
