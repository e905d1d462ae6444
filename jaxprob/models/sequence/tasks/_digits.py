"""Images of digits as sequences of pixels."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.models.sequence.tasks._example import Example


def digits(*, permuted: bool = False, test: float = 0.2, seed: int = 0) -> tuple[Example, Example]:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn, one pixel after the other.

    Args:
      permuted: whether pixels come in another order, one for all images; otherwise row by row.
      test: fraction of the images that is held back.
      seed: of the order of images and pixels.

    Returns:
      training and test `Example`s with a leading axis: inputs (image, 64, 1) from 0 to 1, targets (image, 64), the
      label at all times, and a mask (image, 64) that is true at the last time.

    Raises:
      ImportError: without scikit-learn (the `examples` extra).
      ValueError: if `test` is not between 0 and 1.

    Source: Alpaydin and Kaynak (1998), "Optical recognition of handwritten digits", UCI; as sequences Le, Jaitly and
    Hinton (2015), "A simple way to initialize recurrent networks of rectified linear units".
    """
    if not 0 < test < 1:
        raise core.bad_value("tasks.digits", "test", test, "a fraction between 0 and 1")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        todo = "Install it with pip install 'jaxprob[examples]'"
        line = core.message("tasks.digits", "scikit-learn", "missing", "an installed scikit-learn", todo)
        raise ImportError(line) from None
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    pixels = rng.permutation(64) if permuted else np.arange(64)
    inputs = (images[order][:, pixels, None] / 16).astype(np.float32)
    targets = np.repeat(labels[order, None], 64, axis=1).astype(np.int32)
    mask = np.broadcast_to(np.arange(64) == 63, targets.shape)
    held = round(test * len(images))
    parts = slice(held, None), slice(held)
    train, rest = (Example(*(jnp.asarray(x[part]) for x in (inputs, targets, mask))) for part in parts)
    return train, rest
