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
# # A defence, a metric and a data set of your own
#
# kljax is made of named parts, and each of them can be yours. In this notebook you
# write three, each a function of a few lines, and see them in a study side by side with
# the library's own: in the rows, in the table, in the picture.
#
# * a **data set**: images that nobody has but you;
# * a **defence**: what a client does to its gradient before it sends it, with two
#   numbers and a memory;
# * a **metric**: what *you* mean by a leak, beside SSIM and its relatives.
#
# Change them as you like, one after the other, and run what is below again.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import kljax
from kljax.defences import Defence

TINY = "KLJAX_TINY" in os.environ  # the tests' small settings
SIDE, EXAMPLES, SETTINGS = 16, 200, {"victims": 6, "steps": 1000}
ARMS = ("none", "__main__:coarse=64", "__main__:coarse=4", "__main__:coarse=4,0")
if TINY:
    SIDE, EXAMPLES, ARMS = 8, 20, ARMS[:2]
    SETTINGS = {"victims": 2, "steps": 4, "optimiser": "adam"}
    SETTINGS |= {"layout": kljax.Layout("chunked", 2)}
print("running on", jax.devices()[0].device_kind)

# %% [markdown]
# ## A data set
#
# A function from the shape that a study asks for to a `kljax.data.Dataset`. What you
# give is checked, and an error names the example that is wrong.
#
# Here: plasma, that is a few waves of random direction and colour. Its two classes are
# long waves and short ones.
#
# (For files you need no function: `data="./pictures"` is a folder with a subfolder of
# pictures for each class, and `data="mine.npz"` a file with the arrays `images` and
# `labels`.)


# %%
def plasma(shape):
    """Draws waves, with images of `shape` [H, W, 3]."""
    generator = np.random.default_rng(0)
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape[:2]), indexing="ij")
    labels = np.arange(EXAMPLES) % 2
    images = np.empty((EXAMPLES, *shape), np.float32)
    for image, label in zip(images, labels, strict=True):
        wave = np.zeros(shape)
        for _ in range(3):
            turn, phase = generator.uniform(0, 2 * np.pi, 2)
            along = x * np.cos(turn) + y * np.sin(turn)
            rate = generator.uniform(*((2, 4), (6, 9))[label])
            wave += np.sin(rate * along + phase)[..., None] * generator.uniform(
                -1, 1, 3
            )
        image[:] = (wave - wave.min()) / np.ptp(wave)
    return kljax.data.Dataset(
        "plasma",
        images,
        labels,
        num_classes=2,
        groups=None,
        licence="drawn in this notebook",
        class_names=("long waves", "short waves"),
    )


dataset = plasma((SIDE, SIDE, 3))
figure, axes = plt.subplots(1, 8, figsize=(8, 1.4), layout="constrained")
for axis, image, label in zip(axes, *dataset.fetch(np.arange(8)), strict=True):
    axis.imshow(image)
    axis.set(xticks=[], yticks=[])
    axis.set_title(dataset.class_names[label], fontsize=7)
plt.show()

# %% [markdown]
# ## A defence
#
# A function of its numbers that gives a `Defence`. What is not said by keyword does
# nothing, so that a defence is as long as what it does.
#
# This one rounds the gradient to a few levels before it is sent, and remembers what it
# rounded away, to add it the next time: `levels` on each side of zero, and `feedback`,
# the share that it remembers. That memory is its *state*. An attacker who knew of it
# could `simulate` it; nobody does so here, which is a weakness of the study and not a
# strength of the defence.


# %%
def coarse(levels, feedback=1.0):
    """Rounds each tensor of the gradient to multiples of its largest entry / levels."""

    def release(rng, left, grads, context):
        whole = jax.tree.map(lambda g, e: g + feedback * e, grads, left)

        def rounded(g):
            step = jnp.max(jnp.abs(g)) / levels
            return jnp.where(step > 0, jnp.round(g / step) * step, g)

        sent = jax.tree.map(rounded, whole)
        return sent, jax.tree.map(jnp.subtract, whole, sent)

    return Defence(
        release=release,
        init_state=lambda grads: jax.tree.map(jnp.zeros_like, grads),
    )


grads = {"layer": jnp.linspace(-1, 1, 9)}
defence = coarse(2)
sent, left = defence.release(None, defence.init_state(grads), grads, None)
print("gradient  ", grads["layer"])
print("sent      ", sent["layer"])
print("remembered", left["layer"])

