"""First-order descent: what optax has, as the driver wants it."""

import jax
import jax.numpy as jnp
import optax

from kljax.attacks.attack import Optimiser
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array, PyTree


def from_optax(
    transform: optax.GradientTransformation,
    *,
    labels: optax.GradientTransformation | None = None,
    secret: optax.GradientTransformation | None = None,
) -> Optimiser:
    """Makes an optimiser of an optax transform.

    Args:
      transform: for inputs, and for everything else that has none of its own.
      labels: for unknown labels.
      secret: for what a defence hides (private keys, gates), whose scale is another
        one.
    """
    if labels is not None or secret is not None:
        groups = {"inputs": transform, "labels": labels, "secret": secret}
        groups = {name: own or transform for name, own in groups.items()}
        transform = optax.partition(
            groups,
            lambda free: tuple(
                jax.tree.map(lambda _, name=name: name, part)
                for name, part in zip(groups, free, strict=True)
            ),
        )

    def step(free: PyTree, state: PyTree, value: Array, grads: PyTree):
        del value
        updates, state = transform.update(grads, state, free)
        return optax.apply_updates(free, updates), state

    return Optimiser(transform.init, step)


def adam(
    learning_rate: float = 0.1, secret_rate: float = 0.05, *, steps: int | None = None
) -> Optimiser:
    """Descends by Adam; unknown secrets have a rate of their own.

    Args:
      learning_rate: of images and labels.
      secret_rate: of unknown secrets.
      steps: of the whole descent, in which the rates fall to a tenth at `DECAYED_AT`;
        None for rates that do not fall.
    """
    return from_optax(
        optax.adam(falling(learning_rate, steps)),
        secret=optax.adam(falling(secret_rate, steps)),
    )


DECAYED_AT = (3 / 8, 5 / 8, 7 / 8)  # of the steps, each time to a tenth


def falling(rate: float | Array, steps: int | None) -> float | Array | optax.Schedule:
    """Makes a rate that falls to a tenth at `DECAYED_AT`; of None steps it stays."""
    if steps is None:
        return rate
    # Very short runs may round two of them to one step: both still happen.
    falls: dict[int, float] = {}
    for share in DECAYED_AT:
        at = int(share * steps)
        falls[at] = falls.get(at, 1.0) * 0.1
    return optax.piecewise_constant_schedule(rate, falls)


def sign_adam(
    learning_rate: float = 0.1, secret_rate: float = 0.05, *, steps: int | None = None
) -> Optimiser:
    """Descends by Adam on the sign of the images' gradient.

    Unknown labels and secrets see their gradient itself; secrets have a rate of their
    own. All rates fall at the same steps.

    Args:
      learning_rate: of images and labels.
      secret_rate: of unknown secrets: gates and private keys.
      steps: of the whole descent, in which the rates fall to a tenth at `DECAYED_AT`;
        None for rates that do not fall.

    Reference: Geiping et al., "Inverting Gradients" (NeurIPS 2020), its code,
    reconstruction_algorithms.py.
    """

    plain = optax.adam(falling(learning_rate, steps))
    return from_optax(
        optax.chain(optax.scale_by_sign(), plain),
        labels=plain,
        secret=optax.adam(falling(secret_rate, steps)),
    )


