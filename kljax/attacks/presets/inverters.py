"""Learning to Invert: a network that has learned which images give which upload.

It is trained on uploads that the attacker simulates: of public examples, under the
defence in force, with draws of their own of all that a client draws (private key, lock
weights, noise). The attacker does no more than a client does, and needs no derivative
of the defence; so quantisation, pruning and signs are no obstacle of principle.

What the network is fed are the entries of the upload that can be read, less their mean
over simulated uploads and in units of their tensor's standard deviation, hashed into
fewer numbers (`kljax.attacks.hashing`).

Letters: B examples, d entries of an upload, k hashed ones, n = H W C.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kljax.attacks.attack import Attack, Reconstruction
from kljax.attacks.drivers import descend_on_batches
from kljax.attacks.generators import draw_dense
from kljax.attacks.hashing import feature_hashing
from kljax.attacks.labels import settled_labels
from kljax.attacks.priors import refuse_feature
from kljax.attacks.secrets import SECRETS, unit
from kljax.attacks.setting import Setting
from kljax.attacks.unordered_loss import unordered_error
from kljax.core.randomness import derive_rng
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View

NAME = "learned"
PURPOSES = ("standardising", "weights", "training", "validation")
TRAINING, VALIDATION = "training", "validation"  # parts of the public examples
MEASURED = 256  # uploads that say where entries lie, and as many of each validation
POINTS = 20  # at which the error is measured
DROP_AFTER, DROP = 0.75, 0.1  # of the steps; factor on the learning rate then
MISSING = 0.5  # grey: what stands for an image of which nothing is said

# (rng, part of the public examples) -> (what is seen of an upload, its images)
DrawUpload = Callable[[Rng, str], tuple[View, PyTree]]


class Inverter(NamedTuple):
    """What the attacker has learned.

    Attributes:
      centre: [d] mean of each entry over simulated uploads.
      scale: [d] one over the standard deviation of the entry's tensor; 0 for a tensor
        that is the same in all uploads.
      layers: (kernel, bias) of each dense layer.
      steps: [P] after how many steps the errors were measured.
      training, validation: [P] errors then, see `unordered_error`.
      best: [] int32, the point whose weights are kept: that of the least validation.
    """

    centre: Array
    scale: Array
    layers: tuple[tuple[Array, Array], ...]
    steps: Array
    training: Array
    validation: Array
    best: Array


def read_entries(view: View) -> Array:
    """Reads the entries [d] of an upload; one that is hidden is 0 in all uploads."""
    grads = view.grads
    if view.visible is not None:
        grads = jax.tree.map(
            lambda seen, x: jnp.where(seen, x, 0.0), view.visible, grads
        )
    leaves = [jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(grads)]
    return jnp.concatenate(leaves)


def run_layers(layers: tuple[tuple[Array, Array], ...], values: Array) -> Array:
    """Runs the dense network: ReLUs, and a sigmoid in the end, as images are in [0, 1].

    Args:
      layers: see `Inverter`.
      values: [k].
    """
    for kernel, bias in layers[:-1]:
        values = jax.nn.relu(values @ kernel + bias)
    kernel, bias = layers[-1]
    return jax.nn.sigmoid(values @ kernel + bias)


def draw_layers(rng: Rng, widths: tuple[int, ...]) -> tuple[tuple[Array, Array], ...]:
    """Draws dense layers as PyTorch does: U(-1/sqrt(inputs), 1/sqrt(inputs))."""
    sizes = enumerate(itertools.pairwise(widths))
    drawn = (
        draw_dense(jax.random.fold_in(rng, i), (ins, outs), ins)
        for i, (ins, outs) in sizes
    )
    return tuple((layer["kernel"], layer["bias"]) for layer in drawn)


def learn_inverter(
    setting: Setting,
    draw: DrawUpload,
    rng: Rng,
    *,
    steps: int,
    restarts: int,
    width: int = 3000,
    hashed: int = 16384,
    uploads: int = 256,
    learning_rate: float = 1e-4,
    shuffled: bool = False,
) -> Inverter:
    """Trains the inverter of an arm, on uploads that are simulated as it goes.

    Args:
      setting: of the arm.
      draw: simulates an upload of public examples, with a client of its own.
      rng: of the training.
      steps, restarts, width, hashed, uploads, learning_rate, shuffled: see `learned`.

    Returns:
      The weights at the point of the least error on public examples that were held out.
    """
    del restarts
    shape, examples = setting.task.image_shape, setting.threat.knowledge.examples
    outputs = examples * math.prod(shape)

    def rng_of(purpose: str) -> Rng:
        return derive_rng(rng, PURPOSES, purpose)

    def simulate(rng: Rng, part: str, count: int) -> tuple[Array, Array]:
        """Simulates uploads: entries [count, d], images [count, B, H, W, C]."""

        def one(rng: Rng) -> tuple[Array, Array]:
            view, images = draw(rng, part)
            return read_entries(view), images

        rngs = jax.random.split(rng, count)
        entries, images = jax.lax.map(one, rngs, batch_size=min(uploads, count))
        # The images of another upload, independent of this one.
        return entries, jnp.roll(images, 1, axis=0) if shuffled else images

    view = jax.eval_shape(lambda rng: draw(rng, TRAINING)[0], rng)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(view.grads)]
    entries, _ = simulate(rng_of("standardising"), TRAINING, MEASURED)
    centre, scale = standardise(entries, sizes)
    hashing = feature_hashing(sum(sizes), hashed)

    def error(layers, entries: Array, images: Array) -> Array:
        def one(entries: Array, images: Array) -> Array:
            found = run_layers(layers, hashing((entries - centre) * scale))
            return unordered_error(found.reshape(images.shape), images)

        return jnp.mean(jax.vmap(one)(entries, images))

    rate = optax.piecewise_constant_schedule(
        learning_rate, {int(DROP_AFTER * steps): DROP}
    )

    def draw_batch(number: Array) -> tuple[Array, Array]:
        own = jax.random.fold_in(rng_of("training"), number)
        return simulate(own, TRAINING, uploads)

    buckets = min(hashed, sum(sizes))
    found = descend_on_batches(
        error,
        draw_layers(rng_of("weights"), (buckets, width, width, outputs)),
        optax.adam(rate),
        draw_batch,
        simulate(rng_of("validation"), VALIDATION, MEASURED),
        steps=steps,
        points=POINTS,
    )
    return Inverter(centre, scale, *found)


def standardise(entries: Array, sizes: list[int]) -> tuple[Array, Array]:
    """Finds centre and scale [d] of entries [count, d]; see `Inverter`.

    Args:
      entries: of simulated uploads.
      sizes: how many of the entries each tensor has, in order.
    """
    centre = jnp.mean(entries, axis=0)
    powers, first = [], 0
    for size in sizes:
        own = slice(first, first + size)
        power = jnp.mean((entries[:, own] - centre[own][None]) ** 2)
        powers.append(jnp.broadcast_to(power, (size,)))
        first += size
    power = jnp.concatenate(powers)
    return centre, jnp.where(power > 0, jax.lax.rsqrt(jnp.maximum(power, 1e-30)), 0.0)


def learned(
    setting: Setting,
    optimiser=None,
    *,
    steps: int = 39_000,
    restarts: int = 1,
    width: int = 3000,
    hashed: int = 16384,
    uploads: int = 256,
    learning_rate: float = 1e-4,
    shuffled: bool = False,
) -> Attack:
    """Makes Learning to Invert; the defaults are its code's, for LeNet and one example.

    Its 200 epochs of 50,000 images are 39,000 steps, and for B = 4 its width is 10,000.
    What is learned of an arm is `kljax.attacks.Attacker.learned`.

    Args:
      setting: of the attack.
      optimiser: must be None; Adam trains the inverter.
      steps: of that training; the last quarter at a tenth of the rate.
      restarts: must be 1.
      width: of the two hidden layers.
      hashed: numbers k that an upload is hashed into; it is not where it has no more.
        The code hashes those of a ResNet.
      uploads: that are simulated anew for each step.
      learning_rate: of Adam.
      shuffled: whether each simulated upload has the images of another one: a control,
        which can learn what images look like and nothing of uploads.

    Returns:
      The attack. Its loss is the inverter's error on public examples that were held out
      of its training, the same for all victims; if that never was finite, so is no
      reconstruction. Its ``numbers`` are the errors that say
      whether the training converged. Labels are those of the batch; which image has
      which is not known.

    Raises:
      ValueError: for an optimiser, restarts, numbers out of range, and a strategy about
        what is hidden: it replays nothing.

    Reference: Wu et al., "Learning To Invert: Simple Adaptive Attacks for Gradient
    Inversion in Federated Learning" (UAI 2023), and its code, wrh14/Learning_to_Invert,
    main_learn_dlg.py. Differs: uploads are simulated anew for every step; defences act
    on the mean over a batch, and not on each example before it; entries are
    standardised; the weights that are kept are chosen by public examples, and not by
    those under attack.
    """
    _check(setting, optimiser, steps, restarts)
    for name, value in {"width": width, "hashed": hashed, "uploads": uploads}.items():
        if value < 1:
            raise ValueError(f"{NAME}: {name} must be 1 or more, got {value}")
    if shuffled and uploads < 2:
        raise ValueError(f"{NAME}: shuffled=True needs uploads of 2 or more, got 1")
    if not learning_rate > 0:
        raise ValueError(f"{NAME}: learning_rate must be above 0, got {learning_rate}")
    shape, examples = setting.task.image_shape, setting.threat.knowledge.examples
    labels = settled_labels(setting, NAME)

    def attack(rng: Rng, view: View) -> Reconstruction:
        inverter = setting.attacker.learned
        if inverter is None:
            raise ValueError(
                f"{NAME} needs what its attacker has learned: Attacker(learned=...), "
                "by kljax.attacks.presets.learn_inverter"
            )
        entries = read_entries(view)
        hashing = feature_hashing(len(entries), hashed)
        standard = (entries - inverter.centre) * inverter.scale
        images = run_layers(inverter.layers, hashing(standard))
        loss = inverter.validation[inverter.best]
        finite = jnp.all(jnp.isfinite(entries)) & jnp.isfinite(loss)
        return Reconstruction(
            inputs=jnp.where(finite, images, MISSING).reshape(examples, *shape),
            labels=labels(rng, view),
            loss=loss,
            finite=finite,
            info={
                "learning_steps": inverter.steps,
                "training_errors": inverter.training,
                "validation_errors": inverter.validation,
            },
            numbers={
                "evaluations": jnp.asarray(0),
                "training_error": inverter.training[inverter.best],
                "validation_error": inverter.validation[inverter.best],
            },
        )

    return attack


def _check(setting: Setting, optimiser, steps: int, restarts: int) -> None:
    if optimiser is not None:
        raise ValueError(f"{NAME} trains an inverter by Adam: leave optimiser out")
    refuse_feature(setting, NAME)
    strategy = setting.threat.about_secret
    if SECRETS.get(strategy.name) is not unit:
        raise ValueError(
            f"{NAME} replays nothing and guesses no secret, the threat model says "
            f"secret={strategy.name!r}: write 'unit'"
        )
    if steps < 1 or restarts != 1:
        raise ValueError(
            f"{NAME} takes 1 step at least and 1 restart, got steps={steps}, "
            f"restarts={restarts}"
        )
