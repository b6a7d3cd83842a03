"""What a client has at hand when it releases a gradient, or a whole change."""

from collections.abc import Callable
from typing import Any, NamedTuple

from kljax.core.types import Array, Private, Public, PyTree, Stats


class Context(NamedTuple):
    """What a client has at hand when it releases a gradient, or a change."""

    public: Public  # that the gradient is of; those received, for a change
    stats: Stats
    inputs: PyTree  # [B, H, W, C] of images; of the step, or all steps for a change
    targets: Array  # [B, Kc]
    # (images, targets) -> the client's own gradient of them, before its release:
    # something with `public`, a `Public`, and `logits` [B, Kc]. None where a whole
    # change is released.
    gradient: Callable[[Array, Array], Any] | None = None
    private: Private = Private()  # what the client hides; before its step
    # public -> [], the client's loss on these inputs if those were the parameters, with
    # norms in eval mode and without dropout. None where a whole change is released.
    loss: Callable[[Public], Array] | None = None
    # (name, inputs) -> [B, ...], a value of the network at `public`, named as taps are
    # ("path" of a layer's output, "path:input" of its input), under the client's gates,
    # modes and draws of this gradient. None where a whole change is released.
    features: Callable[[str, PyTree], Array] | None = None
    step: Array | int = 0  # [] of local training, from 0 in every round


def drawn_secret(context: Context, kind: type, how: str) -> Any:
    """Gives what a client drew for its step, or an attacker takes it to have drawn.

    Args:
      context: of a step, or of a candidate.
      kind: class of what is drawn, which is all of `Private.secret`.
      how: what it decides, for the message, such as ``how mixup mixes``.

    Raises:
      ValueError: where an attacker's strategy takes nothing for it.
    """
    found = context.private.secret
    if not isinstance(found, kind):
        raise ValueError(
            f"nothing says {how} a candidate: drop '/simulate', or take a strategy "
            "that does, such as 'random_draws'"
        )
    return found


# Parts of a context that the release of a whole change does without.
OF_GRADIENTS = ("gradient", "loss", "features")


def part_of(context: Context, name: str, defence: str) -> Callable[..., Any]:
    """Gives one of `OF_GRADIENTS`.

    Args:
      context: of a release.
      name: of the part.
      defence: that cannot do without it, for the message.

    Raises:
      ValueError: where a whole change is released.
    """
    found = getattr(context, name)
    if found is None:
        raise ValueError(
            f"{defence} needs Context.{name}, of the gradient of one step, and there "
            "is none here: let it act on each gradient, without '@update'"
        )
    return found
