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
# # From a sweep file to a report
#
# One study answers one question. *How much noise is enough, and for whom?* is a grid of
# studies, and a grid wants to be written down, to survive a restart, to grow, and to be
# read without fooling oneself. This notebook does that once, small, from a TOML file to
# a page.
#
# It is what `kljax sweep FILE` and `kljax report FOLDER` do, step by step in Python.
# Every number is computed when you run it; where the text says what to look for, the
# table or picture beside it decides.

# %%
import csv
import os
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import SVG, Markdown, display

import kljax
from kljax.studies.sweeps import expand, groups, read_sweep

TINY = "KLJAX_TINY" in os.environ  # the tests' small settings
LAYOUT = kljax.Layout("chunked", 2) if TINY else None  # None: the fastest
print("running on", jax.devices()[0].device_kind)

# %% [markdown]
# ## The file
#
# `[fixed]` holds fields of a `LeakConfig` that are the same everywhere. Each axis has
# points: a list gives the values of one field, a table names points that set several.
# Here: a network of dense layers without a defence and under three strengths of
# Gaussian noise on its gradient, two seeds, and an attacker in a hurry or with time.
#
# The hurried one is let loose on the undefended network only; an exclusion leaves the
# rest out.
#
# The study lies in a temporary folder, so that this notebook starts afresh each time.
# For one of your own, name a folder that stays.

# %%
text = """
[fixed]
model = "dense"
data = "digits"
image_size = 16
victims = 8

[axes]
arm = ["none", "gaussian-noise=0.001", "gaussian-noise=0.1", "gaussian-noise=1"]
seed = [0, 1]

[axes.budget]
hurried = { steps = 30 }
patient = { steps = 1000 }

[[exclude]]
budget = "hurried"
arm = ["gaussian-noise=0.001", "gaussian-noise=0.1", "gaussian-noise=1"]

[options]
reconstructions = true
"""
if TINY:
    text = text.replace("victims = 8", 'victims = 2\noptimiser = "adam"')
    text = text.replace("size = 16", "size = 8").replace("1000", "8").replace("30", "2")

place = Path(tempfile.mkdtemp())
file, folder = place / "noise.toml", place / "noise"
file.write_text(text)
print(f"{file.name} is written, {folder.name}/ will be the study")

# %% [markdown]
# ## What it will take
#
# `expand` writes out the cells, and runs nothing. A name that does not exist, a field
# that is set twice, an exclusion that leaves out nothing: all of that is an error here,
# before the first minute is spent.

# %%
grid = expand(read_sweep(file))
for cell in grid.cells:
    print(cell.id, " ".join(f"{label:22}" for label in cell.point.values()))
print(f"{len(grid.cells)} cells, {grid.excluded} excluded")

# %% [markdown]
# Compiling takes longer than these attacks. Seeds, victims and strengths of a defence
# are *data* of a compiled program, so cells that differ in nothing else share one. A
# number of steps is not. More seeds or strengths therefore cost little, and another
# budget, network or defence costs a compilation.

# %%
for number, members in enumerate(groups(grid.cells).values(), 1):
    victims = sum(cell.config.victims for cell in members)
    print(f"group {number}: {len(members)} cells, {victims} victims")
    for label in dict.fromkeys(
        f"{c.point['arm']}, {c.point['budget']}" for c in members
    ):
        print("  ", label)

# %% [markdown]
# ## Running it
#
# `kljax.sweep` writes the manifest, or goes on with the one that is there, and runs
# what is missing. Victims are done in *parts* of 64 at most. Each part is on disk
# before the next one begins, and that is all that a kill can cost.


# %%
def say(done):
    """Prints a line per part."""
    print(
        f"part {done.chunk}, from {done.point['arm']}, {done.point['budget']} on: "
        f"{done.victims} of {done.all_victims} victims, "
        f"{done.cells} of {done.all_cells} cells"
    )


