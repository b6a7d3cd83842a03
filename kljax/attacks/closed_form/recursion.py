"""R-GAP: the image itself, by walking a network backwards from its classifier.

Layer by layer the input is solved for from the forward equations and from those of the
weight gradient (`layer_input`). How many of a layer's inputs they determine says
beforehand what a network will give away.

Reference: Zhu and Blaschko, "R-GAP: Recursive Gradient Attack on Privacy" (ICLR 2021);
code JunyiZhu-AI/R-GAP. Differs: equations are weighted by their precision; pixels are
believed to be in [0, 1], where the code takes the solution of least norm; the label is
not given; and where the first equation has two solutions, which the code avoids by
choosing the label, the one whose image stays in [0, 1] is taken.
"""

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Attack, Reconstruction
from kljax.attacks.closed_form.layer_input import (
    float64,
    to_float64,
)
from kljax.attacks.closed_form.refusals import refuse_batches, refuse_no_chain
from kljax.attacks.closed_form.walk import (
    Place,
    below_classifier,
    down,
    place_at,
    steps_of,
    walk_down,
)
from kljax.attacks.labels import or_unknown, settled_labels
from kljax.attacks.optimisers import refuse_optimiser
from kljax.attacks.priors import refuse_feature
from kljax.attacks.setting import Setting
from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Array, Params, Rng
from kljax.models.losses import cross_entropy
from kljax.threat import View

LENGTHS = (1e-6, 1.5)  # of the derivative by the logits: at most sqrt(2)
GRID, NEWTON = 2000, 30


def rgap(setting: Setting, optimiser=None, *, steps=None, restarts=None) -> Attack:
    """Makes R-GAP: what each layer was fed, solved for from the last one backwards.

    A closed form has no optimiser, no steps and no restarts.

    A classifier with a bias gives its input away. Without one, the length of the
    derivative by the logits is found first, under cross-entropy: the one number with
    which the logits of the input that follows give that derivative. With two classes
    this is the paper's ``u l'(u) = <g, W>``, which may have two solutions; their
    images differ in contrast alone.

    Returns:
      The attack. Its loss is the share of the layers' weight gradients, in squared
      norm, that is left unexplained, the mean over the layers. Its ``info`` has
      ``residuals`` and ``ranks``, each {layer: []}: that share, and how much of the
      layer's input the equations determine. Under the label rule ``auto`` the label is
      the class whose logit's derivative is lowest, which needs no features of one sign.

    Raises:
      ValueError: for an optimiser, a network that is no chain of layers, one with norm
        layers or with biases everywhere but in the classifier, one without a bias in
        the classifier under another loss than cross-entropy, gates, a secret strategy,
        labels that are optimised, and for anything but one step on one example.
    """
    refuse_optimiser(optimiser, "rgap")
    del steps, restarts
    _check(setting)
    strategy = setting.threat.strategy
    labels = settled_labels(setting, "rgap")
    by_signal = strategy.labels == "recovered" and setting.attacker.label_rule == "auto"
    *body, top = steps_of(setting)
    params, _ = setting.task.shapes()
    biased = [step.layer.path for step in body]
    biased = [path for path in biased if f"{path}/bias" in params]
    with_bias = f"{top.layer.path}/bias" in params
    if biased and not with_bias:
        raise ValueError(
            f"rgap needs a bias in the classifier {top.layer.path!r}, or none "
            f"anywhere; there are some in {', '.join(biased)}"
        )
    if not with_bias and setting.task.loss is not cross_entropy:
        raise ValueError(
            f"rgap finds the length of what comes back through a classifier without "
            f"bias under cross-entropy alone; {top.layer.path!r} has none, and the "
            "loss is another"
        )

    def misfit(signal, kernel, weights, *trees) -> Array:
        place = _below(kernel, weights, signal)
        return down(body[-1], place, *trees)[1].residual

    @one_at_a_time
    def walk(grads: Params, params: Params):
        with float64(True):
            grads, params = to_float64((grads, params))
            kernel = grads[f"{top.layer.path}/kernel"]
            weights = params[f"{top.layer.path}/kernel"]
            if with_bias:
                signals = grads[f"{top.layer.path}/bias"][None]
                place = below_classifier(top, grads, params)
            else:
                candidates = _signals(kernel, weights)  # [2 signs, 2 lengths, Kc]
                fit = jax.lax.map(
                    lambda signal: misfit(signal, kernel, weights, grads, params),
                    candidates[:, 0],
                )
                signals = _first(candidates, fit)
                place = _below(kernel, weights, signals[0])
            place, (residuals, ranks) = walk_down(body, place, grads, params)
            # All other equations are indifferent to the length: without biases, a
            # signal twice as long just makes an image of half the contrast.
            lengths = jnp.linalg.norm(signals, axis=1)
            images = place.value.mean * _like(lengths[0] / lengths, body[0].shape)
            found = (
                _first(images, _implausibility(images)),
                signals[0],
                residuals,
                ranks,
            )
            return jax.tree.map(lambda x: x.astype(jnp.float32), found)

    def label(signal: Array) -> Array:
        # Under cross-entropy only the true class has a negative derivative.
        return or_unknown(jnp.argmin(signal)[None].astype(jnp.int32), signal)

    def attack(rng: Rng, view: View) -> Reconstruction:
        x, signal, residuals, ranks = walk(view.grads.model, view.public.model)
        images = x.reshape(1, *setting.task.image_shape)
        loss = jnp.mean(jnp.stack([*residuals.values()]))
        return Reconstruction(
            inputs=images,
            labels=label(signal) if by_signal else labels(rng, view),
            loss=loss,
            finite=jnp.isfinite(loss) & jnp.all(jnp.isfinite(images)),
            info={"residuals": residuals, "ranks": ranks},
            numbers={"evaluations": jnp.asarray(0)},
        )

    return attack


