"""The classifier's gradient, as all rules of label recovery want it."""

from typing import NamedTuple

from kljax.attacks.setting import Setting
from kljax.attacks.simulation import move_by_gradient
from kljax.core.types import Array
from kljax.threat import View


class ClassifierGrads(NamedTuple):
    """Gradient of the last dense layer, mean over the examples (and the steps).

    Letters: F features, Kc classes.
    """

    kernel: Array  # [F, Kc]
    bias: Array | None  # [Kc]; None for a layer without one


def classifier_grads(setting: Setting, view: View) -> ClassifierGrads:
    """Finds the classifier's gradient in what was uploaded.

    A gradient is taken as it is. An update is turned into the mean gradient of its
    steps: what the optimiser would have moved without any gradient (weight decay) is
    subtracted, and the rest divided by what it would have moved by a gradient of 1 in
    every step. For plain gradient descent that is minus learning rate times steps; for
    momentum, which remembers earlier steps, it is more, and they weigh more in the
    mean. Exact for methods that are affine in the gradient, and started anew; for
    others the sign is right and the size is not.

    Without a protocol an update is only turned round.
    """
    sent = view.grads.model
    names = {
        part: f"{setting.task.classifier}/{part}"
        for part in ("kernel", "bias")
        if f"{setting.task.classifier}/{part}" in sent
    }
    if setting.sees_gradient:
        return _of({part: sent[name] for part, name in names.items()})
    if setting.protocol is None:
        return _of({part: -sent[name] for part, name in names.items()})
    still, pushed = (
        move_by_gradient(setting.protocol, (view.public, ()), gradient)[0].model
        for gradient in (0.0, 1.0)
    )
    return _of(
        {
            part: (sent[name] - still[name]) / (pushed[name] - still[name])
            for part, name in names.items()
        }
    )


def _of(parts: dict[str, Array]) -> ClassifierGrads:
    return ClassifierGrads(parts["kernel"], parts.get("bias"))
