"""Victims without a defence, as several entries have them."""

from kljax import defences
from kljax.attacks import AssumedDefence, Setting, Task
from kljax.core.inputs import images_of
from kljax.core.targets import classes_of
from kljax.core.types import Public
from kljax.models import LeNet, from_nnx, losses, uniform
from kljax.threat import Strategy, View, least_knowledge

SHAPE, CLASSES = (32, 32, 3), 10


def lenet(shape=SHAPE, convolution="auto"):
    """Makes DLG's LeNet, with weights of U(-.5, .5).

    At LeNet's own, smaller weights distances of gradients are little but rounding.
    """
    return from_nnx(
        lambda rngs: LeNet(
            CLASSES, image_shape=shape, initialiser=uniform(0.5), rngs=rngs
        ),
        convolution=convolution,
    )


def undefended(
    model, inputs=None, *, classes=CLASSES, classifier="fc", threat=None, **options
):
    """Makes the setting of an attack on a network without a defence.

    Args:
      model: network.
      inputs: specification of its inputs; images of `SHAPE` if None.
      classes: how many.
      classifier: name of the last layer.
      threat: knowledge; the least, with labels given, if None.
      options: of `kljax.attacks.Setting`.
    """
    none = defences.none()
    inputs = inputs or images_of(SHAPE)
    task = Task(model, losses.cross_entropy, inputs, classes_of(classes), classifier)
    threat = threat or least_knowledge(Strategy(secret="unit", labels="given"))
    return Setting(task, threat, AssumedDefence(none.gates, none.simulate), **options)


def view_of(params, upload, targets, stats=None):
    """Makes what the server sees of one victim: parameters, targets and an upload."""
    stats = {} if stats is None else stats
    return View(Public(params), stats, upload, None, targets, None, None, None)
