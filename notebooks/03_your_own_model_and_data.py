# %% [markdown] tags=["badge"]
# *No Colab badge yet: kljax has no public address. To run this in Colab, upload this
# file, and a wheel of kljax (`pip wheel --no-deps FOLDER`) to the runtime's working
# folder, where the next cell finds it.*

# %% tags=["install"]
# A fresh Colab runtime has no kljax: this installs it for the CPU, GPU or TPU that is
# there. TensorFlow is neither needed nor installed. Elsewhere this does nothing.
import importlib.util

if importlib.util.find_spec("kljax") is None:
    import glob
    import subprocess
    import sys

    gpu = glob.glob("/dev/nvidia[0-9]*")
    tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    extra = "[cuda]" if gpu else "[tpu]" if tpu else ""
    wheels = sorted(glob.glob("kljax-*.whl"))
    if not wheels:
        raise ModuleNotFoundError(
            "kljax is not installed, and has no public address to install it from "
            "yet: put a wheel of it (pip wheel --no-deps FOLDER) in this folder"
        )
    package = f"./{wheels[-1]}{extra}"
    before = {"jax", "numpy", "matplotlib", "PIL"} & sys.modules.keys()
    command = [sys.executable, "-m", "pip", "install", "--quiet", package]
    subprocess.run(command, check=True)
    if before:
        print(f"Restart the session once; loaded before: {', '.join(sorted(before))}")

# %% [markdown]
# # Your own model, loss and data
#
# Nothing in a leakage study has to be kljax's own. This notebook brings its images, its
# network, its loss, trains the network in an ordinary loop that knows nothing of kljax,
# and only then asks: what would this network's gradients give away, and what does a
# key-lock change about it?
#
# Replace the cells below by your own, one after the other. What each of them has to
# provide is said above it.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import kljax

TINY = "KLJAX_TINY" in os.environ  # the tests' small settings
SIDE, EXAMPLES, TRAINING_STEPS, WIDTH = (8, 50, 2, 4) if TINY else (16, 1000, 300, 16)
SETTINGS = {"victims": 6, "steps": 1000}
ARMS = (
    "none",
    "plaintext-gates-as-lock",
    "keylock/known",
    "keylock/regress_gates",
    "keylock/fixed_random",
)
if TINY:
    SETTINGS = {"victims": 2, "steps": 4, "optimiser": "adam", "private_key_size": 16}
    SETTINGS |= {"layout": kljax.Layout("chunked", 2)}
    ARMS = ("none", "keylock/regress_gates")
print("running on", jax.devices()[0].device_kind)

# %% [markdown]
# ## Data
#
# A function from an image shape to a `kljax.data.Dataset`: images [N, H, W, C] in
# [0, 1], labels, and what a report has to say about them. What you give is checked: a
# NaN, a constant image or a label out of range is an error that names the row.
#
# These are coloured shapes, drawn here. Yours may come from files.

# %%
SHAPES = ("disc", "ring", "square", "triangle", "cross")


def outline(name, x, y, size):
    """Measures how far inside a shape the points (x, y) are; below 0 is outside."""
    bar = np.minimum(0.3 * size - abs(x), size - abs(y))
    turned = np.minimum(0.3 * size - abs(y), size - abs(x))
    return {
        "disc": size - np.hypot(x, y),
        "ring": 0.3 * size - abs(0.8 * size - np.hypot(x, y)),
        "square": 0.85 * size - np.maximum(abs(x), abs(y)),
        "triangle": np.minimum(0.6 * size - y, 0.45 * (y + size - 2 * abs(x))),
        "cross": np.maximum(bar, turned),
    }[name]


def shapes(shape):
    """Draws the data set, with images of `shape` [H, W, 3]."""
    generator = np.random.default_rng(0)
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape[:2]), indexing="ij")
    labels = np.arange(EXAMPLES) % len(SHAPES)
    images = np.empty((EXAMPLES, *shape), np.float32)
    for image, label in zip(images, labels, strict=True):
        (x0, y0), turn = generator.uniform(-0.25, 0.25, 2), generator.uniform(-0.3, 0.3)
        size = generator.uniform(0.4, 0.65)
        u = (x - x0) * np.cos(turn) + (y - y0) * np.sin(turn)
        v = (y - y0) * np.cos(turn) - (x - x0) * np.sin(turn)
        edge = outline(SHAPES[label], u, v, size) * shape[0]
        cover = np.clip(edge + 0.5, 0, 1)[..., None]
        front, back = generator.uniform(0.5, 1, 3), generator.uniform(0, 0.45, 3)
        image[:] = cover * front + (1 - cover) * back
    return kljax.data.Dataset(
        "shapes",
        images,
        labels,
        len(SHAPES),
        groups=None,
        licence="drawn in this notebook",
        class_names=SHAPES,
    )


dataset = shapes((SIDE, SIDE, 3))
figure, axes = plt.subplots(1, 10, figsize=(10, 1.4), layout="constrained")
for axis, image, label in zip(axes, *dataset.fetch(np.arange(10)), strict=True):
    axis.imshow(image)
    axis.set(xticks=[], yticks=[], title=SHAPES[label])
