"""Networks that denoisers start from: Flax Linen modules `(x, t, condition) -> output` of one example.

`jax.vmap` makes a batch, at the cost of a network written for batches. `apply` is what losses and samplers take.
"""

from jaxprob.models.diffusion.networks._diffusion_transformer import diffusion_transformer as diffusion_transformer
from jaxprob.models.diffusion.networks._network import Network as Network
from jaxprob.models.diffusion.networks._perceptron import perceptron as perceptron
from jaxprob.models.diffusion.networks._set_attention import Points as Points
from jaxprob.models.diffusion.networks._set_attention import set_attention as set_attention
from jaxprob.models.diffusion.networks._unet import unet as unet
