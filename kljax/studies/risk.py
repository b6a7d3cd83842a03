"""Risk scores: what an upload gives away by its derivatives, without any attack.

All are taken at the true inputs x [d], so only who has them can compute them; no attack
is shown any. J [m, d] is the Jacobian of what an attacker compares (the gradient as far
as it is visible, after what the attacker assumes of the defence), at the true targets
and the true secret. It is never made: all that is asked for are products with it and
with its transpose (`kljax.core.lanczos`). D [m] is what was done to the upload besides:
observed minus simulated at the truth.

| column                  | what it is                                               |
|-------------------------|----------------------------------------------------------|
| risk_largest            | largest eigenvalue of J^T J                              |
| risk_least              | least eigenvalue of J^T J                                |
| risk_i2f_bound          | ``|J^T D| / (risk_largest sqrt d)``                      |
| risk_cramer_rao         | ``tr((J^T J / s^2 + 12 I)^-1) / d``                      |
| risk_curvature_largest  | largest eigenvalue of the attack's objective's Hessian   |
| risk_curvature_least    | least eigenvalue of it                                   |
| risk_upload_norm        | length of what is simulated at the truth                 |

*I2F*: a search that ends near the truth is off by ``(J^T J)^-1 J^T D`` to first order,
which is no shorter than ``|J^T D|`` over the largest eigenvalue. It is said here per
entry, as a root mean square. It is a bound of that approximation, of a descent that
matches by squares and has no prior; a prior, or a box, can do better.

*Cramér-Rao*: of the mean squared error of an entry, if D were independent Gaussian
noise of standard deviation s, and entries came from a Gaussian of the variance of
U(0, 1), which is 1/12: van Trees' inequality with J at the truth in place of its mean
over the prior. s is the root mean square of D, and no less than float32's rounding of
the simulated upload; so it is above 0 where no defence adds noise, too.

The Hessian of a squared distance is twice J^T J where D is 0.

References: Zhang et al., "Understanding Deep Gradient Leakage via Inversion Influence
Functions" (NeurIPS 2023, arXiv 2309.13016), equation 5, and its code's I2F_lb; Hong et
al., "Foreseeing Reconstruction Quality of Gradient Inversion" (arXiv 2312.12488), of
the Hessian's extreme eigenvalues, and of the norm as what they are held against; Van
Trees, "Detection, Estimation, and Modulation Theory" (1968), section 2.4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from kljax.attacks import Candidate, Setting, replay
from kljax.attacks.presets import Preset
from kljax.core.lanczos import eigenvalues, singular_values
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array
from kljax.threat import Update, View

# Of more entries the least eigenvalue is not reached, and only the largest is computed.
LIMIT = 512
STEPS = 64
# A share of the upload's length: what differs by less was not changed but rounded.
UNCHANGED = 1e-4
PRIOR_VARIANCE = 1 / 12


class Risk(NamedTuple):
    """Risk scores of one upload, columns without ``risk_``; NaN where there is none."""

    largest: Array  # []
    least: Array  # []
    i2f_bound: Array  # []
    cramer_rao: Array  # []
    curvature_largest: Array  # []
    curvature_least: Array  # []
    upload_norm: Array  # []


def risk_scores(setting: Setting, preset: Preset, update: Update, view: View) -> Risk:
    """Computes the risk scores of one victim.

    Args:
      setting: of the attack, with the victim's own defence.
      preset: the attack, whose objective's curvature is asked for.
      update: all that is true about the upload.
      view: what the attack was shown of it.

    Returns:
      The scores. All are NaN for inputs that are no floating point (tokens have no
      derivative); the least eigenvalues and the Cramér-Rao bound for more than `LIMIT`
      entries; the bound of I2F where nothing was done to the upload; the curvatures for
      an attack without an objective.
    """
    nothing = jnp.asarray(jnp.nan)
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(update.inputs)}
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        return Risk(*[nothing] * len(Risk._fields))
    if "lock_weights" not in setting.threat.about_secret.needs:
        # Who has no lock weights of its own cannot compare their gradients.
        view = view._replace(lock_grads=None)
    simulation = replay(setting, setting.defence.gates)
    point, unravel = ravel_pytree(update.inputs)

    def compared(inputs: Array) -> tuple[Array, Array]:
        candidate = Candidate(unravel(inputs), update.targets, update.private)
        return simulation(view, candidate)

    def simulated(inputs: Array) -> Array:
        return ravel_pytree(compared(inputs)[0])[0]

    here, forward = jax.linearize(simulated, point)
    transposed = jax.linear_transpose(forward, point)
    observed = ravel_pytree(compared(point)[1])[0]
    size, rng = point.size, fixed_rng("risk")
    whole = size <= LIMIT
    steps = size if whole else STEPS
    values = singular_values(
        forward, lambda vector: transposed(vector)[0], size, rng, steps=steps
    )
    largest = values[0] ** 2
    change = observed - here
    changed = jnp.linalg.norm(change) > UNCHANGED * jnp.linalg.norm(here)
    bound = jnp.linalg.norm(transposed(change)[0]) / (largest * jnp.sqrt(size))
    curvatures = nothing, nothing
    if preset.objective is not None:
        curvatures = _curvatures(setting, preset, compared, point, steps)
    return Risk(
        largest,
        values[-1] ** 2 if whole else nothing,
        jnp.where(changed, bound, jnp.nan),
        cramer_rao(values, change, here) if whole else nothing,
        curvatures[1],
        curvatures[0] if whole else nothing,
        jnp.linalg.norm(here),
    )


def cramer_rao(values: Array, change: Array, upload: Array) -> Array:
    """Computes the bound [] of the mean squared error of an entry, see the module.

    Args:
      values: [d] singular values of J, all of them.
      change: [m] D.
      upload: [m] that was simulated at the truth.
    """
    rounding = jnp.finfo(upload.dtype).eps / 2 * _root_mean_square(upload)
    deviation = jnp.maximum(_root_mean_square(change), rounding)
    # Not the square of the quotient, which overflows float32 sooner.
    ratios = values / jnp.maximum(deviation, jnp.finfo(upload.dtype).tiny)
    return jnp.mean(1 / (ratios**2 + 1 / PRIOR_VARIANCE))


def _root_mean_square(values: Array) -> Array:
    return jnp.sqrt(jnp.mean(values**2))


def _curvatures(setting, preset, compared, point, steps) -> tuple[Array, Array]:
    """Gives the least and the largest eigenvalue of the objective's Hessian."""
    objective = preset.objective(setting)
    slope = jax.grad(lambda inputs: objective(*compared(inputs)))
    _, product = jax.linearize(slope, point)
    found = eigenvalues(product, point.size, fixed_rng("curvature"), steps=steps)
    return found[0], found[-1]
