"""Named entities in sentences: a bidirectional LSTM over words and their letters, with and without a random field.

Every word has an embedding and the last states of an LSTM that reads its letters both ways; an LSTM that reads the
sentence both ways makes scores of the tags. They are either normalised word by word, or together with the steps from
one tag to the next (a linear-chain conditional random field), in which an I- tag only follows its own kind. Sentences
are made up: entities of two kinds, whose words are often those of anything else.

    python examples/tagging.py

Source: Lample et al. (2016), "Neural architectures for named entity recognition".
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprob.inference import crf
from jaxprob.models.state_space import LinearChain

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LENGTH, WORDS, LETTERS, LONGEST = 20, 60, 12, 5


def legal():
    """Steps (5, 5) from one tag to the next that there are, and tags (5,) to begin with."""
    inside = np.array([tag.startswith("I-") for tag in TAGS])
    same = np.array([[before[1:] == after[1:] for after in TAGS] for before in TAGS])
    return ~inside[None, :] | same, ~inside


def sentences(seed, count, noise=0.2):
    """Words (count, LENGTH), their letters (count, LENGTH, LONGEST) and tags (count, LENGTH)."""
    rng = np.random.default_rng(seed)
    spelling = np.random.default_rng(0).integers(1, LETTERS, (WORDS, LONGEST))
    spelling[:, -1] = np.arange(WORDS) * 5 // WORDS + 1  # the last letter says what a word is mostly used for
    tags = np.zeros((count, LENGTH), np.int32)
    for row in tags:
        at = rng.integers(0, 3)
        while at < LENGTH:
            kind, length = rng.integers(0, 2), rng.integers(1, 5)
            row[at : at + length] = 2 + 2 * kind
            row[at] = 1 + 2 * kind
            at += length + rng.integers(0, 4)
    usual = tags * (WORDS // 5) + rng.integers(0, WORDS // 5, tags.shape)
    words = np.where(rng.random(tags.shape) < noise, rng.integers(0, WORDS, tags.shape), usual)
    return words.astype(np.int32), spelling[words].astype(np.int32), tags


class Tagger(nn.Module):
    """Scores (LENGTH, 5) of the tags of one sentence, and those of steps and beginnings."""

    hidden: int = 16
    context: bool = True  # whether a word's scores depend on the words around it

    @nn.compact
    def __call__(self, words, letters):
        def both_ways():
            return nn.Bidirectional(
                nn.RNN(nn.OptimizedLSTMCell(self.hidden)), nn.RNN(nn.OptimizedLSTMCell(self.hidden))
            )

        read = both_ways()(nn.Embed(LETTERS + 1, 8)(letters))
        half = self.hidden
        spelled = jnp.concatenate([read[:, -1, :half], read[:, 0, half:]], -1)
        seen = jnp.concatenate([nn.Embed(WORDS, 16)(words), spelled], -1)
        scores = nn.Dense(len(TAGS))(both_ways()(seen) if self.context else nn.relu(nn.Dense(32)(seen)))
        zeros = nn.initializers.zeros_init()
        steps = self.param("steps", zeros, (len(TAGS), len(TAGS)))
        return scores, steps, self.param("first", zeros, (len(TAGS),))


def field(net, params, words, letters):
    """The conditional random field of one sentence."""
    scores, steps, first = net.apply(params, words, letters)
    possible, beginnings = legal()
    return LinearChain(scores, jnp.where(possible, steps, -jnp.inf), jnp.where(beginnings, first, -jnp.inf))


def field_loss(net, params, words, letters, tags):
    return -crf.log_prob(field(net, params, words, letters), tags)


def softmax_loss(net, params, words, letters, tags):
    scores = net.apply(params, words, letters)[0]
    return optax.softmax_cross_entropy_with_integer_labels(scores, tags).sum()


def train(loss, net, data, key, steps=300, batch=32):
    """Parameters of a net that make `loss` small."""
    data = jax.tree.map(jnp.asarray, data)
    start_key, key = jax.random.split(key)
    params = net.init(start_key, data[0][0], data[1][0])
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def mean_loss(params, rows):
        return jnp.mean(jax.vmap(functools.partial(loss, net, params))(*rows))

    @jax.jit
    def step(params, state, key):
        rows = jax.random.choice(key, data[0].shape[0], (batch,))
        slope = jax.grad(mean_loss)(params, jax.tree.map(lambda x: x[rows], data))
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies counts with rates
            change, state = optimizer.update(slope, state)
        return optax.apply_updates(params, change), state

    state = optimizer.init(params)
    for each in jax.random.split(key, steps):
        params, state = step(params, state, each)
    return params


def spans(tags):
    """Entities {(first, last, kind)} of a sequence of tags; an I- after another kind begins one."""
    found, begin = set(), None
    for at, tag in enumerate([*(TAGS[i] for i in tags), "O"]):
        goes_on = tag.startswith("I-") and begin is not None and TAGS[tags[at - 1]][1:] == tag[1:]
        if begin is not None and not goes_on:
            found.add((begin, at - 1, TAGS[tags[begin]][2:]))
            begin = None
        if tag != "O" and not goes_on:
            begin = at
    return found


def score(predicted, truth):
    """F1 of entities that are found as they are, and the number of steps that are not legal."""
    possible, beginnings = legal()
    pairs = [(spans(one), spans(other)) for one, other in zip(predicted, truth, strict=True)]
    right = sum(len(one & other) for one, other in pairs)
    f1 = 2 * right / sum(len(one) + len(other) for one, other in pairs)
    illegal = np.sum(~possible[predicted[:, :-1], predicted[:, 1:]]) + np.sum(~beginnings[predicted[:, 0]])
    return f1, int(illegal)


def compare(context, seed=0, steps=300):
    """(F1, illegal steps) on new sentences, with the random field and without."""
    train_data, (words, letters, truth) = sentences(seed, 500), sentences(seed + 1000, 500)
    net = Tagger(context=context)
    params = train(field_loss, net, train_data, jax.random.key(seed), steps)
    decode = jax.jit(jax.vmap(lambda w, c: crf.viterbi(field(net, params, w, c)).states))
    with_field = score(np.asarray(decode(words, letters)), truth)
    plain = train(softmax_loss, net, train_data, jax.random.key(seed), steps)
    argmax = jax.jit(jax.vmap(lambda w, c: jnp.argmax(net.apply(plain, w, c)[0], -1)))
    return with_field, score(np.asarray(argmax(words, letters)), truth)


def main():
    for context in (False, True):
        for seed in range(3):
            (f1, illegal), (plain, plain_illegal) = compare(context, seed)
            print(
                f"{'words in their sentence' if context else 'words alone':24} F1 {100 * f1:.1f} with the random field "
                f"({illegal} illegal steps), {100 * plain:.1f} tag by tag ({plain_illegal} illegal steps)"
            )


if __name__ == "__main__":
    main()