# %% [markdown]
# ## A metric
#
# A function of a guess and the truth, both images [H, W, C] in [0, 1], and a line about
# it: what it means, and whether a high or a low value leaks more. The line is the row
# of its column, and tables and reports read nothing else.
#
# This one asks whether the *edges* of the image are known, whatever its brightness.


# %%
@kljax.metrics.metric(
    "correlation of the differences between neighbouring pixels",
    unit="[-1, 1]",
    leaks=1,
)
def edges(guess, truth):
    """Correlates the differences between neighbours, downwards and to the right."""

    def differences(image):
        down, right = jnp.diff(image, axis=0), jnp.diff(image, axis=1)
        return jnp.concatenate([down.ravel(), right.ravel()])

    one, other = differences(guess), differences(truth)
    lengths = jnp.linalg.norm(one) * jnp.linalg.norm(other)
    return jnp.sum(one * other) / jnp.maximum(lengths, 1e-9)


(first, second), _ = dataset.fetch([0, 1])
print(f"an image and itself: {edges(first, first):.2f}")
print(f"an image and its half as bright copy: {edges(first / 2, first):.2f}")
print(f"an image and another: {edges(second, first):.2f}")

# %% [markdown]
# ## The study
#
# All three by name. `__main__:plasma` is the function `plasma` of this notebook; once
# it lies in a file `mine.py`, it is `mine:plasma`, on the command line, too:
#
# ```
# kljax leak --model dense --data mine:plasma --metrics mine:edges --image-size 16 \
#     --arms none mine:coarse=64 mine:coarse=4 mine:coarse=4,0
# ```
#
# The numbers behind a defence are data of one compiled program: all strengths of it
# together cost one compilation, and would in a sweep.

# %%
config = kljax.LeakConfig(
    model="dense",
    data="__main__:plasma",
    metrics=("__main__:edges",),
    image_size=SIDE,
    arms=ARMS,
    **SETTINGS,
)
result = kljax.leak(config)
rows = kljax.score_rows(result)
for name in dict.fromkeys(row["arm"] for row in rows):
    mine = [row for row in rows if row["arm"] == name]
    ssim, edge = (np.mean([row[score] for row in mine]) for score in ("ssim", "edges"))
    outcomes = [row["outcome"] for row in mine if row["outcome"]]
    said = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
    print(f"{name:25} SSIM {ssim:5.2f}  edges {edge:5.2f}  {said}")

# %% [markdown]
# Three things to look at, before any conclusion.
#
# * **Floors** (`floor/...`) are images made without any gradient. An arm that is not
#   above the best of them has given nothing away, by that score.
# * **Outcomes.** *Unsolved* says that the attack failed, not that the defence held.
#   *Ambiguous* is matched but wrong: evidence for the defence where the same image is
#   recovered in `none`.
# * **The last arm** remembers nothing (`feedback` is 0). On the first gradient there is
#   nothing to remember yet, so it has to agree with the one before.
#
# ## The picture

# %%
names = list(ARMS)
truths = result.victims.inputs[:, 0]
figure, axes = plt.subplots(
    len(names) + 1,
    len(truths),
    figsize=(1.1 * len(truths) + 2, 1.3 * (len(names) + 1)),
    layout="constrained",
)
for line, name in zip(axes, ["truth", *names], strict=True):
    images, scores = truths, [1.0] * len(truths)
    if name != "truth":
        (arm,) = (arm for arm in result.arms if arm.arm.name == name)
        images = arm.attacked.reconstruction.inputs[:, 0]
        scores = [row["edges"] for row in rows if row["arm"] == name]
    for axis, image, score in zip(line, images, scores, strict=True):
        axis.imshow(np.clip(np.nan_to_num(image), 0, 1))
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(f"edges {score:.2f}", fontsize=8)
    line[0].set_ylabel(
        name.replace("__main__:", ""), rotation=0, ha="right", va="center"
    )
plt.show()

# %% [markdown]
# ## From here
#
# * A network, an attack, an optimiser, a label rule, a rule of aggregation, a client's
#   role: the recipes are in `kljax/README.md`, and each is a test that you can copy.
# * What does the defence cost? `kljax train --data mine:plasma --arms none
#   mine:coarse=4` trains under it, and there its memory works.
# * Is the attacker weak or the defence strong? Give it a `simulate` and look again.
