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
# # What a gradient leaks, with and without a lock
#
# A client computes one gradient on one private image and sends it. The server, which
# prescribed the network, looks for an image that would have given the same gradient.
# This notebook does that to the same victims under several defences, and is about one
# thing above all: *how to read what comes out*.
#
# Every number is computed when you run it. Where the text says what to look for, the
# picture above or below it decides.

# %%
import dataclasses
import os

import jax
import matplotlib.pyplot as plt
import numpy as np

import kljax

TINY = "KLJAX_TINY" in os.environ  # the tests' small settings
SETTINGS = {"model": "lenet", "victims": 6, "steps": 1000}
CONTROLS = ("bn-control", "plaintext-gates-as-lock")
if TINY:  # a network without a norm layer, whose control there is none of
    CONTROLS = CONTROLS[1:]
    SETTINGS = {"model": "dense", "image_size": 8, "victims": 2, "steps": 4}
    SETTINGS |= {"optimiser": "adam", "private_key_size": 16}
    SETTINGS |= {"layout": kljax.Layout("chunked", 2)}
print("running on", jax.devices()[0].device_kind)

# %% [markdown]
# ## No defence
#
# A study is a `LeakConfig`: here LeNet with random weights, of which every victim has
# its own, and scikit-learn's digits. The attack is kljax's default: it starts from
# grey noise and moves the image until its gradient matches the one that was sent.

# %%
config = kljax.LeakConfig(data="digits", arms=("none",), **SETTINGS)
undefended = kljax.leak(config)
rows = kljax.score_rows(undefended)

# %% [markdown]
# `score_rows` gives one row per image and arm, with every score that kljax knows. Two
# small helpers: one draws images with their scores below, the other is for later.

# %%
truths = undefended.victims.inputs[:, 0]


def scores(name, column="ssim"):
    """Lists the scores of one arm, victim by victim."""
    return [row[column] for row in rows if row["arm"] == name]


def images_of(result, name):
    """Finds the reconstructions [N, H, W, C] of one arm."""
    (arm,) = (arm for arm in result.arms if arm.arm.name == name)
    return arm.attacked.reconstruction.inputs[:, 0]


def draw(lines):
    """Draws one line of images per name, with SSIM below where there is a score."""
    count = len(truths)
    size = (1.1 * count + 2, 1.3 * len(lines))
    figure, axes = plt.subplots(
        len(lines), count, figsize=size, layout="constrained", squeeze=False
    )
    for line, (name, images) in zip(axes, lines.items(), strict=True):
        marks = scores(name)
        for n, axis in enumerate(line):
            axis.imshow(np.clip(np.nan_to_num(images[n]), 0, 1))
            axis.set(xticks=[], yticks=[])
            if marks:
                axis.set_xlabel(f"SSIM {marks[n]:.2f}", fontsize=8)
        line[0].set_ylabel(
            name.replace("/", "/\n"), rotation=0, ha="right", va="center"
        )
    plt.show()


def draw_losses(result, name):
    """Draws the attacker's own loss of every victim of one arm."""
    (arm,) = (arm for arm in result.arms if arm.arm.name == name)
    losses = arm.attacked.reconstruction.info["losses"]  # [N, points]
    at = np.linspace(0, config.steps, losses.shape[1] + 1)[1:]
    plt.figure(figsize=(6, 2.6), layout="constrained")
    plt.semilogy(at, losses.T, color="tab:blue", alpha=0.6)
    plt.axhline(max(scores(name, "matching_loss_floor")), color="black", ls="--")
    plt.title(f"{name}: distance of the gradients")
    plt.xlabel("evaluations")
    plt.show()


draw({"truth": truths, "none": images_of(undefended, "none")})


# %% [markdown]
# How does the attack know how far it has come? By its own loss, the distance between
# the two gradients, which is all that it sees. One curve per victim. Below the dashed
# line the gradient counts as *matched*: no part of it is off by more than a thousandth.
# (Every victim has a line of its own; the highest is drawn.) That is a strict word, and
# an image may well be there before.

# %%
draw_losses(undefended, "none")

# %% [markdown]
# ## What could be drawn without the gradient?
#
# A score means little before one knows what no attack at all would score. *Floors* are
# images made without the victim's gradient: plain grey, the mean of the data set, the
# mean of the victim's class (its label is easy to read off the last layer), another
# example of that class.

# %%
dataset, victims = undefended.dataset, undefended.victims
labels, indices = victims.labels[:, 0], victims.indices[:, 0]
floors = kljax.floor_images(dataset, truths, labels, indices, config.seed)
shown = ("grey", "data_mean", "class_mean", "same_class")
draw(
    {"truth": truths}
    | {
        f"floor/{name}": [made[name] for made in floors]
        for name in shown
        if all(name in made for made in floors)
    }
)

# %% [markdown]
# Read the SSIM below the class means. They show nobody's image, and however near they
# come, a reconstruction has to come nearer before it has taken anything from the
# gradient.
#
# ## The lock, and an attacker who guesses
#
# Now the key-lock on LeNet's first norm layer. The published evaluation has this
# attacker: it knows the lock weights, makes up a private key, and believes it.

# %%
guessing = dataclasses.replace(config, arms=("keylock/fixed_random",))
guessed = kljax.leak(guessing)
rows += [row for row in kljax.score_rows(guessed) if row["arm"] in guessing.arms]
draw({"truth": truths, "keylock/fixed_random": images_of(guessed, guessing.arms[0])})

