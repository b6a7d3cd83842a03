"""What a user has outside the package: a network, data, an attack, a defence.

Named on the command line as ``outside_package:FUNCTION``. The attacks here answer
with what they were shown, so that tests can look past the boundary.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from kljax import data, defences
from kljax.attacks import Optimiser, Reconstruction, squared_l2
from kljax.attacks.presets import Preset
from kljax.core.types import Private

HALF = 0.5  # not callable, not anything that can be named


class Tiny(nnx.Module):
    """A network with layer names of its own and no argument of kljax's."""

    def __init__(self, num_classes, *, image_shape, rngs):
        height, width, channels = image_shape
        self.body = nnx.Linear(height * width * channels, 5, rngs=rngs)
        self.head = nnx.Linear(5, num_classes, rngs=rngs)

    def __call__(self, images):
        x = jax.nn.sigmoid(self.body(images.reshape(images.shape[0], -1)))
        return self.head(x)


class Dropping(Tiny):
    """The same, half of whose hidden units are dropped at random while training."""

    def __init__(self, num_classes, *, image_shape, rngs):
        super().__init__(num_classes, image_shape=image_shape, rngs=rngs)
        self.dropout = nnx.Dropout(HALF, rngs=rngs)

    def __call__(self, images):
        x = jax.nn.sigmoid(self.body(images.reshape(images.shape[0], -1)))
        return self.head(self.dropout(x))


class Normed(Tiny):
    """The same with a norm in front of the hidden units."""

    def __init__(self, num_classes, *, image_shape, rngs):
        super().__init__(num_classes, image_shape=image_shape, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.body(images.reshape(images.shape[0], -1)))
        return self.head(jax.nn.sigmoid(x))


def too_few_logits(num_classes, **options):
    return Tiny(1, **options)


def too_many_logits(num_classes, **options):
    return Tiny(num_classes + 7, **options)


def linen_network(num_classes, *, image_shape, rngs):
    return linen.Dense(num_classes)


class Trained(Tiny):
    """Has a body that was trained before, a norm, and a head that is drawn."""

    BODY = np.linspace(-1, 1, 192 * 5, dtype=np.float32).reshape(192, 5)

    def __init__(self, num_classes, *, image_shape, rngs):
        super().__init__(num_classes, image_shape=image_shape, rngs=rngs)
        self.body.kernel[...] = jnp.asarray(self.BODY)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.stretch = nnx.Param(rngs.params.normal((5,)))


def ramps(shape, count=6):
    """Gives `count` images without any structure in common, two classes."""
    values = np.random.default_rng(5).random((count, *shape), np.float32)
    return data.Dataset(
        "ramps", values, np.arange(count) % 2, 2, groups=None, licence="none needed"
    )


def _of_channels(channels):
    def made(shape):
        return ramps((*shape[:2], channels))

    return made


ramps_of_2_channels, ramps_of_4_channels, ramps_of_13_channels = map(
    _of_channels, (2, 4, 13)
)


def _with(change, shape):
    """Gives `ramps` with their arrays changed before they are checked."""
    images = np.random.default_rng(5).random((6, *shape), np.float32)
    labels = np.arange(6) % 2
    change(images, labels)
    return data.Dataset("broken", images, labels, 2, groups=None, licence="none")


def nan_image(shape):
    def change(images, labels):
        images[4, 0, 0, 0] = np.nan

    return _with(change, shape)


def constant_image(shape):
    def change(images, labels):
        images[3] = 0.25

    return _with(change, shape)


def label_out_of_range(shape):
    def change(images, labels):
        labels[2] = 7

    return _with(change, shape)


class _LateNan(data.LazyColumn):
    """Images read one by one, of which one turns out to be broken."""

    def __init__(self, images):
        self._images, self.shape = images, images.shape

    def __getitem__(self, indices):
        return self._images[indices]


def lazy_nan_image(shape):
    """Gives data whose broken image shows only when it is read."""
    images = np.random.default_rng(5).random((6, *shape), np.float32)
    images[4] = np.nan
    labels = np.arange(6) % 2
    return data.Dataset("late", _LateNan(images), labels, 2, groups=None, licence="-")


class _Endless(data.LazyColumn):
    """Zeros without end, of which nobody can hold all."""

    def __init__(self, shape):
        self.shape = shape

    def __getitem__(self, indices):
        return np.zeros((len(indices), *self.shape[1:]), np.float32)


def endless(shape):
    """Gives more images than any memory holds."""
    count = 2**40
    labels = _Endless((count,))
    return data.Dataset(
        "endless", _Endless((count, *shape)), labels, 2, groups=None, licence="-"
    )


def small_images(shape):
    """Ignores the shape asked for."""
    return ramps((6, 6, shape[-1]))


def no_dataset(shape):
    return np.zeros((3, *shape))


