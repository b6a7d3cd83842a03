"""Wasserstein training of a decoder, with a gradient penalty: the other way.

``train_generator.py NAME --loss wgan-gp`` trains by it. Reference: Gulrajani et al.,
"Improved Training of Wasserstein GANs" (NeurIPS 2017), Algorithm 1: penalty 10, five
critic steps for one of the generator, Adam 1e-4 with (0, .9); here at 2e-4. GGL's
generator of small images was trained so (Li et al. 2022). Differs: the label is told to
both, and the critic is dense.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.models.decoders import Account, decode_logits, init_decoder

PENALTY, CRITIC_STEPS, RATE, BETAS = 10.0, 5, 2e-4, (0.0, 0.9)
WIDTHS = (512, 256)
SEGMENT = 250


def init_critic(account: Account, rng):
    """Draws the critic's dense layers, [(kernel, bias), ...]."""
    entries = int(np.prod(account.shape)) + account.num_classes
    sizes = (entries, *WIDTHS, 1)
    return [
        (jax.random.normal(jax.random.fold_in(rng, i), pair) * (2 / pair[0]) ** 0.5,
         jnp.zeros(pair[1]))
        for i, pair in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
    ]  # fmt: skip


def criticise(params, images, targets):
    """Gives [B]: high for what looks real."""
    x = jnp.concatenate([images.reshape(len(images), -1), targets], axis=-1)
    for index, (kernel, bias) in enumerate(params):
        x = x @ kernel + bias[None]
        x = jax.nn.leaky_relu(x, 0.2) if index < len(params) - 1 else x
    return x[:, 0]


def critic_loss(params, made, real, targets, shares):
    """Gives []: made minus real, plus the penalty at mixtures by shares [B]."""
    at = shares[:, None, None, None]
    between = at * real + (1 - at) * made
    slopes = jax.vmap(
        jax.grad(lambda x, y: criticise(params, x[None], y[None])[0])
    )(between, targets)  # fmt: skip
    lengths = jnp.sqrt(jnp.sum(slopes**2, axis=(1, 2, 3)) + 1e-12)
    apart = criticise(params, made, targets) - criticise(params, real, targets)
    return jnp.mean(apart) + PENALTY * jnp.mean((lengths - 1) ** 2)


def train_adversarially(account: Account, images, labels, *, batch: int):
    """Trains a decoder for `account.steps` steps of its own; gives its weights."""
    images = jnp.asarray(images)
    targets = jnp.eye(account.num_classes)[jnp.asarray(labels)]
    adam = optax.adam(RATE, *BETAS)
    rng, rng_ours, rng_critic = jax.random.split(jax.random.key(account.seed), 3)

    def make(weights, rng, told):
        latents = jax.random.normal(rng, (len(told), account.latents))
        return jax.nn.sigmoid(decode_logits(account, weights, latents, told))

    def step(carry, number):
        (ours, critic), (state, critic_state) = carry
        for turn in range(CRITIC_STEPS):
            at = jax.random.fold_in(rng, number * (CRITIC_STEPS + 1) + turn)
            rngs = jax.random.split(at, 3)
            rows = jax.random.randint(rngs[0], (batch,), 0, len(images))
            made = make(ours, rngs[1], targets[rows])
            shares = jax.random.uniform(rngs[2], (batch,))
            value, grads = jax.value_and_grad(critic_loss)(
                critic, made, images[rows], targets[rows], shares
            )
            moves, critic_state = adam.update(grads, critic_state)
            critic = optax.apply_updates(critic, moves)
        at = jax.random.fold_in(rng, number * (CRITIC_STEPS + 1) + CRITIC_STEPS)
        rng_rows, rng_noise = jax.random.split(at)
        told = targets[jax.random.randint(rng_rows, (batch,), 0, len(images))]
        grads = jax.grad(
            lambda w: -jnp.mean(criticise(critic, make(w, rng_noise, told), told))
        )(ours)
        moves, state = adam.update(grads, state)
        ours = optax.apply_updates(ours, moves)
        return ((ours, critic), (state, critic_state)), value

    both = init_decoder(account, rng_ours), init_critic(account, rng_critic)
    carry = both, tuple(adam.init(params) for params in both)
    segment = min(SEGMENT, account.steps)
    run = jax.jit(lambda carry, at: jax.lax.scan(step, carry, at + jnp.arange(segment)))
    start = time.perf_counter()
    for done in range(0, account.steps, segment):
        carry, values = run(carry, done)
        seconds = time.perf_counter() - start
        print(
            f"step {done + segment}: {values.mean():.4g}, {seconds:.0f} s", flush=True
        )
    return carry[0][0]
