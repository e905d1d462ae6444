"""How parameters change: tasks, the training step, optimisers by leaf path, averages, early stopping, data."""

from jaxprob.learning import data as data
from jaxprob.learning._early_stopping import EarlyStopping as EarlyStopping
from jaxprob.learning._early_stopping import EarlyStoppingState as EarlyStoppingState
from jaxprob.learning._early_stopping import early_stopping as early_stopping
from jaxprob.learning._optimizers import by_path as by_path
from jaxprob.learning._partial_bayes import PartialBayes as PartialBayes
from jaxprob.learning._partial_bayes import PartialParams as PartialParams
from jaxprob.learning._partial_bayes import combine as combine
from jaxprob.learning._partial_bayes import log_predictive as log_predictive
from jaxprob.learning._partial_bayes import partition as partition
from jaxprob.learning._particle_training import Carried as Carried
from jaxprob.learning._particle_training import open_horizon_smc as open_horizon_smc
from jaxprob.learning._particle_training import partial_posterior as partial_posterior
from jaxprob.learning._particle_training import stochastic_gradient_smc as stochastic_gradient_smc
from jaxprob.learning._task import Task as Task
from jaxprob.learning._training import Training as Training
from jaxprob.learning._training import TrainingState as TrainingState
from jaxprob.learning._training import evaluation as evaluation
from jaxprob.learning._training import training as training
