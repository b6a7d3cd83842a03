"""What is guessed by whoever has a generator and the label, and no gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from kljax.attacks.latents import resized
from kljax.models.decoders import FOLDER, read_decoder

AVERAGED = 1000  # draws


def guess_without_gradient(
    name: str, truth, labels, *, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Makes the guesses of whoever has the generator and the label alone.

    Args:
      name: of the generator.
      truth: images [N, h, w, c] of the victims; it chooses the best of the generator.
      labels: [N].
      draws: images made of each label.
      seed: of them.

    Returns:
      Images [N, h, w, c]: the mean of the first draws, and the best of all.
    """
    generator = read_decoder(FOLDER / f"{name}.npz")
    shape = truth.shape[1:]

    @jax.jit
    def images(rng, label):
        latents = jax.random.normal(rng, (draws, generator.latents))
        targets = jax.nn.one_hot(jnp.full(draws, label), generator.num_classes)
        return resized(generator.decode(generator.weights, latents, targets), shape)

    found = {"no gradient": [], "best of the generator": []}
    for index, (image, label) in enumerate(zip(truth, labels, strict=True)):
        made = images(jax.random.fold_in(jax.random.key(seed), index), label)
        found["no gradient"].append(jnp.mean(made[:AVERAGED], axis=0))
        distances = jnp.mean((made - image[None]) ** 2, axis=(1, 2, 3))
        found["best of the generator"].append(made[jnp.argmin(distances)])
    return {name: np.asarray(jnp.stack(guesses)) for name, guesses in found.items()}
