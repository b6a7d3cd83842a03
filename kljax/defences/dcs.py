"""DCS: a batch that is trained on together with what conceals it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Private, Public, PyTree, Rng
from kljax.defences.defence import Context, Defence
from kljax.defences.public_images import load_public
from kljax.defences.substitution import check_from_zero, check_moved, cosine
from kljax.threat import CONCEALING_STRATEGIES, HiddenParts

NOISE = "noise"  # in place of a data set of proxies
DROPS = (3 / 8, 5 / 8, 7 / 8)  # of the steps, after which the rate is a tenth
# Of the official projection: least multiple of the true gradient, and ridge.
MARGIN, RIDGE = 0.5, 1e-3


class Concealing(NamedTuple):
    """What a client draws to conceal a batch, for each of its B examples.

    Attributes:
      proxy: [B, ...] uint32 of random keys, from which an example's proxy is drawn; or
        the concealing images themselves, [B, H, W, C] floating, as an attacker takes
        them to be.
      targets: [B, Kc] of the proxies, of an attacker; None to draw them, too.
    """

    proxy: Array
    targets: Array | None = None


def conceal_samples(
    steps: float | Array = 50.0,
    rate: float | Array = 0.1,
    weight_x: float | Array = 0.01,
    weight_z: float | Array = 0.01,
    weight_y: float | Array = 0.7,
    threshold: float | Array = 300.0,
    *,
    proxy: str = NOISE,
) -> Defence:
    """Trains on a batch x together with images x' that conceal it (DCS).

    x' starts at ``weight_y proxy + (1 - weight_y) x`` and is moved by Adam, not
    clipped, towards less of ``1 - cos(g(x'), g(x)) + exp(-weight_x |x' - x|) + weight_z
    |f(x') - f(x)| / |f(x)|``, with proxies' labels in g(x'), f the outputs, lengths of
    each example, and their means. It stops early where the mean distance passes
    `threshold`. Then the loss is ``(weight_y CE(x', proxy's label) + (1 - weight_y)
    CE(x', label) + CE(x, label)) / 3``, and where its gradient g' and the true one g
    have an inner product below 0, ``g' + v g`` is sent, with ``v = max(MARGIN,
    -<g', g> / (|g|^2 + RIDGE))``: the quadratic programme of one constraint.

    A proxy is an image of a public data set, or uniform noise, and has a label that is
    drawn at random. Cost: `steps` second-order gradients in each step of a client.

    Strategies of an attacker: it looks for B images behind the gradient as if it were
    theirs (``trained_on``); it optimises concealing images and their labels along with
    the batch (``regress_concealing``); it makes concealing images of its own proxies in
    all `steps`, without a derivative through them (``random_draws``), or of the
    client's (``known``). Nobody simulates the projection, which is rare.

    Args:
      steps: of Adam, rounded down; 1,000 in the official code.
      rate: of Adam, a tenth after 3/8, 5/8 and 7/8 of the steps.
      weight_x, weight_z: see above; the paper has .1 for the second on CelebA.
      weight_y: in [0, 1], of the proxy.
      threshold: of the distance: 300 for MNIST and 500 for CIFAR-10 and CelebA in the
        paper, of images with standard deviations of 1. Images here are in [0, 1].
      proxy: ``noise``, or name of a data set (`kljax.data.load`), part of the program.

    Raises:
      ValueError: for steps or weights below 0, a weight_y outside [0, 1], a rate or
        threshold that is not positive, and infinite ones; where inputs are no real
        numbers, or targets no classes; and what loading a data set raises.

    Reference: Wu et al., "Concealing Sensitive Samples against Gradient Leakage in
    Federated Learning" (AAAI 2024, arXiv 2209.05724), code JingWu321/DCS-2,
    dlg/defenses/dcs.py. Differs from it: every image of a batch is sensitive; proxies
    are not images of the same data set; and its epsilon, a constant of the objective
    that moves nothing, is left out.
    """
    check_from_zero(steps=steps, weight_x=weight_x, weight_z=weight_z)
    if is_concrete(weight_y) and not 0 <= weight_y <= 1:
        raise ValueError(f"weight_y must be in [0, 1], got {weight_y!r}")
    for name, value in {"rate": rate, "threshold": threshold}.items():
        if is_concrete(value) and not 0 < value < math.inf:
            raise ValueError(f"{name} must be finite and > 0, got {value!r}")
    count = jnp.asarray(steps).astype(jnp.int32)
    # The official loss is divided by 3, or by 2 where one of its terms is 0; the mean
    # over 2B rows is divided by 2.
    lone = (jnp.asarray(weight_y) == 0) | (jnp.asarray(weight_y) == 1)
    factor = jnp.where(lone, 1.0, 2 / 3)

    def draw_private(rng: Rng, private: Private, examples: int) -> Private:
        keys = jax.random.key_data(jax.random.split(rng, examples))
        return private._replace(secret=Concealing(keys))

    def conceal(context: Context) -> tuple[Array, Array]:
        """Makes the concealing images, and the labels of their proxies."""
        concealing, images = context.private.secret, context.inputs
        if not isinstance(concealing, Concealing):
            raise ValueError(
                "nothing says what dcs conceals a candidate by: drop '/simulate', or "
                "take a strategy that does, such as 'regress_concealing'"
            )
        if concealing.targets is not None:
            return concealing.proxy, concealing.targets
        shape, classes = images.shape[1:], context.targets.shape[1]

        def draw(data: Array) -> tuple[Array, Array]:
            rngs = jax.random.split(jax.random.wrap_key_data(data))
            label = jax.nn.one_hot(jax.random.randint(rngs[1], (), 0, classes), classes)
            if proxy == NOISE:
                return jax.random.uniform(rngs[0], shape, images.dtype), label
            public = jnp.asarray(load_public("dcs", proxy, shape), images.dtype)
            return jax.random.choice(rngs[0], public), label

        keys = concealing.proxy
        proxies, labels = jax.lax.map(draw, keys, batch_size=keys.shape[0])
        start = weight_y * proxies + (1 - weight_y) * images
        return moved(context, start.astype(images.dtype), labels), labels

    def moved(context: Context, start: Array, labels: Array) -> Array:
        images = context.inputs
        true = context.gradient(images, context.targets)
        scale = _lengths(true.logits)

        def cost(candidate: Array) -> tuple[Array, Array]:
            found = context.gradient(candidate, labels)
            distance = jnp.mean(_lengths(candidate - images))
            answers = jnp.mean(_lengths(found.logits - true.logits) / scale)
            value = 1 - cosine(found.public, true.public)
            value += jnp.exp(-weight_x * distance) + weight_z * answers
            return value, distance

        method = optax.scale_by_adam()

        def goes_on(carry) -> Array:
            number, _, _, distance = carry
            return (number < count) & (distance <= threshold)

        def step(carry):
            number, candidate, memory, _ = carry
            slope, distance = jax.grad(cost, has_aux=True)(candidate)
            move, memory = method.update(slope, memory)
            dropped = sum((number >= share * count).astype(int) for share in DROPS)
            now = rate * 0.1**dropped
            return (
                number + 1,
                (candidate - now * move).astype(candidate.dtype),
                memory,
                distance,
            )

        carry = (jnp.zeros((), int), start, method.init(start), jnp.zeros(()))
        return jax.lax.while_loop(goes_on, step, carry)[1]

    def enlarged(context: Context, altered: Array, labels: Array):
        targets = weight_y * labels + (1 - weight_y) * context.targets
        return (
            jnp.concatenate([context.inputs, altered.astype(context.inputs.dtype)]),
            jnp.concatenate([context.targets, targets]),
        )

    def check(context: Context) -> None:
        check_moved("concealed", context.inputs)
        if context.targets.ndim != 2:
            raise ValueError(
                "dcs mixes the labels of proxies into targets [B, Kc] of classes, and "
                f"these have shape {context.targets.shape}"
            )

    def inputs(rng: Rng, context: Context) -> tuple[Array, Array]:
        del rng
        check(context)
        return enlarged(context, *conceal(context))

    def simulate_inputs(rng: Rng, context: Context) -> tuple[Array, Array]:
        del rng
        check(context)
        secret = context.private.secret
        if isinstance(secret, Concealing) and secret.targets is not None:
            return enlarged(context, secret.proxy, secret.targets)
        # The loop has no derivative.
        still = context._replace(inputs=jax.lax.stop_gradient(context.inputs))
        still = still._replace(targets=jax.lax.stop_gradient(context.targets))
        return enlarged(context, *jax.lax.stop_gradient(conceal(still)))

    def scaled(grads: Public) -> Public:
        return jax.tree.map(lambda g: (factor * g).astype(g.dtype), grads)

    def release(rng: Rng, state: PyTree, grads: Public, context: Context):
        del rng
        half = context.inputs.shape[0] // 2
        true = context.gradient(context.inputs[:half], context.targets[:half]).public
        return project(scaled(grads), true), state

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del sent, earlier
        told = isinstance(getattr(private, "secret", None), Concealing)
        return scaled(grads) if told else grads

    return Defence(
        draw_private=draw_private,
        inputs=inputs,
        simulate_inputs=simulate_inputs,
        release=release,
        simulate=simulate,
        strategies=tuple(CONCEALING_STRATEGIES.values()),
        hidden_parts=HiddenParts("the draws of the proxies", None),
    )


def project(grads: Public, true: Public) -> Public:
    """Turns a gradient that points away from the true one, see `conceal_samples`."""
    product = optax.tree.vdot(grads, true)
    power = optax.tree.norm(true, squared=True)
    multiple = jnp.maximum(MARGIN, -product / (power + RIDGE))
    multiple = jnp.where(product < 0, multiple, 0.0)
    return jax.tree.map(lambda g, t: (g + multiple * t).astype(g.dtype), grads, true)


def _lengths(values: Array) -> Array:
    """Computes [B] the length of each row; the 1e-12 keeps derivatives finite."""
    flat = values.reshape(values.shape[0], -1)
    return jnp.sqrt(jnp.sum(flat**2, axis=1) + 1e-12)
