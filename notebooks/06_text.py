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
# # What the gradient of a language model leaks
#
# A client trains on sentences. Its gradient says which tokens they have, because the
# table of embeddings moves in the rows of those tokens alone; what is left to find is
# their order. This notebook searches for it, then does without any search, and asks
# what a part of the gradient, noise, and a key-lock change.
#
# The sentences are verses of the King James Bible, which kljax carries. Every number is
# computed when you run it.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

import kljax
from kljax.studies.sentences import as_markdown, bold_right, list_sentences

TINY = "KLJAX_TINY" in os.environ  # the tests' small settings
VICTIMS, STEPS, BATCH = (2, 4, 2) if TINY else (4, 300, 8)
print("running on", jax.devices()[0].device_kind)

# %% [markdown]
# Two helpers. One runs a study and gives its rows; the other sets truth and finding
# side by side, with the right words in bold.


# %%
def attack(**settings):
    """Runs a study of sentences of eight tokens and scores it."""
    return kljax.leak(kljax.LeakConfig(seed=0, **settings)).to_frame()


def show(rows, most=3):
    """Shows the first sentences and what each arm found of them."""
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    lines = ["| truth | arm | found |", "|---|---|---|"]
    for truth, found in list_sentences(records, most):
        for one in found:
            guess = bold_right(one.guess, truth)
            lines.append(f"| {as_markdown(truth)} | {one.arm} | {guess} |")
    display(Markdown("\n".join(lines)))


# %% [markdown]
# ## A search
#
# `dlg` looks for embeddings whose gradient is the one that was sent, and reads the
# nearest tokens. The network is a small encoder that classifies verses, with weights
# drawn anew for each victim.

# %%
ENCODER = {"model": "transformer", "data": "text", "victims": VICTIMS}
SEARCH = {"attack": "dlg", "labels": "given", "steps": STEPS}
searched = attack(arms=("none",), **ENCODER, **SEARCH)
show(searched)

# %% [markdown]
# ## A part of the gradient
#
# Perhaps the server sees one matrix only: the query of the first block, 1.1 % of the
# upload. What is not named is absent from the attacker's view.

# %%
PART = "visible=blocks/0/attention/query/kernel"
part = attack(arms=("none",), threat=(PART,), **ENCODER, **SEARCH)
show(part)

# %% [markdown]
# ## A key-lock
#
# The lock gates the first norm; its weights and its private key stay with the client.
# `known` is an attacker who has both, `fixed_random` guesses the private key, and
# `regress_gates` looks for the gates along with the sentence. Read what they found
# before you look at how well they matched: a sentence is right as soon as the nearest
# tokens are.

# %%
LOCKS = ("keylock/known", "keylock/fixed_random", "keylock/regress_gates")
locked = attack(arms=LOCKS, sites=("blocks/0/norm1",), **ENCODER, **SEARCH)
show(locked, most=2)

# %% [markdown]
# ## Without a search
#
# `dager` asks of every token whether its embedding lies in the span of the first
# attention's gradient, place by place, and of every sentence of such tokens whether it
# lies in that of the second. A batch comes out at once, exactly, or the attack says
# that the rank is full and gives nothing. Noise blurs the span.

# %%
DECODER = {"model": "gpt-tiny" if TINY else "gpt-small", "data": "text-next-token"}
ARMS = ("none", "gaussian-noise=1e-6", "gaussian-noise=1e-3")
exact = attack(attack="dager", examples=BATCH, victims=1, arms=ARMS, **DECODER)
show(exact, most=2)

# %% [markdown]
# ## Beside the floors
#
# What is reached without any gradient is the floor: here the best of several guesses
# for each sentence, the true tokens in a random order among them. A bar below the line
# is no leak.

# %%
studies = {"DLG": searched, "DLG, one matrix": part, "DLG, lock": locked}
studies["DAGER"] = exact
bars, floors = {}, {}
for name, rows in studies.items():
    of_floor = rows["arm"].astype(str).str.startswith("floor/")
    best = rows[of_floor].groupby(["upload", "example"])["token_accuracy"].max()
    for arm, its in rows[~of_floor].groupby("arm", observed=True):
        bars[f"{name}: {arm}"] = its["token_accuracy"].mean()
        floors[f"{name}: {arm}"] = best.mean()
plt.figure(figsize=(8, 0.4 * len(bars) + 1), layout="constrained")
plt.barh(list(bars), list(bars.values()), color="0.75")
plt.plot(list(floors.values()), list(bars), "|", color="black", markersize=18)
plt.gca().invert_yaxis()
plt.xlim(0, 1)
plt.xlabel("tokens right in their place; line: best floor")
plt.show()
for name, share in bars.items():
    print(f"{name}: {share:.0%} of the tokens, floor {np.round(100 * floors[name])} %")

# %% [markdown]
# ## What to take from it
#
# * A sentence needs no exact match. A search that ends far from the gradient may have
#   every token, so a loss that stays high is no protection of text.
# * One matrix can be enough. Hiding most of an upload is not hiding the sentence.
# * The span of a gradient is exact up to rounding, and noise of a size that training
#   hardly feels may blur it; another attack may need less.
# * A handful of sentences is a demonstration. `experiments/dager.md`,
#   `partial_gradients.md` and `text_lock.md` have measurements, and what was not tried.
