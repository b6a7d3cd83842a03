"""Labels: how the attacker comes to the labels of a gradient.

The classifier sits above every lock, so what its gradient gives away it gives away
with and without a defence of the lower layers.
"""

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Setting, Unknown
from kljax.threat import View
from kljax.typing import Array


def idlg(setting: Setting, view: View) -> Array:
    """Reads the label of one example off the sign of the classifier's gradient.

    Under cross-entropy with a one-hot target only the true class's bias gradient is
    negative. Without a bias the weight gradient's column sums serve; that needs
    features that are nowhere negative. An update goes downhill, so there it is the
    only class whose bias has grown, whatever the number of steps on that example;
    strong weight decay, or momentum from before, can drown that.

    Returns:
      labels [1] int32.

    Reference: iDLG (Zhao, Mopuri, Bilen 2020, arXiv 2001.02610), section 3.
    """
    grads = view.grads.model
    score = grads.get(
        f"{setting.classifier}/bias",
        jnp.sum(grads[f"{setting.classifier}/kernel"], axis=0),
    )
    if setting.threat.knowledge.upload == "update":
        score = -score
    return jnp.argmin(score)[None].astype(jnp.int32)


def given(setting: Setting) -> Unknown:
    """Takes the labels from the view, where the threat model grants them."""
    del setting
    return Unknown(
        start=lambda rng, view: ((), view.targets),
        decode=lambda free, fixed: fixed,
    )


def recovered(setting: Setting) -> Unknown:
    """Recovers the labels in closed form first, and keeps them.

    Raises:
      ValueError: for several examples per upload, which `idlg` cannot tell apart.
    """
    examples = setting.threat.knowledge.examples
    if examples != 1:
        raise ValueError(
            f"labels='recovered' by idlg needs examples=1, got examples={examples}; "
            "several take labels 'given' or 'joint'"
        )

    def start(rng, view: View):
        del rng
        return (), jax.nn.one_hot(idlg(setting, view), setting.num_classes)

    return Unknown(start, decode=lambda free, fixed: fixed)


def joint(setting: Setting) -> Unknown:
    """Optimises label logits together with the image, started from N(0, 1).

    Reference: DLG (Zhu et al. 2019), algorithm 1.
    """
    shape = (setting.threat.knowledge.examples, setting.num_classes)
    return Unknown(
        start=lambda rng, view: (jax.random.normal(rng, shape), ()),
        decode=lambda free, fixed: jax.nn.softmax(free),
    )


LABELS = {"given": given, "joint": joint, "recovered": recovered}