def reveal(setting, optimiser=None, *, steps, restarts):
    """Answers with a grey image and, in ``info``, all that was in the view."""

    def attack(rng, view):
        return Reconstruction(
            inputs=jnp.full(
                (setting.threat.knowledge.examples, *setting.task.image_shape), 0.5
            ),
            labels=jnp.zeros(setting.threat.knowledge.examples, jnp.int32),
            loss=jnp.zeros(()),
            finite=jnp.array(True),
            info={"view": view, "draw": jax.random.normal(rng)},
        )

    return attack


# With an objective, so that the diagnostics at the truth are computed too.
measured_reveal = Preset(reveal, "given", lambda setting: squared_l2())


def exploding():
    """Makes an optimiser that loses its way at the second step."""

    def step(free, state, value, grads):
        return jax.tree.map(lambda x: jnp.where(state, x, x * jnp.nan), free), state

    return Optimiser(lambda free: jnp.array(False), step)


def half_gradient():
    """Makes a defence that sends half of the gradient, which nobody assumes."""

    def release(rng, state, grads, context):
        return jax.tree.map(lambda g: HALF * g, grads), state

    return defences.none()._replace(release=release)


def halved_examples():
    """Halves each example's gradient, and says nothing of how to simulate that."""
    return defences.Defence(
        per_example=lambda rng, grads: jax.tree.map(lambda g: g / 2, grads)
    )


def fading():
    """Makes a defence that sends ever less, and remembers how often it has sent."""

    def release(rng, count, grads, context):
        return jax.tree.map(lambda g: g / (1.0 + count), grads), count + 1.0

    return defences.none()._replace(
        release=release, init_state=lambda grads: jnp.zeros(())
    )


def blended(size, mix=0.5):
    """Makes a defence with two numbers and a state: it blends in what it sent before.

    It sends ``size * gradient + mix * what it sent before``, at first nothing.
    """

    def blend(before, grads):
        return jax.tree.map(lambda b, g: size * g + mix * b, before, grads)

    def release(rng, state, grads, context):
        sent = blend(state, grads)
        return sent, sent

    def nothing(grads):
        return jax.tree.map(jnp.zeros_like, grads)

    def simulate(grads, sent, earlier, private):
        first = earlier is None or not len(jax.tree.leaves(earlier)[0])
        before = nothing(grads) if first else jax.tree.map(lambda x: x[-1], earlier)
        return blend(before, grads)

    return defences.Defence(release=release, init_state=nothing, simulate=simulate)


def sees_what_is_sent():
    """Makes a defence that is simulated by what is seen of it, and not without."""

    def simulate(grads, sent, earlier, private):
        return jax.tree.map(lambda g, s: g * jnp.abs(s), grads, sent)

    return half_gradient()._replace(simulate=simulate)


def marked(scale):
    """Makes a defence that draws a part of its own by its number."""
    return defences.Defence(
        init=lambda rng, params: ({"mark": scale * jnp.ones(2)}, Private())
    )


def looking(size):
    """Makes a defence that looks at its number, which a compiled study cannot."""
    return blended(size) if size > 0 else defences.none()


def gates_alone():
    """Makes a defence that changes nothing of what is sent."""
    return defences.none()._replace(gates=lambda public, private: {})


def no_defence():
    return "none"


def breaking_attack(setting, optimiser=None, *, steps, restarts):
    """An attack that is built and breaks when it is traced."""

    def attack(rng, view):
        raise RuntimeError("broke on purpose")

    return attack


def _uniform(shape, low, high):
    """Makes noise; its name does not tell it from others."""
    images = np.random.default_rng(0).uniform(low, high, (8, *shape))
    labels = np.arange(8) % 2
    return data.Dataset(
        "noise", images.astype(np.float32), labels, 2, groups=None, licence="none"
    )


def bright(shape):
    return _uniform(shape, 0.8, 1.0)


def dark(shape):
    return _uniform(shape, 0.0, 0.2)


class DroppingBehindNorms(nnx.Module):
    """A network with two norms for a lock, and a dropout behind each."""

    def __init__(self, num_classes, *, image_shape, rngs, lockable=()):
        height, width, channels = image_shape
        self.body = nnx.Linear(height * width * channels, 5, rngs=rngs)
        self.norm1 = nnx.BatchNorm(5, use_scale=False, use_bias=False, rngs=rngs)
        self.middle = nnx.Linear(5, 4, rngs=rngs)
        self.norm2 = nnx.BatchNorm(4, use_scale=False, use_bias=False, rngs=rngs)
        self.dropout1 = nnx.Dropout(0.3, rngs=rngs)
        self.dropout2 = nnx.Dropout(0.3, rngs=rngs)
        self.fc = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, images):
        x = self.norm1(self.body(images.reshape(images.shape[0], -1)))
        x = self.middle(self.dropout1(nnx.sigmoid(x)))
        return self.fc(self.dropout2(nnx.sigmoid(self.norm2(x))))
