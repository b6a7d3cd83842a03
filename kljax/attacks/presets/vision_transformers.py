"""APRIL: attacks on vision transformers by their position embedding's gradient.

Reference: Lu et al., "APRIL: Finding the Achilles' Heel on Privacy for Vision
Transformers" (CVPR 2022).
"""

import jax.numpy as jnp

from kljax.attacks.attack import Attack, Objective, Optimiser, Reconstruction
from kljax.attacks.closed_form.refusals import refuse_batches, refuse_search
from kljax.attacks.closed_form.transformer import (
    VIT,
    Transformer,
    check_transformer,
    find_patches,
    find_tokens,
    folded,
    read,
)
from kljax.attacks.labels import settled_labels
from kljax.attacks.objectives import cosine, squared_l2
from kljax.attacks.optimisers import lbfgs, refuse_optimiser
from kljax.attacks.presets.plain import gradient_matching
from kljax.attacks.priors import refuse_feature, total_variation
from kljax.attacks.secrets import secret_of
from kljax.attacks.setting import Setting
from kljax.attacks.starts import normal
from kljax.attacks.tensors import public_of
from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Array, Gate, Params, PyTree, Rng
from kljax.threat import View

# Shorter directions of A are rounding: a client computes them in float32.
CUTOFF = 5e-6


def april(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int | None = None,
    restarts: int | None = None,
    transformer: Transformer = VIT,
    cutoff: float = CUTOFF,
) -> Attack:
    """Makes APRIL: tokens, solved for from the gradient of the position embedding.

    A closed form has no optimiser, no steps and no restarts.

    A lock on the patch embedding does not touch the equations of the tokens. To get
    from tokens to pixels takes its gates, from the secret strategy.

    Args:
      setting: of the attack.
      optimiser: must be None.
      steps, restarts: of no effect.
      transformer: paths in the network.
      cutoff: singular values of the position embedding's gradient below this share of
        the largest count as zero.

    Returns:
      The attack. Its loss is the mean of its ``info["residuals"]``, each []: of
      ``tokens``, the share of their equations' right side that is left, large if
      something passes by the attention; of ``patch``, the share of the embedded
      patches that no pixels explain, large for wrong gates where patches have fewer
      pixels than channels. ``info["tokens"]`` [n, d] are the tokens.

    Raises:
      ValueError: for a network that is no vision transformer (see `Transformer`), an
        optimiser, a secret strategy that optimises, and for anything but the gradient
        of one example.

    Reference: the paper's closed form; JonasGeiping/breaching, april_analytic. Differs:
    small singular values are cut off, so that float32 will do; what is left open is
    taken from a grey image, where the code takes the solution of least norm.
    """
    del steps, restarts
    _check(setting, optimiser)
    check_transformer(setting, transformer, "april")
    secret, labels = secret_of(setting), settled_labels(setting, "april")
    path = transformer.patch

    @one_at_a_time
    def invert(grads: Params, params: Params, gate: Gate):
        sent, known = read(grads, params, transformer)
        tokens, unsolved = find_tokens(sent, known, gate, cutoff)
        patches, unexplained = find_patches(tokens, known, gate)
        side = params[f"{path}/kernel"].shape[0]
        image = folded(patches, setting.task.image_shape, side)
        return image, tokens, unsolved, unexplained

    def attack(rng: Rng, view: View) -> Reconstruction:
        guess = secret.unknown.decode(*secret.unknown.start(rng, view))
        params = view.public.model
        ones = jnp.ones_like(params[f"{path}/bias"])
        gates = secret.gates(view.public.defence, guess)
        gate = gates.get(path, Gate(ones, jnp.zeros_like(ones)))
        image, tokens, *residuals = invert(view.grads.model, params, gate)
        loss = jnp.mean(jnp.stack(residuals))
        return Reconstruction(
            inputs=jnp.clip(image, 0, 1)[None],
            labels=labels(rng, view),
            loss=loss,
            finite=jnp.isfinite(loss) & jnp.all(jnp.isfinite(image)),
            info={
                "secret": guess,
                "tokens": tokens,
                "residuals": dict(zip(("tokens", "patch"), residuals, strict=True)),
            },
            numbers={"evaluations": jnp.asarray(0)},
        )

    return attack


def _check(setting: Setting, optimiser: Optimiser | None) -> None:
    refuse_feature(setting, "april")
    refuse_batches(setting, "april")
    refuse_optimiser(optimiser, "april")
    refuse_search(setting, "april", "april-optimisation")


ALPHA = 1.0


def april_objective(alpha: float = ALPHA, transformer: Transformer = VIT) -> Objective:
    """Adds `cosine` of the position embedding's gradients to `squared_l2` of all.

    Args:
      alpha: weight of the cosine.
      transformer: paths in the network.
    """
    squared, angle = squared_l2(), cosine()

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        own = (_positions(tree, transformer) for tree in (simulated, observed))
        return squared(simulated, observed) + alpha * angle(*own)

    return objective


def _positions(grads: PyTree, transformer: Transformer) -> Array:
    return public_of(grads).model[transformer.positions]


def april_optimisation(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    alpha: float = ALPHA,
    variation: float = 1e-2,
) -> Attack:
    """Makes the iterative variant, which takes any position embedding.

    `alpha`, the start, the prior (`variation`) and the guarded L-BFGS are kljax's own
    choices: those of `matching`, of which this differs in the objective alone.

    Raises:
      ValueError: for a network without a position embedding.
    """
    place = VIT.positions
    params, _ = setting.task.shapes()
    if place not in params:
        raise ValueError(
            f"april-optimisation compares the gradients of {place!r}, a position "
            "embedding, and this network (unlike 'vit') has none"
        )
    return gradient_matching(
        setting,
        optimiser=optimiser or lbfgs(),
        steps=steps,
        restarts=restarts,
        start=normal(0.5, 0.1),
        prior=total_variation(variation, relative=True),
        objective=april_objective(alpha),
    )