def start():
    """Runs what is not finished of the sweep file."""
    did = kljax.sweep(file, folder, layout=LAYOUT, on_chunk=say)
    print(
        f"{did.attacks} attacks, {did.compilations} compilations: "
        f"{did.compile_s:.0f} s compiling, {did.run_s:.0f} s attacking"
    )


start()

# %% [markdown]
# ## Again, and further
#
# Starting again does nothing, because nothing is missing. Had the notebook been killed
# halfway, the same line would do the other half.

# %%
start()

# %% [markdown]
# Two seeds are few. A file that only *adds* cells extends the study: those that are
# finished stay as they are. (Anything that would change them, such as another number of
# victims, is refused, and wants a folder of its own.) The new cells are compiled once
# more here; `kljax sweep` keeps compiled programs on disk.

# %%
file.write_text(text.replace("seed = [0, 1]", "seed = [0, 1, 2]"))
start()

# %% [markdown]
# ## The rows
#
# A study is read as it lies there, finished or not. Its rows are one per image of each
# cell, with the names of its point and every score. And one per *floor*, which scores
# an image that was made without any gradient, on the same victim. `kljax.read_rows`
# gives them as a data frame of pandas.

# %%
study = kljax.store.read(folder)
print(f"{study.rows.num_rows} rows; still missing: {kljax.store.missing_cells(study)}")
frame = kljax.read_rows(folder)
print(", ".join(frame.columns), end="\n\n")
patient = frame[frame["axis_budget"] == "patient"]
means = patient.groupby("arm", observed=True)["ssim"].agg(["count", "mean"])
print(means.sort_values("mean").round(2))

# %% [markdown]
# A score below the best `floor/` shows no leak by itself: the mean image of a class is
# nobody's image, and comes that near.
#
# ## The report
#
# `write_report` makes one page of it all, `report.html` (open it in a browser: it has
# tables to sort, and a gallery), the same as Markdown, its figures as SVG, and the
# tables as CSV. It pools cells that differ in nothing but the seed, and nothing else.
# Two of its sections:

# %%
page = kljax.reports.write_report(study)
print("written:", ", ".join(sorted(path.name for path in page.parent.iterdir())))


def section(title):
    """Cuts a section out of the report, up to the next heading or picture."""
    report = page.with_name("report.md").read_text()
    body = report.partition(f"\n{title}")[2].partition("\n")[2]
    return Markdown(body.partition("\n#")[0].partition("\n![")[0].strip())


display(section("### SSIM by arm and budget"))
display(section("### How to read it"))

# %% [markdown]
# The same as a picture: the share of victims at or below each SSIM, one curve per arm,
# and the best floor in grey. Further right is a larger leak.

# %%
display(SVG(filename=page.with_name("distributions.svg")))

# %% [markdown]
# ## Intervals, and floors
#
# A rate over a few dozen victims is a rough one. Below: the share with an SSIM of at
# least .6, its 95 % interval, and the rate that the best floor has *on the same
# victims* (black line). Two questions for every bar:
#
# * Does its interval stay clear of the floor? If not, this success rate shows nothing
#   by itself. An SSIM of .6 is a convention, and on small blurred digits a low bar: the
#   class mean may take it, too.
# * Do the intervals of two bars overlap widely? Then do not rank them by eye. The
#   report's table of comparisons has paired tests on the same victims.

# %%
with page.with_name("points.csv").open() as opened:
    points = list(csv.DictReader(opened))
names = [f"{point['arm']}\n{point['budget']}" for point in points]
figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
for at, point in enumerate(points):
    mean, low, high, floor = (
        float(point[f"success_{part}"])
        for part in ("mean", "low", "high", "floor_mean")
    )
    axis.bar(at, mean, color="tab:red", alpha=0.5)
    axis.vlines(at, low, high, color="tab:red")
    axis.hlines(floor, at - 0.45, at + 0.45, color="black")
