"""The gates of a lock in front of a transformer's first attention, off one gradient.

Letters: d width, T places, U tokens, N = U T pairs of a token and a place.

What the locked norm gives, x, is public of every pair; the attention is fed
``u = scale * x + shift``. The weight and bias gradients of queries, keys and values
have columns in the span of the [u; 1] of the batch (`kljax.attacks.closed_form.spans`),
so what is outside of that span in [u; 1] is 0: equations that are linear in the gates.

By themselves these leave much open: a scale of 0 with any shift in the span solves
them, whatever the pairs are. In a causal network the first token of a sentence attends
to itself alone. Behind the shortcut there is then ``z = z0 + u W``, of which z0 and W
are public, and the dense layer behind the second norm is fed what is along z, but for
the norm's own shift. So what is outside of the span of that layer's gradient in z is 0,
and this is linear, too, and not solved by a scale of 0. The two together determine all
gates, by a few pairs: of rank r, each gives d + 1 - r equations for the 2 d unknowns.
Two sentences have to begin with different tokens: one first token says its own u, and
leaves the scale its factor.

Which pairs there are is first taken from the gradients of the embeddings
(`kljax.attacks.closed_form.token_places`), and then from the equations themselves
(`kljax.attacks.closed_form.gate_equations`). All of this is kljax's own.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.attacks.closed_form.attention_inputs import (
    ATTENTION,
    POSITIONS,
    PROJECTIONS,
    draw_weights,
    is_causal,
)
from kljax.attacks.closed_form.gate_equations import (
    Equations,
    fit_gates,
    make_equations,
)
from kljax.attacks.closed_form.gate_peeling import Peeled
from kljax.attacks.closed_form.layer_input import float64, to_float64
from kljax.attacks.closed_form.spans import find_span
from kljax.attacks.closed_form.token_places import find_token_places
from kljax.attacks.setting import Setting
from kljax.core.decompositions import one_at_a_time
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array, Gate, Model, Params, Path, Stats
from kljax.threat import View

FIRST = ATTENTION.format(0)
NORM, DENSE = "blocks/0/norm2", "blocks/0/expand"
NAME = "secret strategy 'peel' of a transformer of sentences"
SAME = 1e-4  # relative: rounding, where a network is compared with its form


class PublicValues(NamedTuple):
    """What everybody can compute of N pairs.

    Attributes:
      normed: x [N, d].
      summed: z0 [N, d], as if the pair stood at the first place.
      moves: W [d, d].
    """

    normed: Array
    summed: Array
    moves: Array


class Dense(NamedTuple):
    """Gradients of a dense layer, or its parameters."""

    kernel: Array  # [d, m]
    bias: Array  # [m]


def outside_of(grads: Dense, noisy: bool) -> tuple[Array, Array]:
    """Finds what is outside of the span that a dense layer's inputs have with a 1.

    Args:
      grads: of the layer.
      noisy: whether noise was added, see `find_span`.

    Returns:
      [d + 1, d + 1] orthonormal columns or zeros, and [] how many are none.
    """
    columns = jnp.concatenate([grads.kernel, grads.bias[None]])
    span = find_span(columns, noisy=noisy)
    outside = jnp.arange(len(columns)) >= span.rank
    return jnp.where(outside[None], span.directions, 0.0), jnp.sum(outside)


def attention_equations(outside: Array, count: int) -> Equations:
    """Makes those of N pairs from the attention's gradient: [u; 1] is in its span."""
    offsets = jnp.broadcast_to(outside[-1:], (count, len(outside)))
    return make_equations(outside[:-1].T, offsets)


def first_place_equations(
    outside: Array, norm: Gate, public: Array, moves: Array
) -> Equations:
    """Makes those of pairs at the first place, from the gradient behind a norm.

    Args:
      outside: of the span of the dense layer's inputs, [d + 1, d + 1].
      norm: scale and shift of the norm in front of it.
      public: z0 [N, d].
      moves: W [d, d].
    """

    def scaled(z: Array) -> Array:
        return (z - jnp.mean(z, axis=-1, keepdims=True)) * norm.scale[None]

    # What is added after z was divided by its own spread: any multiple of it fits.
    added = outside.T @ jnp.append(norm.shift, 1.0)
    power = jnp.sum(added**2)
    along = added / jnp.where(power > 0, jnp.sqrt(power), 1.0)
    outside = outside - jnp.outer(outside @ along, along)
    outside = outside[:-1] / jnp.linalg.norm(scaled(public), axis=1).mean()
    return make_equations((scaled(moves) @ outside).T, scaled(public) @ outside)