def cosine_adam(
    learning_rate: float = 0.1,
    secret_rate: float = 0.05,
    *,
    steps: int,
    warm_up: int = 50,
    betas: tuple[float, float] = (0.9, 0.999),
    noise: float = 0.0,
) -> Optimiser:
    """Descends by Adam with rates that warm up, and fall to 0 along a cosine.

    Args:
      learning_rate: highest one, of images and labels.
      secret_rate: the same of unknown secrets.
      steps: of the whole descent.
      warm_up: steps in which rates rise from 0, linearly; a quarter of them all in
        runs shorter than four times as long.
      betas: Adam's.
      noise: Langevin noise on the images' gradient, in units of their present rate.

    Reference: Yin et al., "GradInversion" (CVPR 2021), section 4.1, and what breaching
    makes of it.
    """
    warm_up = min(warm_up, steps // 4)

    def schedule(rate):
        return optax.warmup_cosine_decay_schedule(0.0, rate, warm_up, steps)

    plain = optax.adam(schedule(learning_rate), *betas)
    images = plain
    if noise:
        images = optax.chain(langevin(schedule(learning_rate), noise), plain)
    return from_optax(
        images, labels=plain, secret=optax.adam(schedule(secret_rate), *betas)
    )


def ramped_adam(
    learning_rate: float | Array = 0.1,
    secret_rate: float | Array = 0.05,
    *,
    steps: int,
    rise: float = 0.05,
    fall: float = 0.25,
) -> Optimiser:
    """Descends by Adam with rates that rise from 0, stay, and fall along a cosine.

    At a share t of the steps a rate is ``min(1, t / rise) (1 - cos(pi min(1, (1 - t) /
    fall))) / 2`` times its highest.

    Args:
      learning_rate: highest one, of images and labels.
      secret_rate: the same of unknown secrets.
      steps: of the whole descent.
      rise: share of the steps in which rates rise, in (0, 1].
      fall: share in which they fall; with more than ``1 - rise`` they never are at
        their highest.

    Reference: GGL (Li et al. 2022), its code, reconstructor.py, where the fall is .25;
    GIFD (Fang et al. 2023), its code, reconstruction_algorithms.py, where it is .75.
    """

    def schedule(rate):
        def at(count):
            share = count / steps
            falling = 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(1, (1 - share) / fall))
            return rate * falling * jnp.minimum(1, share / rise)

        return at

    return from_optax(
        optax.adam(schedule(learning_rate)), secret=optax.adam(schedule(secret_rate))
    )


def langevin(schedule: optax.Schedule, noise: float) -> optax.GradientTransformation:
    """Adds N(0, (noise rate)^2) to gradients.

    What is drawn follows from the first gradient: each victim and each restart has
    noise of its own, without a random key handed to the optimiser, and the same
    attack twice has the same.
    """

    def init(free: PyTree):
        del free
        return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.uint32)

    def update(grads: PyTree, state, free: PyTree | None = None):
        del free
        count, seed = state
        total = sum((jnp.sum(leaf) for leaf in jax.tree.leaves(grads)), jnp.zeros(()))
        bits = jax.lax.bitcast_convert_type(total.astype(jnp.float32), jnp.uint32)
        seed = jnp.where(count == 0, bits, seed)
        rng = jax.random.fold_in(jax.random.fold_in(fixed_rng("langevin"), seed), count)
        size = noise * schedule(count)
        leaves, tree = jax.tree.flatten(grads)
        noisy = [
            leaf + size * jax.random.normal(jax.random.fold_in(rng, i), leaf.shape)
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(tree, noisy), (count + 1, seed)

    return optax.GradientTransformation(init, update)


def rmsprop(
    learning_rate: float = 1e-4, secret_rate: float = 1e-3, momentum: float = 0.99
) -> Optimiser:
    """Descends by RMSprop as PyTorch has it; secrets have a rate of their own.

    Squares decay by 0.99 (Optax: 0.9), and epsilon is added outside their root
    (Optax: inside).

    Args:
      learning_rate: of images and labels.
      secret_rate: of unknown secrets: gates and private keys.
      momentum: of the normalised steps: at .99 a steady gradient moves by a hundred
        times the rate.

    Reference: torch.optim.RMSprop; GRNN (Ren, Deng, Xie 2022) for the values.
    """

    def torchs(rate):
        return optax.rmsprop(
            rate, decay=0.99, eps=1e-8, eps_in_sqrt=False, momentum=momentum
        )

    return from_optax(torchs(learning_rate), secret=torchs(secret_rate))
