"""What a denoiser adds after an attack, and what it invents.

    python experiments/denoiser.py [--data digits fashion_mnist] [--victims 8]

What: one image per victim, LeNet of kljax at the denoiser's own size, one channel,
weights U(-.5, .5), labels recovered. Victims are images that the denoiser was not
trained on. Attacks: DLG's with the label read off (``idlg``, L-BFGS) and Inverting
Gradients (signed Adam, cosine, total variation). Each upload is attacked once; what the
attack found is then cleaned in several ways, all without the truth but the last:

- *as it is*: nothing.
- *estimated*: `--denoise NAME`, by the image's finest detail.
- *matching*: `--denoise NAME=matching`, by the attacker's own loss.
- *median filter*: of 3x3 pixels, which has learnt nothing.
- *best of all, by the truth*: of the strengths that ``matching`` tries, no attack: how
  much there is to gain.

Floors: *noise, cleaned*: a picture of nothing but noise as the denoiser has it, of
strength .4; *nearest of 1,000*: of as many public images the one the truth likes best,
no attack; *mean of the public*. SSIM, its interval of 95 % by the bootstrap over
victims, and squared error.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import median_filter

from kljax import LeakConfig, data, leak
from kljax.attacks.denoising import STRENGTHS, cleaned, estimated_noise
from kljax.metrics import interval, ssim
from kljax.models.flows import FOLDER, read_flow

SIDES = {"digits": 8, "fashion_mnist": 28}
ARMS = (
    "none",
    "gaussian-noise=0.01",
    "gaussian-noise=0.03",
    "magnitude-pruning=0.9",
    "norm-clipping=1",
)
STEPS = {"idlg": 200, "inverting-gradients": 600}
MOST, NOISE = 1000, 0.4
HEAD = ("victims", "attack", "arm", "image", "SSIM", "squared error", "strength")
score = jax.jit(jax.vmap(ssim))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--attacks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", help="npz file to write what was found into")
    parser.add_argument("--picture", help="of Inverting Gradients under the most noise")
    options = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    kept = {}
    for name in options.data:
        for attack in options.attacks:
            say(name, attack, options, kept)
        floors(name, options, kept)
    if options.images:
        np.savez_compressed(options.images, **kept)
    if options.picture:
        draw(kept, options)


def say(name: str, attack: str, options, kept: dict):
    """Prints the lines of one attack on one kind of victims."""
    flow = read_flow(FOLDER / f"{name}.npz")
    done = leak(
        LeakConfig(
            data=name,
            attack=attack,
            denoise=f"{name}=matching",
            steps=STEPS[attack],
            arms=ARMS,
            labels="recovered",
            victims=options.victims,
            seed=options.seed,
            image_size=SIDES[name],
            channels=1,
        )
    )
    truth = done.victims.inputs[:, 0]
    clean = jax.jit(lambda images, strength: cleaned(flow, images, strength))
    each = jax.jit(jax.vmap(lambda image, s: cleaned(flow, image[None], s)[0]))
    estimate = jax.jit(jax.vmap(lambda image: estimated_noise(image[None])))
    for place, arm in enumerate(ARMS):
        found = done.arms[place].attacked.reconstruction
        images = np.asarray(found.info["before_denoising"][:, 0])
        tried = np.stack([np.asarray(clean(images, s)) for s in STRENGTHS])
        best = np.argmax([score(one, truth) for one in tried], axis=0)
        levels = np.asarray(estimate(images))
        rows = {
            "as it is": (images, np.zeros(len(images))),
            "estimated": (each(images, levels), levels),
            "matching": (found.inputs[:, 0], found.numbers["denoising_strength"]),
            "median filter": (median_filter(images, (1, 3, 3, 1)), None),
            "best of all, by the truth": (
                tried[best, np.arange(len(truth))],
                np.array(STRENGTHS)[best],
            ),
        }
        for kind, (guess, strength) in rows.items():
            line(name, attack, arm, kind, guess, truth, strength)
            kept[f"{name}/{attack}/{arm}/{kind}"] = np.asarray(guess)
        kept[f"{name}/truth"] = truth


def draw(kept: dict, options):
    """Draws what the first victims become."""
    rows = []
    for name in options.data:
        at = f"{name}/inverting-gradients/{ARMS[2]}/"
        rows.append((f"{name}: truth", kept[f"{name}/truth"]))
        rows += [(kind.partition(at)[2], kept[kind]) for kind in kept if at in kind]
        for kind in ("nothing but noise", "noise, cleaned"):
            rows.append((kind, kept[f"{name}/floor/{kind}"]))
    shown = min(8, options.victims)
    figure, axes = plt.subplots(
        len(rows), shown, figsize=(7.6, 0.78 * len(rows)), squeeze=False
    )
    for line_of, (kind, images) in zip(axes, rows, strict=True):
        for axis, image in zip(line_of, images[:shown], strict=True):
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        line_of[0].set_ylabel(kind, rotation=0, ha="right", va="center", fontsize=7)
    figure.tight_layout(pad=0.2)
    figure.savefig(options.picture, dpi=100)


def floors(name: str, options, kept: dict):
    """Prints what is guessed without any upload."""
    flow, truth = read_flow(FOLDER / f"{name}.npz"), kept[f"{name}/truth"]
    rng = np.random.default_rng(options.seed)
    noise = np.clip(0.5 + NOISE * rng.standard_normal(truth.shape), 0, 1)
    noise = jnp.asarray(noise, jnp.float32)
    dataset = data.load(name, shape=flow.shape)
    rows = rng.permutation(np.flatnonzero(flow.origin.public))[:MOST]
    public = dataset.fetch(np.sort(rows))[0]
    apart = np.mean((truth[:, None] - public[None]) ** 2, axis=(2, 3, 4))
    guesses = {
        "nothing but noise": noise,
        "noise, cleaned": cleaned(flow, noise, jnp.asarray(NOISE)),
        f"nearest of {len(public)}, by the truth": public[apart.argmin(axis=1)],
        "mean of the public": np.broadcast_to(public.mean(axis=0), truth.shape),
    }
    for kind, guess in guesses.items():
        line(name, "-", "floor", kind, guess, truth, None)
        kept[f"{name}/floor/{kind}"] = np.asarray(guess)


def line(name, attack, arm, kind, guess, truth, strength):
    guess = np.clip(np.asarray(guess), 0, 1)
    similar = np.asarray(score(guess, truth), float)
    of = interval(similar, np.arange(len(similar)), rate=False)
    error = np.mean((guess - truth) ** 2)
    shown = "-" if strength is None else f"{np.mean(strength):.3f}"
    ssims = f"{of.estimate:.3f} [{of.low:.3f}, {of.high:.3f}]"
    row = name, attack, arm, kind, ssims, f"{error:.4f}", shown
    print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