def sentence_peeling(setting: Setting) -> Callable[[View], Peeled]:
    """Makes the attack on the gates of a lock in front of the first attention.

    Neither private key nor lock weights are needed, nor a label. Indifferent to the
    length of the gradient. Where what fits does not determine the gates, as where all
    sentences begin with the same token, these are given as 1 and 0, with an infinite
    deviation and a residual of 1.

    Args:
      setting: of the attack, on B sentences of one client.

    Returns:
      The attack. Its gates are [d] of the locked site. Its residual, of the first
      attention, is the weighted mean over pairs of what ``scale * (x - mean)`` has
      outside of the gradient's span, as a share of ``scale * x``, in squared norm.

    Raises:
      ValueError: for inputs that are no sentences, a lock of other sites, a network
        that is not causal or of another form, and anything but the gradient of one
        client.
    """
    _check(setting)
    params, _ = setting.task.shapes()
    ((site, width),) = setting.defence.sites
    (length,) = setting.task.inputs.shape
    (table,) = setting.task.inputs.search.unexplained
    # Of a tied table the token that follows a sentence has a long row, too.
    count = min(len(params[table]), setting.threat.knowledge.examples * (length + 1))
    noisy = setting.defence.log_prob is not None

    @one_at_a_time
    def read_places(embeddings: Array, positions: Array) -> tuple[Array, Array]:
        with float64(True):
            found = find_token_places(*to_float64((embeddings, positions)), count)
            near = jnp.maximum(0.0, 1 - 2 * jnp.abs(found.counts - 1))
            return found.tokens, near.reshape(-1).astype(jnp.float32)

    @one_at_a_time
    def fit(own: Dense, dense: Dense, norm: Gate, public: PublicValues, near: Array):
        with float64(True):
            own, dense, norm, public, near = to_float64(
                (own, dense, norm, public, near)
            )
            outside, left = outside_of(own, noisy)
            behind, _ = outside_of(dense, noisy)
            is_first = (jnp.arange(len(near)) % length == 0).astype(near.dtype)
            found = fit_gates(
                attention_equations(outside, len(near)),
                first_place_equations(behind, norm, public.summed, public.moves),
                public.normed,
                near,
                is_first,
            )
            pairs = jnp.sum(found.fits) - 1  # one of them is what others differ from
            enough = (pairs * left > 2 * width) & found.first_fits & found.determined
            settled = (found.gate, found.deviation, found.residual)
            nothing = (
                Gate(jnp.ones(width), jnp.zeros(width)),
                Gate(*jnp.full((2, width), jnp.inf)),
                jnp.asarray(1.0),
            )
            return jax.tree.map(
                lambda value, none: jnp.where(enough, value, none).astype(jnp.float32),
                settled,
                nothing,
            )

    def attack(view: View) -> Peeled:
        # What is hidden is NaN: no equations then, and nothing is found.
        grads = {path: jnp.nan_to_num(leaf) for path, leaf in view.grads.model.items()}
        tokens, near = read_places(grads[table], grads[POSITIONS][:length])
        public = _public_values(setting, view, tokens)
        gate, deviation, residual = fit(
            _of_attention(grads),
            Dense(grads[f"{DENSE}/kernel"], grads[f"{DENSE}/bias"]),
            Gate(*(view.public.model[f"{NORM}/{name}"] for name in ("scale", "bias"))),
            public,
            near,
        )
        return Peeled({site: gate}, {site: deviation}, {FIRST: residual}, {})

    return attack


def _of_attention(grads: Params) -> Dense:
    """Puts queries, keys and values side by side, which are one dense layer."""
    paths = [f"{FIRST}/{name}" for name in PROJECTIONS]
    kernels = [grads[f"{path}/kernel"] for path in paths]
    biases = [grads[f"{path}/bias"].reshape(-1) for path in paths]
    flat = [kernel.reshape(len(kernel), -1) for kernel in kernels]
    return Dense(jnp.concatenate(flat, axis=1), jnp.concatenate(biases))


def _public_values(setting: Setting, view: View, tokens: Array) -> PublicValues:
    ((site, width),) = setting.defence.sites
    (length,) = setting.task.inputs.shape
    public = view.public.model, view.stats
    none = jnp.zeros(width)

    def values(gate: Gate, sentences: Array) -> tuple[Array, ...]:
        return _tapped(setting.task.model, *public, site, sentences, gate)

    def summed(shift: Array) -> Array:
        return values(Gate(none, shift), sentences[:1])[2][0, 0]

    sentences = jnp.broadcast_to(tokens[:, None], (len(tokens), length))
    # The norm itself, and what there is without the attention's input.
    gates = Gate(jnp.stack([none + 1, none]), jnp.stack([none, none]))
    taps = jax.lax.map(lambda gate: values(gate, sentences), gates)
    return PublicValues(
        taps[0][0].reshape(-1, width),
        jnp.repeat(taps[2][1][:, 0], length, axis=0),
        jax.jacfwd(summed)(none).T,
    )


