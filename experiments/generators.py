"""How good are the generators that attackers have?

    python experiments/generators.py [NAME ...] [--images generators.png]
    python experiments/generators.py NAME ... --held-out

What: each generator of the package, or file of ``train_generator.py``, beside the
dataset that it was trained on a part of. Three parts of that: *trained*, which it saw;
*private*, the victims, which it did not; and, for each generator, 100 images of each
class, *made*.

- *told right*: share of images whose class a support vector machine finds, that was
  fitted to trained images alone. Private images are its reference.
- *to trained*: root mean square distance to the nearest trained image, median. Images
  that were learnt by heart lie nearer than private ones; *copies* are those that lie
  nearer than all but 1 % of the private ones.
- *alike*: SSIM of two images of one class, mean over pairs. More than of private
  ones is less diversity than there is.
- *reach*: private images from their best latents (Adam, 2 starts, chosen by the truth):
  what GGL could find at best. Floor: the mean of the trained images of the class.

With `--held-out` nothing but the reach of public images is printed, those that
``train_generator.py`` holds out of the training. A choice among generators by them has
looked at no victim.

Intervals are of 95 %: Wilson's of rates, the bootstrap's of means over images (pairs).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC
from training.resumable import split

from kljax import data
from kljax.core.generator import Generator
from kljax.metrics import interval, ssim
from kljax.models.decoders import FOLDER, list_decoders, read_decoder

SEED = 0
EACH = 100  # made images of a class
MOST = 3000  # real images of either part that are looked at
PAIRS = 200  # of each class
SOUGHT, STARTS, STEPS, RATE = 48, 2, 300, 0.1
COPY = 1.0  # per cent of the private images that are as near
HEAD = ("images of", "n", "told right", "to trained", "copies", "alike")
SHOWN = 8


def read(name: str) -> Generator:
    return read_decoder(Path(name) if name.endswith(".npz") else FOLDER / f"{name}.npz")


def parts_of(generator: Generator):
    """Gives (images, labels) of the trained part and of the private one.

    The trained part includes the tenth that only told how well it was learnt.
    """
    origin = generator.origin
    dataset = data.load(origin.dataset, shape=generator.shape)
    rng = np.random.default_rng(SEED)
    parts = []
    for chosen in (origin.public, ~origin.public):
        rows = np.flatnonzero(chosen)
        rows = np.sort(rng.permutation(rows)[:MOST])
        parts.append(dataset.fetch(rows))
    return parts


def make(generator: Generator):
    """Makes `EACH` images of each class, [n, h, w, c] and their labels."""
    labels = np.repeat(np.arange(generator.num_classes), EACH)
    latents = jax.random.normal(jax.random.key(SEED), (len(labels), generator.latents))
    targets = jax.nn.one_hot(labels, generator.num_classes)
    images = jax.jit(generator.decode)(generator.weights, latents, targets)
    return np.asarray(images), labels


def written(found, digits=3) -> str:
    return (
        f"{found.estimate:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    )


def of_mean(values, digits=3) -> str:
    values = np.asarray(values, float)
    return written(interval(values, np.arange(len(values)), rate=False), digits)


def of_rate(values) -> str:
    values = np.asarray(values, bool)
    return written(interval(values, np.arange(len(values)), rate=True))


def alike(images, labels) -> np.ndarray:
    """Gives SSIM of pairs of two images of one class."""
    rng, pairs = np.random.default_rng(SEED), []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        first, second = rng.choice(own, (2, PAIRS))
        pairs.append(np.stack([first, second])[:, first != second])
    first, second = np.concatenate(pairs, axis=1)
    score = jax.jit(jax.vmap(ssim))
    return np.asarray(score(images[first], images[second]))


def reach(generator: Generator, images, labels) -> np.ndarray:
    """Finds the nearest image [n, h, w, c] that the generator makes of any latent."""
    targets = jax.nn.one_hot(labels, generator.num_classes)
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

    def errors(latents):
        made = generator.decode(generator.weights, latents, targets)
        return jnp.mean((made - images) ** 2, axis=(1, 2, 3))

    @jax.jit
    def search(latents):
        def step(carry, _):
            latents, state = carry
            grads = jax.grad(lambda z: jnp.sum(errors(z)))(latents)
            moves, state = optimiser.update(grads, state)
            return (optax.apply_updates(latents, moves), state), None

        carry = latents, optimiser.init(latents)
        (latents, _), _ = jax.lax.scan(step, carry, length=STEPS)
        made = generator.decode(generator.weights, latents, targets)
        return made, errors(latents)

    shape = (len(images), generator.latents)
    rngs = jax.random.split(jax.random.key(SEED), STARTS)
    found = [search(0.5 * jax.random.normal(rng, shape)) for rng in rngs]
    made, missed = (np.stack(each) for each in zip(*found, strict=True))
    return made[np.argmin(missed, axis=0), np.arange(len(images))]


def line_of_reach(kind: str, guesses, truth) -> str:
    """Writes the line of guesses [n, h, w, c] of the truth."""
    score = jax.jit(jax.vmap(ssim))
    error = np.mean((guesses - truth) ** 2, axis=(1, 2, 3))
    line = kind, str(len(truth)), of_mean(error, 4), of_mean(score(guesses, truth))
    return "| " + " | ".join(line) + " |"


def reach_of_held_out(name: str) -> str:
    """Writes the line of a generator's reach of public images it was not trained on.

    Raises:
      ValueError: if they are not all public: the seed of its training is another.
    """
    generator = read(name)
    origin = generator.origin
    dataset = data.load(origin.dataset, shape=generator.shape)
    public, _, held_out = split(len(dataset), SEED)
    if not np.array_equal(public, origin.public):
        raise ValueError(f"{name} has another public half than that of seed {SEED}")
    truth, labels = dataset.fetch(np.sort(held_out))
    return line_of_reach(f"best of {name}", reach(generator, truth, labels), truth)


def measure(name: str, lines: list[str], reached: list[str]):
    """Writes the lines of one generator; gives what its picture shows."""
    generator = read(name)
    (seen, seen_labels), (unseen, labels) = parts_of(generator)
    made, made_labels = make(generator)
    judge = SVC(C=10).fit(seen.reshape(len(seen), -1), seen_labels)
    trees = NearestNeighbors(n_neighbors=1).fit(seen.reshape(len(seen), -1))
    limit = None
    nearest = {}
    for kind, images, told in (
        (f"private {generator.origin.dataset}", unseen, labels),
        (f"made by {name}", made, made_labels),
    ):
        flat = images.reshape(len(images), -1)
        distances, rows = trees.kneighbors(flat)
        distances = distances[:, 0] / flat.shape[1] ** 0.5
        nearest[kind] = seen[rows[:, 0]]
        limit = np.percentile(distances, COPY) if limit is None else limit
        line = (
            kind,
            str(len(images)),
            of_rate(judge.predict(flat) == told),
            f"{np.median(distances):.3f}",
            of_rate(distances < limit),
            of_mean(alike(images, told)),
        )
        lines.append("| " + " | ".join(line) + " |")
    rows = np.random.default_rng(SEED + 1).permutation(len(unseen))[:SOUGHT]
    truth, of_truth = unseen[rows], labels[rows]
    means = np.stack([seen[seen_labels == label].mean(axis=0) for label in of_truth])
    best = reach(generator, truth, of_truth)
    reached.append(line_of_reach(f"best of {name}", best, truth))
    reached.append(line_of_reach("mean of the class", means, truth))
    some = [
        np.flatnonzero(made_labels == k % generator.num_classes)[k]
        for k in range(SHOWN)
    ]
    return (
        ("made", made[some]),
        ("nearest trained", nearest[f"made by {name}"][some]),
        ("private", truth[:SHOWN]),
        ("its best", best[:SHOWN]),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list_decoders())
    parser.add_argument("--images", type=Path, help="picture to write")
    parser.add_argument("--held-out", action="store_true", help="see above")
    options = parser.parse_args()
    if options.held_out:
        print("| reach of public images | n | MSE | SSIM |\n|---|---|---|---|")
        for name in options.names:
            print(reach_of_held_out(name), flush=True)
        return
    lines, reached, pictures = [], [], {}
    for name in options.names:
        pictures[name] = measure(name, lines, reached)
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    print("\n".join(lines))
    print("\n| reach | n | MSE | SSIM |\n|---|---|---|---|")
    print("\n".join(reached))
    if options.images:
        draw(pictures, options.images)


def draw(pictures, path: Path):
    """Draws made images with their nearest trained ones, and what is reached."""
    rows = [(name, *row) for name, kinds in pictures.items() for row in kinds]
    figure, axes = plt.subplots(
        len(rows), SHOWN, figsize=(SHOWN * 0.75 + 1.6, len(rows) * 0.75)
    )
    for line, (name, kind, images) in zip(axes, rows, strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(
            f"{name}\n{kind}", rotation=0, ha="right", va="center", fontsize=7
        )
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