# %% [markdown]
# If you see noise here, do not stop. A picture of noise shows that *this attacker*
# failed. Did the lock hide the image, or did it search in a wrong network? Its own loss
# tells. If it stays far above the dashed line it never matched the gradient, and can
# see that it did not: a reason to try something else.

# %%
draw_losses(guessed, "keylock/fixed_random")

# %% [markdown]
# ## The same lock, other attackers, and controls
#
# * `bn-control`: the norm layer that the lock brings along, without a lock. What does
#   the norm do on its own?
# * `plaintext-gates-as-lock`: the very gates of the lock, made public. What do these
#   gates do without secrecy?
# * `keylock/known`: the lock, against someone who has the private key.
# * `keylock/regress_gates`: the lock, against someone with neither private key nor lock
#   weights, who optimises two numbers per channel along with the image.
#
# What the lock's secrecy adds is the difference to `plaintext-gates-as-lock`, not the
# difference to `none`.

# %%
asking = dataclasses.replace(
    config, arms=(*CONTROLS, "keylock/known", "keylock/regress_gates")
)
asked = kljax.leak(asking)
rows += [row for row in kljax.score_rows(asked) if row["arm"] in asking.arms]
draw({"truth": truths} | {name: images_of(asked, name) for name in asking.arms})

# %% [markdown]
# Look at the pictures before the numbers. A norm layer in train mode takes brightness
# and contrast out of a single image, so a reconstruction can be readable and too bright
# or too pale. SSIM punishes that, the eye does not. kljax therefore also gives the SSIM
# after the best brightness and contrast per channel, *affine oracle*: an upper bound,
# since it looks at the truth.
#
# ## Scores beside their floors
#
# Every dot is a victim: its score minus that of the class mean for the same victim. To
# the right of the line, the reconstruction is nearer than an image that anyone could
# have drawn.

# %%
arms = ("none", *asking.arms, *guessing.arms)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for axis, column in zip(axes, ("ssim", "ssim_affine_oracle"), strict=True):
    floor = np.array(scores("floor/class_mean", column))
    for place, name in enumerate(arms):
        above = np.array(scores(name, column)) - floor
        axis.plot(above, np.full(len(above), place), "o", alpha=0.6)
    axis.axvline(0, color="black")
    axis.set(title=f"{column}, above the class mean")
axes[0].set_yticks(range(len(arms)), arms)
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# ## Unsolved is not protected
#
# Each row also names its outcome:
#
# * **recovered**: SSIM of at least .6 *and* at most half the squared error of the best
#   floor. The gradient leaks.
# * **recovered_affine**: the same, once brightness and contrast of each channel are put
#   right, in the image and in its floors. A norm layer in train mode hides those of a
#   single example, lock or no lock.
# * **unsolved**: the image is wrong and the gradient was not matched. The attack
#   failed, which says nothing for the defence: a better optimiser, more steps or
#   another start may succeed.
# * **ambiguous**: matched but wrong. The gradient *was* matched and the image is wrong
#   all the same, with any contrast. This is evidence for a defence where the same
#   victims are recovered without it, and only there.
# * **diverged**: the attack broke.

# %%
names = kljax.metrics.OUTCOMES
hues = ("tab:red", "tab:orange", "0.8", "tab:green", "tab:purple")
colours = dict(zip(names, hues, strict=True))
plt.figure(figsize=(8, 3), layout="constrained")
left = np.zeros(len(arms))
for outcome in names:
    counts = np.array([scores(name, "outcome").count(outcome) for name in arms])
    plt.barh(arms, counts, left=left, color=colours[outcome], label=outcome)
    left += counts
plt.gca().invert_yaxis()
plt.xlabel("victims")
plt.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# The same in words, from this run's rows:

# %%
floor = np.mean(scores("floor/class_mean"))
for name in arms:
    found = scores(name, "outcome")
    bound = np.mean(scores(name, "ssim_affine_oracle"))
    affine = found.count("recovered_affine")
    print(
        f"{name}: {found.count('recovered')} of {len(found)} recovered, {affine} more",
        end=" ",
    )
    print("up to brightness and contrast.")
    print(
        f"  SSIM {np.mean(scores(name)):.2f}, after affine oracle {bound:.2f};", end=" "
    )
    print(f"the class mean has {floor:.2f}.")
    failed = found.count("unsolved") + found.count("diverged")
    if failed:
        print(f"  {failed} not solved, which is no evidence of protection.")
    if "ambiguous" in found:
        pairs = zip(found, scores("none", "outcome"), strict=True)
        leaks = sum(a == "ambiguous" and b.startswith("recovered") for a, b in pairs)
        print(f"  {found.count('ambiguous')} matched but wrong; evidence for this arm")
        print(f"  are the {leaks} of them that are recovered in `none`.")

# %% [markdown]
# ## Three questions to ask of any leakage result
#
# 1. What do the floors score? Below them, a "leak" is none.
# 2. Was the gradient matched? If not, a "defence" is only an attack that failed.
# 3. What does the control do? What `bn-control` and `plaintext-gates-as-lock` do
#    without any secret is not the lock's merit.
#
# And two limits of what you just ran: a handful of victims is a demonstration, not a
# measurement (`kljax leak --victims 64 --restarts 4` gives intervals, too), and weights
# drawn at random are the beginning of a training. `03_your_own_model_and_data` takes a
# trained network, and everything else your own.
