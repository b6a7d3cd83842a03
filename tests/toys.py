"""Small things that many tests need.

Weights and images are NumPy arrays: no initialiser is compiled for them, and what a
test works out by hand from them is not JAX again.
"""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from kljax.attacks import AssumedDefence, Setting, Task
from kljax.core.inputs import images_of
from kljax.core.targets import classes_of
from kljax.core.types import Model, Private, Public
from kljax.defences import Defence, keylock
from kljax.defences.lock import key_lock
from kljax.federated.clients import one_step
from kljax.models import from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import Knowledge, Strategy, ThreatModel, Update

# For what runs once: code is generated faster, and is slower.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def random_weights(model, seed=0, scale=0.5):
    """Draws params and stats [like ``model.init``] by NumPy; variances are positive."""
    generator = np.random.default_rng(seed)
    params, stats = jax.eval_shape(model.init, jax.random.key(0))

    def draw(leaf, positive):
        values = scale * generator.standard_normal(leaf.shape)
        return np.asarray(abs(values) + 0.5 if positive else values, leaf.dtype)

    return (
        jax.tree.map(lambda leaf: draw(leaf, False), params),
        jax.tree.map(lambda leaf: draw(leaf, True), stats),
    )


def random_images(*shape, seed=1):
    """Draws images, uniform on [0, 1)."""
    return np.random.default_rng(seed).random(shape, np.float32)


# --- one locked network, one client, any threat model -----------------------------

IMAGE_SHAPE = (2, 2, 1)
CLASSES = 3
WIDTHS = (3,)
SITES = ("norm",)
PARTS = ("task", "defence", "attacker")  # of a setting
LOCK = key_lock(SITES, WIDTHS, size=5)


class Toy(nnx.Module):
    """Flattens, then linear, norm (the locked site), sigmoid, classifier."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, use_scale=False, use_bias=False, rngs=rngs)
        self.fc = nnx.Linear(3, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.first(images.reshape(images.shape[0], -1)))
        return self.fc(nnx.sigmoid(x))


@functools.cache
def toy_model() -> Model:
    return from_nnx(Toy)


def threat(lock="unit", label_strategy="recovered", /, **facts) -> ThreatModel:
    """Makes a threat model in which everything is hidden that `facts` do not grant."""
    hidden = {
        "private_key": "hidden",
        "lock_weights": "hidden",
        "lock_grads": "hidden",
        "labels": "hidden",
        "stats": "hidden",
        "victim_norm": "eval",
        "attacker_norm": "eval",
        "upload": "gradient",
        "server": "honest",
        "examples": 1,
        "visible": "all",
        "clients": 1,
    }
    return ThreatModel(
        Knowledge(**{**hidden, **facts}), Strategy(secret=lock, labels=label_strategy)
    )


def setting(threat: ThreatModel, defence: Defence, **changes) -> Setting:
    """Makes the setting of an attack on the toy network."""
    task = Task(
        toy_model(), cross_entropy, images_of(IMAGE_SHAPE), classes_of(CLASSES), "fc"
    )
    sites = tuple(zip(SITES, WIDTHS, strict=True))
    return replace_fields(setting_of(task, threat, defence, sites), **changes)


def setting_of(
    task: Task,
    threat: ThreatModel,
    defence: Defence,
    sites: tuple[tuple[str, int], ...] = (),
) -> Setting:
    """Makes the setting of an attacker who knows what the defence does."""
    assumed = AssumedDefence(
        defence.gates,
        defence.simulate,
        defence.update.simulate,
        sites,
        simulate_example=defence.simulate_example,
    )
    return Setting(task, threat, assumed)


def replace_fields(setting: Setting, **changes) -> Setting:
    """Replaces fields of a setting, or of its parts, by their names."""
    if "num_classes" in changes:
        changes["targets"] = classes_of(changes.pop("num_classes"))
    for name, value in changes.items():
        if name in Setting._fields:
            setting = setting._replace(**{name: value})
            continue
        # Of a name in two parts, that of the first: the task's inputs.
        part = next(p for p in PARTS if name in getattr(setting, p)._fields)
        one = getattr(setting, part)._replace(**{name: value})
        setting = setting._replace(**{part: one})
    return setting


def random_private(lock=LOCK, seed=4) -> Private:
    """Draws a private key on [0, 1) and lock weights that leave channels alive."""
    generator = np.random.default_rng(seed)
    weights = jax.tree.map(
        lambda leaf: generator.uniform(-0.5, 1, leaf.shape).astype(np.float32),
        jax.eval_shape(lock.init, jax.random.key(0)),
    )
    (size,) = jax.eval_shape(lock.private_key, jax.random.key(0)).shape
    return Private(generator.random(size, np.float32), weights)


@functools.cache
def locked_update(examples: int, seed: int = 0) -> Update:
    """Runs one client behind the key-lock, norm layers in eval mode."""
    model, defence = toy_model(), keylock(LOCK)
    params, stats = random_weights(model, seed)
    targets = np.eye(CLASSES, dtype=np.float32)[(np.arange(examples) + 1) % CLASSES]
    return quick_jit(one_step(model, cross_entropy, defence, train=False))(
        jax.random.key(seed),
        Public(params),
        stats,
        random_private(seed=seed),
        random_images(examples, *IMAGE_SHAPE, seed=seed),
        targets,
    )


def check_refused(build, message: str) -> None:
    """Checks that a network, ``rngs -> module``, cannot be built, and why."""
    with pytest.raises(ValueError, match=message):
        build(nnx.Rngs(0))


def equations(function, *args) -> list:
    """Lists the equations of a program, and of those inside it."""

    def walk(program):
        for equation in program.eqns:
            yield equation
            for leaf in jax.tree.leaves(
                list(equation.params.values()),
                is_leaf=lambda leaf: hasattr(leaf, "eqns"),
            ):
                if hasattr(leaf, "eqns"):
                    yield from walk(getattr(leaf, "jaxpr", leaf))

    return list(walk(jax.make_jaxpr(function)(*args).jaxpr))
