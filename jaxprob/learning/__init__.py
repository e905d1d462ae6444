"""How parameters change: tasks, the training step, optimisers by leaf path, averages, early stopping, data."""

from jaxprob.learning import data as data
from jaxprob.learning._early_stopping import EarlyStopping as EarlyStopping
from jaxprob.learning._early_stopping import EarlyStoppingState as EarlyStoppingState
from jaxprob.learning._early_stopping import early_stopping as early_stopping
from jaxprob.learning._optimizers import by_path as by_path
from jaxprob.learning._task import Task as Task
from jaxprob.learning._training import Training as Training
from jaxprob.learning._training import TrainingState as TrainingState
from jaxprob.learning._training import evaluation as evaluation
from jaxprob.learning._training import training as training
