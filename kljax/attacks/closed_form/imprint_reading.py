"""Imprint: a batch, read off the gradient of a layer that the server has put there.

Row i of the layer is active for images whose measurement is above its bound. The
gradient of a row is the sum over the images that it is active for, so the difference
of two neighbours is due to the images of one bin; where that is one image, its dense
layer gives it away, as it would for a batch of one.
"""

import jax.numpy as jnp

from kljax.attacks.attack import Attack, Reconstruction
from kljax.attacks.insertions import BIAS, KERNEL
from kljax.attacks.labels import settled_labels
from kljax.attacks.optimisers import refuse_optimiser
from kljax.attacks.priors import refuse_feature
from kljax.attacks.setting import Setting
from kljax.core.types import Array, Rng
from kljax.threat import View

# Of the longest bias gradient: what is left of a bin that holds no image is rounding.
FAINT = 1e-6
MISSING = 0.5  # grey: what stands for an image that was not found


def binned(kernel_grad: Array, bias_grad: Array) -> tuple[Array, Array]:
    """Takes the rows' gradients apart into those of their bins.

    Args:
      kernel_grad: [d, n], of rows with ascending bounds.
      bias_grad: [n].

    Returns:
      The same of each bin alone, [n, d] and [n]: bin i is from bound i to bound i + 1,
      and the last one has no upper bound. (The reference reads the first n - 1.)
    """
    kernels, biases = kernel_grad.T, bias_grad
    return (
        kernels - jnp.concatenate([kernels[1:], jnp.zeros_like(kernels[:1])]),
        biases - jnp.concatenate([biases[1:], jnp.zeros_like(biases[:1])]),
    )


def expected_singletons(examples: int, bins: int) -> float:
    """Computes how many of B examples are alone in theirs of n bins of equal mass."""
    return examples * (1 - 1 / bins) ** (examples - 1)


def imprint(
    setting: Setting,
    optimiser=None,
    *,
    steps=None,
    restarts=None,
    rank: str = "bias",
    one_shot: bool = False,
) -> Attack:
    """Makes the attack that reads images off a layer which the server has put in front.

    A closed form has no optimiser, no steps and no restarts.

    The server does not see which bins hold one image. It takes every bin with a
    gradient, the B largest of them, and believes that each is an image: several images
    of one bin come out as one mixture of them, and are lost. What is missing of B is
    grey. Of an update of several steps the images are read approximately, as long as
    the layer hardly moves: its bounds are then the same in every step.

    Args:
      setting: of the attack; its network has an imprint (`kljax.attacks.insertions`).
      optimiser: must be None.
      steps, restarts: without meaning here.
      rank: what makes a bin large: its ``bias`` gradient, or the mean of its
        ``weight`` gradient, which is better under noise.
      one_shot: whether only the first bin is read: see ``target`` of the insertion.

    Returns:
      The attack. Its loss is the share of the weight gradient of all bins, in squared
      norm, that the images do not explain. Its ``numbers``
      have ``bins_read``, how many of the B images are no grey filling (mixtures are
      among them, and under noise anything), its ``info`` has ``bins`` [B], the bin of
      each, -1 for a filling. Labels are those of the batch; which image has which is
      not known. A gradient that says nothing is not ``finite``.

    Raises:
      ValueError: for an optimiser, an honest server, a network without an imprint,
        another secret strategy than unit, and an unknown `rank`.

    Reference: Fowl et al., "Robbing the Fed: Directly Obtaining Private Data in
    Federated Learning with Modified Models" (ICLR 2022); code JonasGeiping/breaching.
    """
    refuse_optimiser(optimiser, "imprint")
    del steps, restarts
    _check(setting)
    if rank not in ("bias", "weight"):
        raise ValueError(f"rank must be bias or weight, got {rank!r}")
    examples = setting.threat.knowledge.examples
    labels = settled_labels(setting, "imprint")

    def attack(rng: Rng, view: View) -> Reconstruction:
        kernel, bias = view.grads.model[KERNEL], view.grads.model[BIAS]
        kernels, biases = binned(kernel, bias)
        if one_shot:
            kernels, biases = kernels[:1], biases[:1]
        # NaN is no hit.
        hit = jnp.abs(biases) > FAINT * jnp.max(jnp.abs(bias))
        size = jnp.abs(biases if rank == "bias" else jnp.mean(kernels, axis=1))
        order = jnp.argsort(jnp.where(hit, -size, jnp.inf))[:examples]
        x = kernels[order] / jnp.where(hit, biases, 1.0)[order][:, None]
        found = hit[order] & jnp.all(jnp.isfinite(x), axis=1)
        x = jnp.where(found[:, None], jnp.clip(x, 0, 1), MISSING)
        # The same again, as gradients; fillings explain nothing.
        explained = x * jnp.where(found, biases[order], 0.0)[:, None]
        left = jnp.sum((kernels.at[order].add(-explained)) ** 2)
        loss = left / jnp.sum(kernels**2)
        more = examples - len(order)  # a batch may be larger than there are bins
        images = jnp.pad(x, ((0, more), (0, 0)), constant_values=MISSING)
        return Reconstruction(
            inputs=images.reshape(examples, *setting.task.image_shape),
            labels=labels(rng, view),
            loss=loss,
            finite=jnp.isfinite(loss) & jnp.any(found),
            info={
                "bins": jnp.pad(
                    jnp.where(found, order, -1), (0, more), constant_values=-1
                ),
            },
            numbers={"bins_read": jnp.sum(found), "evaluations": jnp.asarray(0)},
        )

    return attack


def _check(setting: Setting) -> None:
    refuse_feature(setting, "imprint")
    knows, strategy = setting.threat.knowledge, setting.threat.strategy
    if knows.server != "malicious":
        raise ValueError(
            "imprint reads a layer that the server has put into the network: it needs "
            f"server='malicious', the threat model says server={knows.server!r}"
        )
    if strategy.secret != "unit":
        raise ValueError(
            "imprint reads what is in front of any lock and replays none, the threat "
            f"model says secret={strategy.secret!r}: write 'unit'"
        )
    params, _ = setting.task.shapes()
    size = jnp.size(jnp.zeros(setting.task.image_shape))
    if KERNEL not in params or params[KERNEL].shape[0] != size:
        raise ValueError(
            f"the network has no imprint ({KERNEL!r}) for images of shape "
            f"{setting.task.image_shape}: put one in front of it "
            "(kljax.attacks.insertions)"
        )