def _check(setting: Setting) -> None:
    refuse_feature(setting, "rgap")
    strategy = setting.threat.strategy
    refuse_no_chain(setting, "rgap")
    refuse_batches(setting, "rgap")
    if strategy.secret != "unit":
        raise ValueError(
            f"rgap knows no lock, the threat model says secret={strategy.secret!r}; "
            "against one there is the attack 'peeling'"
        )
    if setting.defence.draw_gates is not None:
        raise ValueError(
            "rgap knows no gates, and this defence has some: they scale and shift what "
            "its equations take as plain"
        )
    _, stats = setting.task.shapes()
    if stats:
        raise ValueError(
            "rgap cannot walk through norm layers, whose statistics hide contrast and "
            "brightness, and this network has some"
        )


def _below(kernel_grad: Array, weights: Array, signal: Array) -> Place:
    """Finds the classifier's input from the derivative [Kc] by the logits."""
    value = kernel_grad @ signal / jnp.sum(signal**2)
    return place_at(value, weights, signal)


def _signals(kernel_grad: Array, weights: Array) -> Array:
    """Lists derivatives by the logits that a classifier without bias allows.

    Its weight gradient is ``h d^T``: the direction of d is plain, its length and sign
    are not. They are such that d is softmax minus target at the logits ``W^T h``.

    Returns:
      [2, 2, Kc]: of each sign, the two lengths that fit best; twice the best where no
      second one fits.
    """
    direction = jnp.linalg.svd(kernel_grad, full_matrices=False)[2][0]
    logits = weights.T @ (kernel_grad @ direction)  # times the length
    grid = jnp.geomspace(*LENGTHS, GRID, dtype=direction.dtype)
    ratio = grid[1] / grid[0]

    def of_sign(sign: float) -> Array:
        def misfit(length: Array) -> Array:
            # Relative to the length: a signal of length 0 must not fit everything.
            signal = sign * direction
            target = (signal == jnp.min(signal)).astype(signal.dtype)
            softmax = jax.nn.softmax(sign * logits / length)
            return (softmax - target) / length - signal

        def refined(start: Array) -> tuple[Array, Array]:
            def newton(_, length: Array) -> Array:
                error, slope = jax.jvp(misfit, (length,), (jnp.ones_like(length),))
                move = jnp.sum(error * slope) / jnp.sum(slope**2)
                return jnp.clip(length - move, start / ratio, start * ratio)

            length = jax.lax.fori_loop(0, NEWTON, newton, start)
            return length, jnp.sum(misfit(length) ** 2)

        errors = jnp.sum(jax.lax.map(misfit, grid) ** 2, axis=1)
        around = jnp.concatenate([errors[:1], errors, errors[-1:]])
        lowest = (errors <= around[:-2]) & (errors <= around[2:])
        errors = jnp.where(lowest, errors, jnp.inf)
        start = _first(grid, errors)
        best, least = refined(start)
        other, more = refined(_first(grid, jnp.where(grid == start, jnp.inf, errors)))
        fits = more <= 1e-8 + 100 * least
        return sign * jnp.stack([best, jnp.where(fits, other, best)])

    lengths = jnp.stack([of_sign(1.0), of_sign(-1.0)])
    return lengths[..., None] * direction[None, None]


def _implausibility(images: Array) -> Array:
    """Ranks images [N, ...]: outside [0, 1] is worst, then the fainter the worse."""
    axes = tuple(range(1, images.ndim))
    outside = jnp.mean((images - jnp.clip(images, 0, 1)) ** 2, axis=axes)
    power = jnp.mean(jnp.clip(images, 0, 1) ** 2, axis=axes)
    return jnp.where(outside > 1e-4, 2 + outside, 1 - power)


def _like(values: Array, shape: tuple[int, ...]) -> Array:
    return values.reshape(-1, *[1] * len(shape))


def _first(choices: Array, losses: Array) -> Array:
    """Takes the choice of the lowest loss, without the integers that x64 widens."""
    # The first of equals, by a loss that grows along the list.
    number = jnp.cumsum(jnp.ones_like(losses))
    lowest = losses == jnp.min(losses)
    chosen = lowest & (number == jnp.min(jnp.where(lowest, number, jnp.inf)))
    # Nothing is equal to a NaN: then nothing is chosen.
    weights = jnp.where(jnp.any(chosen), chosen.astype(choices.dtype), jnp.nan)
    return jnp.tensordot(weights, choices, axes=1)
