"""A transformer of sentences that compiles in seconds, and sentences of one's own."""

from kljax import data
from kljax.models import Transformer


def small(num_classes, *, image_shape, vocabulary=4096, padded=False, rngs, **options):
    return Transformer(
        num_classes,
        image_shape=image_shape,
        vocabulary=vocabulary,
        padded=padded,
        width=16,
        depth=1,
        heads=2,
        rngs=rngs,
        **options,
    )


def language_model(num_classes, *, image_shape, vocabulary=4096, rngs):
    sizes = {"image_shape": image_shape, "vocabulary": vocabulary}
    return small(num_classes, causal=True, per_token=True, rngs=rngs, **sizes)


def unpadded(num_classes, *, image_shape, vocabulary=4096, rngs):
    return small(num_classes, image_shape=image_shape, vocabulary=vocabulary, rngs=rngs)


def corpus(shape):
    del shape
    return data.load("text", length=4)