axis.set_xticks(range(len(names)), names, fontsize=8)
axis.set(ylim=(0, 1.02), ylabel="share with SSIM of .6 or more")
plt.show()

# %% [markdown]
# ## Unsolved is not protection
#
# `none` is there twice: the same victims, the same networks, no defence at all. If the
# hurried attacker's victims are mostly *unsolved*, this is what an unfinished attack
# looks like: the gradient was not matched, and no low score says anything for what
# stands between. *Ambiguous* victims are another matter: their gradient was matched, to
# within its noise, and the image is wrong all the same, whatever its contrast. The
# report keeps the two apart:

# %%
for point in points:
    print(f"{point['arm']}, {point['budget']}: {point['reads_as']}")

# %% [markdown]
# And arms against each other, on the same victims, by each score. Holm's columns count:
# the more comparisons, the easier one of them is significant by luck.

# %%
display(section("## Arms on the same victims"))

# %% [markdown]
# ## Look at the pictures
#
# `reconstructions = true` kept the images. All victims of the first seed, none chosen:
# truths, two floors, and what each attack made of them.
#
# An outcome is a convention, like the .6 in it. If you recognise the very digit of the
# truth, more than its class, in a picture called *unsolved* or *ambiguous*, believe
# your eye: something of it did leak, and a filter might bring out more.

# %%
cells = [cell for cell in study.manifest["cells"] if cell["point"]["seed"] == "0"]
kept = {
    cell["id"]: kljax.store.read_reconstructions(study, cell["id"]) for cell in cells
}
rows = {(row["cell"], row["arm"], row["victim"]): row for row in study.rows.to_pylist()}

# The floors are made again, of the same images as when they were scored.
cell, config = cells[0]["id"], cells[0]["config"]
victims, truths = kept[cell]["victim"], kept[cell]["truths"][:, 0]
dataset = kljax.data.load(config["data"], shape=truths.shape[1:])
labels = [rows[cell, "none", victim]["label"] for victim in victims]
floors = kljax.floor_images(dataset, truths, labels, victims, config["seed"])

lines = [("truth", truths, [""] * len(victims))]
for name in ("class_mean", "same_class"):
    scored = [rows[cell, f"floor/{name}", victim]["ssim"] for victim in victims]
    words = [f"SSIM {ssim:.2f}" for ssim in scored]
    lines.append((f"floor/\n{name}", [made[name] for made in floors], words))
for other in cells:
    arm, budget = other["point"]["arm"], other["point"]["budget"]
    scored = [rows[other["id"], arm, victim] for victim in victims]
    words = [f"{row['ssim']:.2f} {row['outcome']}" for row in scored]
    lines.append((f"{arm}\n{budget}", kept[other["id"]]["images"][:, 0], words))
figure, axes = plt.subplots(
    len(lines),
    len(victims),
    figsize=(1.2 * len(victims) + 2, 1.4 * len(lines)),
    layout="constrained",
)
for line, (name, images, words) in zip(axes, lines, strict=True):
    for axis, image, word in zip(line, images, words, strict=True):
        axis.imshow(np.clip(np.nan_to_num(image), 0, 1))
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(word, fontsize=8)
    line[0].set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# ## What to take along, and what not
#
# * Write the grid down before you look at results. The report ends with the file and
#   the commands that repeat it.
# * Say the floor beside every rate, and the interval, and how many victims.
# * *Unsolved* calls for more steps, restarts or a better attack. *Ambiguous* is
#   evidence for a defence where the same victims are recovered without it, against
#   this attacker, and no proof.
# * Nothing here says what noise costs. Accuracy is a matter of `kljax train`;
#   `write_report(study, runs=[...])` puts both into one picture.
#
# For a lock, the axes are who knows what: `experiments/presets/ablation.toml` asks
# that, with the lock's own gates made public as its control. On a terminal:
#
# ```
# kljax sweep noise.toml --dry-run     # cells, compilations, time and memory
# kljax sweep noise.toml --out runs/noise
# ```
