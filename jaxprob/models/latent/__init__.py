"""Models with latent variables of each example: autoencoders and linear factors. `vi.amortized_elbo` trains them."""

from jaxprob.models.latent._autoencoder import autoencoder as autoencoder
from jaxprob.models.latent._categorical_autoencoder import categorical_autoencoder as categorical_autoencoder
from jaxprob.models.latent._deep_latent_gaussian import deep_latent_gaussian as deep_latent_gaussian
from jaxprob.models.latent._factor_analysis import FactorAnalysis as FactorAnalysis
from jaxprob.models.latent._factor_analysis import linear as linear
from jaxprob.models.latent._hierarchical_autoencoder import hierarchical_autoencoder as hierarchical_autoencoder
from jaxprob.models.latent._impute import impute as impute
from jaxprob.models.latent._model import LatentVariableModel as LatentVariableModel
from jaxprob.models.latent._multinomial_autoencoder import dropout as dropout
from jaxprob.models.latent._multinomial_autoencoder import multinomial_autoencoder as multinomial_autoencoder
from jaxprob.models.latent._multinomial_autoencoder import (
    normalized_discounted_cumulative_gain_at as normalized_discounted_cumulative_gain_at,
)
from jaxprob.models.latent._multinomial_autoencoder import recall_at as recall_at
from jaxprob.models.latent._multinomial_autoencoder import recommend as recommend
from jaxprob.models.latent._vector_quantized_autoencoder import VectorQuantized as VectorQuantized
from jaxprob.models.latent._vector_quantized_autoencoder import (
    vector_quantized_autoencoder as vector_quantized_autoencoder,
)
