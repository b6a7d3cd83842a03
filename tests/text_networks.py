"""A transformer of sentences that compiles in seconds."""

from kljax.models import Transformer


def small(num_classes, *, image_shape, vocabulary=4096, rngs):
    return Transformer(
        num_classes,
        image_shape=image_shape,
        vocabulary=vocabulary,
        width=16,
        depth=1,
        heads=2,
        rngs=rngs,
    )