plt.show()

# %% [markdown]
# ## Network and loss
#
# Any `nnx.Module` from images [B, H, W, C] to logits, and any loss of (logits, targets
# [B, classes]) that gives one number. Here: two convolutions with a group norm between,
# and cross-entropy against smoothed labels.


# %%
class Network(nnx.Module):
    """Two convolutions, one norm, one classifier."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, WIDTH, (5, 5), strides=2, rngs=rngs)
        self.norm = nnx.GroupNorm(WIDTH, num_groups=4, rngs=rngs)
        self.conv2 = nnx.Conv(WIDTH, WIDTH, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(WIDTH * (SIDE // 4) ** 2, len(SHAPES), rngs=rngs)

    def __call__(self, images):
        """Maps images [B, H, W, 3] to logits [B, 5]."""
        x = nnx.silu(self.norm(self.conv1(images)))
        x = nnx.silu(self.conv2(x))
        return self.head(x.reshape(x.shape[0], -1))


def smoothed(logits, targets):
    """Computes the cross-entropy against labels of which a tenth is spread evenly."""
    targets = optax.smooth_labels(targets, 0.1)
    return optax.softmax_cross_entropy(logits, targets).mean()


# %% [markdown]
# ## Training
#
# An ordinary loop with Optax on four fifths of the data. No kljax in it: your network
# may as well come from a checkpoint.

# %%
network = Network(nnx.Rngs(0))
optimiser = nnx.Optimizer(network, optax.adam(2e-3), wrt=nnx.Param)


@nnx.jit
def training_step(network, optimiser, images, labels):
    """Takes one step, and gives the loss before it."""
    targets = jax.nn.one_hot(labels, len(SHAPES))
    value, grads = nnx.value_and_grad(lambda n: smoothed(n(images), targets))(network)
    optimiser.update(network, grads)
    return value


generator = np.random.default_rng(1)
held_out = dataset.fetch(np.arange(EXAMPLES * 4 // 5, EXAMPLES))
losses = []
for _ in range(TRAINING_STEPS):
    batch = dataset.fetch(generator.integers(0, EXAMPLES * 4 // 5, 64))
    losses.append(float(training_step(network, optimiser, *batch)))

plt.figure(figsize=(6, 2.2), layout="constrained")
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("training loss")
plt.show()

# %% [markdown]
# ## The same network in kljax
#
# `from_nnx` takes the trained instance as it is: two pure functions, and `init` gives
# the trained values. It reads them once; training on afterwards changes nothing here.

# %%
model = kljax.from_nnx(network)
params, stats = model.init(jax.random.key(0))
images, labels = held_out
ours = model.apply(params, stats, images, train=False).logits
np.testing.assert_allclose(ours, network(images), rtol=1e-3, atol=1e-3)
print("the same logits as the network's own; parameters:", *sorted(params))

# %% [markdown]
# ## A lock for it
#
# The layer is found by its type, and counted. How well does the trained network do with
# this lock's gates, with those of another private key, and without any? The lock is new
# here, and the network was not trained with it: a drop is the price of putting a lock
# on afterwards, and no sign of protection. (A network that is trained *under* its lock
# is the business of `kljax train`.)

# %%
sites = kljax.find_sites(network, lambda _, m: isinstance(m, nnx.GroupNorm), count=1)
lock = kljax.key_lock(sites, kljax.site_widths(model, sites, dataset.shape))
rng_lock, rng_key, rng_other = jax.random.split(jax.random.key(1), 3)
lock_weights = lock.init(rng_lock)
kinds = {
    "no gates": {},
    "our key": lock.gates(lock_weights, lock.private_key(rng_key)),
    "another key": lock.gates(lock_weights, lock.private_key(rng_other)),
}
accuracies = {
    name: float(
        np.mean(
            model.apply(params, stats, images, gates=gates, train=False).logits.argmax(
                -1
            )
            == labels
        )
    )
    for name, gates in kinds.items()
}
plt.figure(figsize=(5, 2), layout="constrained")
plt.barh(list(accuracies), list(accuracies.values()))
plt.axvline(1 / len(SHAPES), color="black", ls="--")
plt.xlim(0, 1)
plt.xlabel("accuracy on held-out images (dashed: guessing)")
plt.show()
for name, accuracy in accuracies.items():
    print(f"{name}: {accuracy:.1%}")


# %% [markdown]
# ## The study
#
# A `LeakConfig` names things, so that a study can be written down and repeated. What is
# yours is named ``module:function``, and a notebook is the module `__main__`. The model
# is a function that gives the network, here the trained one. The same names work on the
# command line once these functions lie in a file of their own:
#
# ```
# kljax leak --model mine:trained --data mine:shapes --loss mine:smoothed \
#     --sites norm --classifier head --weights shared --labels given --image-size 16
# ```
#
# Three options follow from what is ours. `weights="shared"`: every victim is attacked
# on the same, trained weights. `classifier`: the name of the last layer. `labels`:
# reading the label off a gradient in closed form is a theorem about plain
# cross-entropy, so under our own loss the attacker is simply *given* it, the safe
# assumption. Key and lock weights are drawn afresh for each victim.


# %%
def trained(num_classes, *, image_shape, rngs):
    """Gives the trained network; sizes and random streams are settled already."""
    del num_classes, image_shape, rngs
    return network


config = kljax.LeakConfig(
    model="__main__:trained",
    data="__main__:shapes",
    loss="__main__:smoothed",
    image_size=SIDE,
    sites=sites,
    classifier="head",
    weights="shared",
    labels="given",
    arms=ARMS,
    **SETTINGS,
)
result = kljax.leak(config)
rows = kljax.score_rows(result)

# %% [markdown]
# Before any result: who is the attacker? Every arm declares what it knows, and gets no
# more than that.

# %%
for arm in result.arms:
    print(f"{arm.arm.name}\n{arm.threat}\n")

# %% [markdown]
# ## What came out
#
# Truths, what could be drawn without the gradient (*floors*), and the reconstructions.
# A reconstruction that is no nearer than the mean image of the victim's class has taken
# nothing from the gradient.

# %%
victims = result.victims
floors = kljax.floor_images(
    dataset,
    victims.inputs[:, 0],
    victims.labels[:, 0],
    victims.indices[:, 0],
    config.seed,
)


def scores(name, column="ssim"):
    """Lists the scores of one arm, victim by victim."""
    return [row[column] for row in rows if row["arm"] == name]


lines = {"truth": victims.inputs[:, 0]}
lines |= {
    f"floor/{name}": [made[name] for made in floors]
    for name in ("class_mean", "same_class")
}
lines |= {a.arm.name: a.attacked.reconstruction.inputs[:, 0] for a in result.arms}
figure, axes = plt.subplots(
    len(lines),
    config.victims,
    figsize=(1.1 * config.victims + 2, 1.3 * len(lines)),
    layout="constrained",
)
for line, (name, shown) in zip(axes, lines.items(), strict=True):
    for n, axis in enumerate(line):
        axis.imshow(np.clip(np.nan_to_num(shown[n]), 0, 1))
        axis.set(xticks=[], yticks=[])
        if name != "truth":
            axis.set_xlabel(f"SSIM {scores(name)[n]:.2f}", fontsize=8)
    line[0].set_ylabel(name.replace("/", "/\n"), rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# ## Was it solved?
#
# The attacker's own loss, per arm and victim, divided by the loss at which the gradient
# counts as matched. A wrong picture above the line is an attack that failed, not a
# network that is safe. A wrong picture *below* the line would be evidence for the
# defence, if the same victim is recovered without it.

# %%
plt.figure(figsize=(8, 2.8), layout="constrained")
colours = {"recovered": "tab:red", "recovered_affine": "tab:orange", "unsolved": "0.6"}
colours |= {"ambiguous": "tab:green", "diverged": "tab:purple"}
for outcome, colour in colours.items():
    points = [
        (place, row["matching_loss"] / row["matching_loss_floor"])
        for place, name in enumerate(config.arms)
        for row in rows
        if row["arm"] == name and row["outcome"] == outcome
    ]
    if points:
        at, distances = zip(*points, strict=True)
        plt.semilogy(at, distances, "o", color=colour, alpha=0.7, label=outcome)
plt.axhline(1, color="black", ls="--")
plt.xticks(range(len(config.arms)), [name.replace("/", "/\n") for name in config.arms])
plt.xlim(-0.5, len(config.arms) - 0.5)
plt.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# The same in words, from this run's rows. The line to look at is the difference between
# `keylock/...` and `plaintext-gates-as-lock`, which has the same gates without the
# secret.

# %%
floor = np.array(scores("floor/class_mean"))
for name in config.arms:
    found, reached = scores(name, "outcome"), np.array(scores(name))
    affine = found.count("recovered_affine")
    print(
        f"{name}: {found.count('recovered')} of {len(found)} recovered, {affine} more",
        end=" ",
    )
    print("up to brightness and contrast.")
    print(f"  SSIM {reached.mean():.2f}, above its floor by", end=" ")
    print(f"{(reached - floor).mean():+.2f} (worst {(reached - floor).min():+.2f}).")
    failed = found.count("unsolved") + found.count("diverged")
    if failed:
        print(f"  {failed} not solved, which is no evidence of protection.")
    if "ambiguous" in found:
        pairs = zip(found, scores("none", "outcome"), strict=True)
        leaks = sum(a == "ambiguous" and b.startswith("recovered") for a, b in pairs)
        print(f"  {found.count('ambiguous')} matched but wrong; evidence for this arm")
        print(f"  are the {leaks} of them that are recovered in `none`.")

# %% [markdown]
# ## From here
#
# * An attack, an optimiser or a defence of your own is named in the same way:
#   `attack="__main__:mine"`.
# * A handful of victims shows what is possible, not how often. Take more, and restarts:
#   `victims=64, restarts=4`.
# * What an attacker could not do today is no proof about tomorrow's. The strongest
#   sentence that a study like this supports is about the attackers it had.