def _tapped(
    model: Model, params: Params, stats: Stats, site: Path, sentences: Array, gate: Gate
) -> tuple[Array, ...]:
    """Gives four values [N, T, d] of the network with a gate.

    They are what the site gives, and what the attention, the second norm and the dense
    layer behind that are fed.
    """
    names = (site, f"{FIRST}/query:input", f"{NORM}:input", f"{DENSE}:input")
    taps = model.apply(
        params, stats, sentences, gates={site: gate}, taps=names, train=False
    ).taps
    return tuple(taps[name] for name in names)


def _check(setting: Setting) -> None:
    """Refuses what has no such equations."""
    knows = setting.threat.knowledge
    if knows.upload != "gradient":
        raise ValueError(
            f"{NAME} needs the gradient of one client, the threat model has "
            f"upload={knows.upload!r}"
        )
    if setting.task.inputs.kind != "text":
        raise ValueError(
            f"{NAME} needs inputs that are sentences, got {setting.task.inputs.kind!r}"
        )
    sites = [site for site, _ in setting.defence.sites]
    if len(sites) != 1:
        raise ValueError(f"{NAME} needs a lock of one site, got the sites {sites}")
    ((site, width),) = setting.defence.sites
    misplaced = ValueError(
        f"{NAME} finds the gates of what the first attention alone is fed, with a norm "
        f"{NORM!r} behind the shortcut around it; the site {site!r} is not, or the "
        "network is of another form"
    )
    if site == NORM:  # which has no scale of its own then
        raise misplaced
    params, _ = setting.task.shapes()
    dense = [f"{FIRST}/{name}" for name in PROJECTIONS] + [DENSE]
    needed = [f"{path}/{part}" for path in dense for part in ("kernel", "bias")]
    needed += [f"{NORM}/scale", f"{NORM}/bias", POSITIONS]
    needed += setting.task.inputs.search.unexplained
    missing = [path for path in needed if path not in params]
    if missing:
        raise ValueError(
            f"{NAME} needs a network such as 'gpt-small', and this one has no "
            f"{', '.join(missing)}"
        )
    (length,) = setting.task.inputs.shape
    model = setting.task.model
    if not is_causal(model, f"{NORM}:input", length):
        raise ValueError(
            f"{NAME} needs a causal network, such as 'gpt-small': where a first token "
            "sees others, its attention is not linear in the gates"
        )
    fits = width == len(params[f"{NORM}/scale"])
    if not (fits and form_error(model, site, length) <= SAME):  # it may be NaN, too
        raise misplaced


@functools.lru_cache(maxsize=32)
def form_error(model: Model, site: Path, length: int) -> float:
    """Gives how far a network is from the form that the equations have, relative.

    Asked of the network itself, with any weights and gates. NaN where the site has no
    part in what the first attention gives.
    """

    def relative(value: Array, expected: Array) -> Array:
        return jnp.linalg.norm(value - expected) / jnp.linalg.norm(expected)

    def standardised(x: Array) -> Array:
        x = x - jnp.mean(x)
        return x / jnp.linalg.norm(x)

    def largest_error() -> Array:
        params, stats = draw_weights(model)
        sentences = jnp.zeros((1, length), jnp.int32)
        width = len(params[f"{NORM}/scale"])
        rng = jax.random.fold_in(fixed_rng("diagnosis"), len(params))
        scale, one, other = jax.random.normal(rng, (3, width))
        none = jnp.zeros(width)
        gates = Gate(
            jnp.stack([none + 1, scale, none, none, none, none]),
            jnp.stack([none, one, none, one, other, one + other]),
        )
        site_gives, fed, z, given = (
            value[:, 0, 0]
            for value in jax.lax.map(
                lambda gate: _tapped(model, params, stats, site, sentences, gate), gates
            )
        )
        back = (given[1] - params[f"{NORM}/bias"]) / params[f"{NORM}/scale"]
        errors = (
            relative(fed[1], scale * site_gives[0] + one),
            relative(z[5] - z[2], z[3] + z[4] - 2 * z[2]),
            relative(standardised(back), standardised(z[1])),
        )
        return jnp.max(jnp.stack(errors))

    with jax.ensure_compile_time_eval():
        return float(jax.jit(largest_error)())
