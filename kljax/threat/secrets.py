"""Secrets: what an attacker may do about what a defence hides.

A defence brings its strategies along (`kljax.defences.Defence.strategies`): what each
has to know, which is checked before anything runs, and what it does. The key-lock's
eight are the first of them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class HiddenParts(NamedTuple):
    """What reports call what a defence hides, such as ``the private key``.

    Attributes:
      secret: its ``Private.secret``, known to who has ``private_key="known"``; None
        for a defence that has none.
      trainable: its ``Private.trainable``, see ``lock_weights``; None for none.
    """

    secret: str | None = "what the defence hides and never trains"
    trainable: str | None = "what the defence hides and trains"


@dataclasses.dataclass(frozen=True, eq=False)
class SecretStrategy:
    """What an attacker does about what a defence hides; it equals itself alone.

    Attributes:
      name: in arms, after the slash.
      does: a sentence for reports; ``{noun}`` in it stands for what is attacked, such
        as ``image``.
      needs: what it cannot do without: field of `Knowledge` -> the values that will
        do. ``private_key="known"`` grants the defence's ``Private.secret``, and
        ``lock_weights="known"`` its ``Private.trainable``.
      unknown: ``Setting -> kljax.attacks.Unknown``: the part of a candidate that
        stands for what is hidden. Its value goes to the gates and the ``simulate`` of
        the defence in place of the client's `kljax.core.types.Private`. None for a
        strategy that `kljax.attacks.SECRETS` has.
      omits: ``name -> bool``: which tensors of the upload it leaves out of the
        comparison, by their names (`kljax.core.trees.named`), such as
        ``model/fc/kernel``. None for none.
      replays_inputs: whether it replaces its candidates as the defence replaces inputs
        (`kljax.defences.Defence.simulate_inputs`), by what it takes for the client's
        `Private`.
    """

    name: str
    does: str
    needs: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    unknown: Callable[[Any], Any] | None = None
    omits: Callable[[str], bool] | None = None
    replays_inputs: bool = False


def by_name(strategies: Iterable[SecretStrategy]) -> Mapping[str, SecretStrategy]:
    """Puts strategies into a table that nobody can change."""
    return MappingProxyType({strategy.name: strategy for strategy in strategies})


_UNIT = SecretStrategy("unit", "It replays the network without a lock's gates.")
# About a defence that hides nothing of its own.
NOTHING_HIDDEN = by_name([_UNIT])

_LOCK_WEIGHTS = {"lock_weights": ("known", "initial")}
# What is read off in closed form is read off what one client has sent.
_ONE_CLIENT = {"upload": ("gradient", "update")}
KEYLOCK_STRATEGIES = by_name(
    [
        _UNIT,
        SecretStrategy(
            "known",
            "It replays the network with the true gates, which the private key and the "
            "lock weights give it.",
            {"private_key": ("known",), "lock_weights": ("known",)},
        ),
        SecretStrategy(
            "extract",
            "It computes the private key from the shared gradients of the lock "
            "weights.",
            {"lock_grads": ("shared",), **_LOCK_WEIGHTS, **_ONE_CLIENT},
        ),
        SecretStrategy(
            "fixed_random",
            "It guesses a private key at random, and believes its guess.",
            _LOCK_WEIGHTS,
        ),
        SecretStrategy(
            "fixed_mean",
            "It puts the mean private key in place of the true one, and believes it.",
            _LOCK_WEIGHTS,
        ),
        SecretStrategy(
            "regress_private_key",
            "It optimises a private key along with the {noun}.",
            _LOCK_WEIGHTS,
        ),
        SecretStrategy(
            "regress_gates",
            "It optimises two numbers per gated channel along with the {noun}, and "
            "needs neither private key nor lock weights.",
        ),
        SecretStrategy(
            "peel",
            "It solves for what the layers above the lock were fed, reads the gates "
            "off what came out of the lock, and believes them.",
            _ONE_CLIENT,
        ),
    ]
)

# About the noise of a variational bottleneck (`kljax.defences.dense_bottleneck`).
_ONE_STEP = {"upload": ("gradient",)}
BOTTLENECK_STRATEGIES = by_name(
    [
        SecretStrategy(
            "mean",
            "It replays the network with the bottleneck's mean in place of a sample.",
        ),
        SecretStrategy(
            "known",
            "It replays the network with the true noise.",
            {"private_key": ("known",), **_ONE_STEP},
        ),
        SecretStrategy(
            "random_noise",
            "It draws noise of its own, once for each restart, and believes it.",
            _ONE_STEP,
        ),
        SecretStrategy(
            "regress_noise",
            "It optimises the noise along with the {noun}.",
            _ONE_STEP,
        ),
        SecretStrategy(
            "read_noise",
            "It solves for what the bottleneck's dense layers were fed, reads the "
            "noise off that, and believes it.",
            _ONE_STEP,
        ),
        SecretStrategy(
            "omit",
            "It replays the network with the bottleneck's mean, and leaves the "
            "gradients of the bottleneck and of the layers behind it out of the "
            "comparison.",
        ),
    ]
)

# About what a client draws to replace its inputs.
_TRAINED_ON = SecretStrategy(
    "trained_on",
    "It replays the network with what it looks for as it is, and looks for what was "
    "trained on in place of the {noun}.",
)
_KNOWN_DRAWS = SecretStrategy(
    "known",
    "It replaces the {noun} that it looks for by the client's own draws.",
    {"private_key": ("known",), **_ONE_STEP},
    replays_inputs=True,
)
_RANDOM_DRAWS = SecretStrategy(
    "random_draws",
    "It replaces the {noun} that it looks for by draws of its own, once for each "
    "restart, and believes them.",
    _ONE_STEP,
    replays_inputs=True,
)
MIXING_STRATEGIES = by_name(
    [
        _TRAINED_ON,
        _KNOWN_DRAWS,
        _RANDOM_DRAWS,
        SecretStrategy(
            "regress_mixing",
            "It optimises the weights of a mixture, and the signs of its mask, along "
            "with the {noun}.",
            _ONE_STEP,
            replays_inputs=True,
        ),
    ]
)

CONCEALING_STRATEGIES = by_name(
    [
        _TRAINED_ON,
        _KNOWN_DRAWS,
        _RANDOM_DRAWS,
        SecretStrategy(
            "regress_concealing",
            "It optimises what a batch is concealed by, and the labels of that, along "
            "with the {noun}.",
            _ONE_STEP,
            replays_inputs=True,
        ),
    ]
)
POLICY_STRATEGIES = by_name([_TRAINED_ON, _KNOWN_DRAWS, _RANDOM_DRAWS])

# About scales and shifts that a client keeps, wherever they come from.
_ABOUT_GATES = (
    SecretStrategy("unit", "It replays the network with scales of 1 and shifts of 0."),
    SecretStrategy(
        "regress_gates",
        "It optimises scales and shifts along with the {noun}.",
    ),
    SecretStrategy(
        "peel",
        "It solves for what the layers above the gates were fed, reads scales and "
        "shifts off what came out of the gates, and believes them.",
        _ONE_CLIENT,
    ),
)
PRIVATE_GATES_STRATEGIES = by_name(
    [
        SecretStrategy(
            "known",
            "It replays the network with the true scales and shifts.",
            {"lock_weights": ("known",)},
        ),
        *_ABOUT_GATES,
    ]
)
PASSPORT_STRATEGIES = by_name(
    [
        SecretStrategy(
            "known",
            "It replays the network with the true scales and shifts, which the "
            "passports give it.",
            {"private_key": ("known",)},
        ),
        *_ABOUT_GATES,
        SecretStrategy(
            "regress_passports",
            "It optimises passports along with the {noun}, in the plane that the "
            "gradient of the public weights shows them to lie in.",
            {"upload": ("gradient",)},
        ),
    ]
)

# Names of strategies whose functions kljax has.
OWN_NAMES = frozenset(
    (
        *KEYLOCK_STRATEGIES,
        *PASSPORT_STRATEGIES,
        *BOTTLENECK_STRATEGIES,
        *MIXING_STRATEGIES,
        *CONCEALING_STRATEGIES,
    )
)
