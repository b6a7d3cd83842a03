"""Encoder-decoders: a traced architecture is the network that has no masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.attacks import architectures, encoder_decoders
from kljax.attacks.architectures import (
    BICUBIC,
    BILINEAR,
    DENSE,
    DEPTHWISE,
    NEAREST,
    NONE,
    SEPARABLE,
    SHUFFLED,
    STACKED,
    TRANSPOSED,
    Architecture,
    Space,
    check_space,
    fitting_scales,
)

SPACE = Space((8, 12, 1), channels=16, scales=2, kernel=3, narrowest=8)
NOISE = np.random.default_rng(0).normal(size=(2, 8, 12, 1)).astype(np.float32)

# --- by hand: plain loops, and nothing built that is not used -------------------------


def convolved(x, kernel, stride=1):
    side = kernel.shape[0]
    pad = side // 2
    wide = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = x.shape[1] // stride, x.shape[2] // stride
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i, j in np.ndindex(side, side):
        seen = wide[:, i : i + x.shape[1] : stride, j : j + x.shape[2] : stride]
        out += np.einsum("bhwc,cf->bhwf", seen, kernel[i, j])
    return out


def normalised(x, norm, width):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = (x - mean) / np.sqrt(variance + 1e-5)
    return x * norm["scale"][:width] + norm["bias"][:width]


def leaky(x, slope=0.2):
    return np.where(x < 0, slope * x, x)


def block_by_hand(x, block, width, stride=1):
    kernel = block["kernel"][:, :, : x.shape[-1], :width]
    return leaky(normalised(convolved(x, kernel, stride), block["norm"], width))


def doubled_by_hand(x, one, cell):
    width = int(one.width)
    count, height, wide, _ = x.shape
    slope, side = float(one.slope), int(one.kernel)
    if one.doubling == SHUFFLED:
        out = np.zeros((count, 2 * height, 2 * wide, width // 4))
        for a, b in np.ndindex(2, 2):
            out[:, a::2, b::2] = x[..., 2 * a + b :: 4]
    elif one.doubling == TRANSPOSED:
        out = np.zeros((count, 2 * height, 2 * wide, width))
        out[:, ::2, ::2] = x
    elif one.doubling == NEAREST:
        out = x.repeat(2, axis=1).repeat(2, axis=2)
    else:
        rows = MATRICES[int(one.doubling)](height)
        columns = MATRICES[int(one.doubling)](wide)
        out = np.einsum("Hh,Ww,bhwc->bHWc", rows, columns, x)
    if one.doubling != TRANSPOSED:
        out = leaky(out, slope)
    if one.convolution == NONE:
        return out
    cut = slice((3 - side) // 2, (3 + side) // 2)
    fed = out.shape[-1]
    if one.convolution in (DENSE, STACKED):
        kernel = np.asarray(cell["dense"])[cut, cut]
        if one.convolution == STACKED:
            group = fed // 4
            out = sum(out[..., group * n : group * (n + 1)] for n in range(4))
            fed = group
        out = convolved(out, kernel[:, :, :fed, :width])
    else:
        depth = np.asarray(cell["depth"])[cut, cut]
        out = np.concatenate(
            [
                convolved(out[..., c : c + 1], depth[..., None, c : c + 1])
                for c in range(fed)
            ],
            axis=-1,
        )
        if one.convolution == SEPARABLE:
            out = out @ np.asarray(cell["point"])[:fed, :width]
    return leaky(out, slope)


def bilinear_by_hand(side):
    matrix = np.zeros((2 * side, side))
    for n in range(side):  # pixel n of the fine map, left and right half
        matrix[2 * n, n] += 0.75
        matrix[2 * n, max(n - 1, 0)] += 0.25
        matrix[2 * n + 1, n] += 0.75
        matrix[2 * n + 1, min(n + 1, side - 1)] += 0.25
    return matrix


def bicubic_by_hand(side):
    """Of torch.nn.functional.interpolate: the weights at a quarter of a pixel."""
    taps = {-2: -0.03515625, -1: 0.26171875, 0: 0.87890625, 1: -0.10546875}
    matrix = np.zeros((2 * side, side))
    for n in range(side):
        for offset, weight in taps.items():
            matrix[2 * n, np.clip(n + offset, 0, side - 1)] += weight
            matrix[2 * n + 1, np.clip(n - offset, 0, side - 1)] += weight
    return matrix


MATRICES = {BILINEAR: bilinear_by_hand, BICUBIC: bicubic_by_hand}


def network_by_hand(one, weights, noise):
    """From the definition, with the first `width` channels alone."""
    width, skips = int(one.width), np.asarray(one.skips)
    block = functools.partial(block_by_hand, width=width)
    double = functools.partial(doubled_by_hand, one=one)

    def brought(source, j, i):
        """Brings what has 1 / 2^j of the image's sides to 1 / 2^i of them."""
        if i == j:
            return block(source, weights["same"][i])
        for level in range(j, i):
            source = block(source, weights["down"][level], stride=2)
        for level in reversed(range(i, j)):
            source = double(source, cell=weights["rise"][level])
        return source

    sources = [noise]
    for encoder in weights["encoder"]:
        x = block(sources[-1], encoder["first"], stride=2)
        sources.append(block(x, encoder["second"]))
    x = sources.pop()
    for i in reversed(range(len(skips))):
        x = double(x, cell=weights["up"][i])
        for j, source in enumerate(sources):
            if skips[i, j]:
                x = x + brought(source, j, i)
        x = decoded(x, weights["decoder"][i], width)
    output = weights["output"]
    x = convolved(x, output["kernel"][:, :, :width]) + output["bias"]
    return 1 / (1 + np.exp(-x))


def decoded(x, decoder, width):
    x = normalised(x, decoder["norm"], width)
    for part in ("first", "second", "third"):
        x = block_by_hand(x, decoder[part], width)
    return x


# --------------------------------------------------------------------------------------


@functools.cache
def supernet():
    def run(one, rng):
        weights = encoder_decoders.draw_weights(rng, SPACE, one)
        # Norms that are not what they begin with.
        norms = count_norms(encoder_decoders.name_weights(SPACE, one, weights))
        bent = 0.1 * jnp.sin(jnp.arange(norms) + 1.0)
        weights = weights.at[-norms:].add(bent)
        named = encoder_decoders.name_weights(SPACE, one, weights)
        return weights, named, encoder_decoders.generate(SPACE, one, weights, NOISE)

    return quick_jit(run)


def count_norms(named):
    leaves, _ = jax.tree_util.tree_flatten_with_path(named)
    return sum(x.size for path, x in leaves if "norm" in str(path))


def shapes_of(space, one):
    """Gives the named weights of a network, as their shapes."""

    def draw(rng):
        weights = encoder_decoders.draw_weights(rng, space, one)
        assert weights.size == encoder_decoders.count_weights(space, one)
        return encoder_decoders.name_weights(space, one, weights)

    return jax.eval_shape(draw, jax.random.key(0))


def architecture(skips, *numbers):
    return Architecture(np.array(skips, np.float32), *map(np.float32, numbers))


CASES = [
    architecture([[0, 0], [0, 0]], 16, BILINEAR, DENSE, 3, 0.2),
    architecture([[1, 1], [1, 1]], 16, BICUBIC, SEPARABLE, 3, 0.0),
    architecture([[0, 1], [0, 0]], 8, NEAREST, STACKED, 3, 0.2),
    architecture([[0, 0], [1, 0]], 16, SHUFFLED, DENSE, 1, 1.0),
    architecture([[1, 0], [0, 1]], 16, SHUFFLED, STACKED, 3, 0.2),
    architecture([[1, 1], [0, 1]], 8, TRANSPOSED, DENSE, 3, 0.2),
    architecture([[1, 0], [1, 0]], 8, BILINEAR, DEPTHWISE, 1, 0.0),
    architecture([[0, 1], [1, 0]], 16, BICUBIC, NONE, 1, 0.2),
    architecture([[0, 1], [1, 1]], 8, SHUFFLED, SEPARABLE, 3, 0.0),
]


@pytest.mark.parametrize("one", CASES, ids=architectures.describe)
def test_a_masked_network_is_the_one_without_what_is_masked(one):
    _, weights, images = jax.device_get(supernet()(one, jax.random.key(1)))
    assert np.std(images) > 0.01
    np.testing.assert_allclose(images, network_by_hand(one, weights, NOISE), atol=1e-5)


def test_a_fixed_architecture_is_the_same_network_and_less_of_a_program():
    one = CASES[0]
    drawn = shapes_of(SPACE, one)
    assert drawn["same"] == [None, None] and drawn["down"] == drawn["rise"] == [None]
    assert set(drawn["up"][0]) == {"dense"}
    _, weights, images = supernet()(one, jax.random.key(1))
    fixed = quick_jit(lambda w: encoder_decoders.run_network(SPACE, one, w, NOISE))
    np.testing.assert_allclose(fixed(weights), images, atol=1e-6)


# Of three scales, with ways that pass one of them by.
PAST = architecture([[0, 0, 1], [1, 0, 1], [1, 1, 0]], 8, BILINEAR, DENSE, 3, 0.0)


def test_ways_of_several_scales_go_from_one_to_the_next():
    space = Space((8, 16, 1), channels=8, scales=3, kernel=3, narrowest=8)
    noise = np.random.default_rng(1).normal(size=(2, *space.shape)).astype(np.float32)

    def run(rng):
        weights = encoder_decoders.draw_weights(rng, space, PAST)
        named = encoder_decoders.name_weights(space, PAST, weights)
        return named, encoder_decoders.generate(space, PAST, weights, noise)

    weights, images = jax.device_get(quick_jit(run)(jax.random.key(1)))
    np.testing.assert_allclose(images, network_by_hand(PAST, weights, noise), atol=1e-5)


@pytest.mark.parametrize(
    "skips",
    [
        np.eye(3),
        PAST.skips,
        [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 1, 0]],
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],
    ],
)
def test_a_fixed_architecture_has_the_weights_of_its_ways_alone(skips):
    space = Space((8, 16, 1), channels=8, scales=3, kernel=1, narrowest=8)
    one = architecture(skips, 8, BILINEAR, NONE, 1, 1.0)
    drawn = shapes_of(space, one)
    wanted = {"same": set(), "down": set(), "rise": set()}
    for i, j in np.argwhere(one.skips):
        wanted["same"] |= {i} if i == j else set()
        wanted["down"] |= set(range(j, i))
        wanted["rise"] |= set(range(i, j))
    for name, levels in wanted.items():
        have = {n for n, part in enumerate(drawn[name]) if part is not None}
        assert have == levels, name


def test_what_is_masked_has_no_gradient():
    one = jax.tree.map(jnp.asarray, CASES[2])

    def total(weights):
        return jnp.sum(encoder_decoders.generate(SPACE, one, weights, NOISE) ** 2)

    weights = quick_jit(lambda rng: encoder_decoders.draw_weights(rng, SPACE, one))(
        jax.random.key(2)
    )
    grads = quick_jit(jax.grad(total))(weights)
    grads = jax.device_get(encoder_decoders.name_weights(SPACE, one, grads))
    for part in ("same", "down"):
        assert not any(np.any(x) for x in jax.tree.leaves(grads[part]))
    assert np.any(grads["rise"][0]["dense"]) and not np.any(grads["up"][0]["depth"])
    # Of 8 channels each second kernel is but the first half.
    kernel = grads["decoder"][0]["second"]["kernel"]
    assert np.any(kernel[:, :, :8, :8])
    assert not np.any(kernel[:, :, 8:]) and not np.any(kernel[..., 8:])


def test_weights_are_drawn_as_torch_does_for_the_channels_in_use():
    for width in (8, 16):
        one = architecture(np.ones((2, 2)), width, SHUFFLED, STACKED, 1, 1.0)
        _, weights, _ = jax.device_get(supernet()(one, jax.random.key(3)))
        limits = {
            9: weights["encoder"][0]["first"]["kernel"],  # one colour
            9 * width: weights["encoder"][1]["first"]["kernel"],
            width: weights["decoder"][0]["third"]["kernel"],
            max(width / 16, 1): weights["up"][0]["dense"],
        }
        for count, kernel in limits.items():
            largest = np.max(np.abs(kernel)) * count**0.5
            assert 0.9 < largest <= 1 + 1e-6
            assert abs(np.mean(kernel)) * count**0.5 < 0.2
    flat = [np.ravel(x)[:4] for x in jax.tree.leaves(weights) if x.size > 16]
    starts = {tuple(np.round(x / np.max(np.abs(x)), 4)) for x in flat if x.std() > 0}
    assert len(starts) == sum(x.std() > 0 for x in flat)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_weights_are_of_the_uniform_numbers_of_jax(count):
    rng = jax.random.key(4)
    mine = quick_jit(lambda r: encoder_decoders.draw_in_memory(r, count))(rng)
    its = quick_jit(lambda r: jax.random.uniform(r, (count,), minval=-1.0))(rng)
    np.testing.assert_array_equal(mine, its)


# --- the space ------------------------------------------------------------------------


def test_architectures_are_drawn_evenly():
    space = SPACE._replace(channels=32)
    drawn = quick_jit(jax.vmap(space.draw))(jax.random.split(jax.random.key(1), 4000))
    assert abs(np.mean(drawn.skips) - 0.5) < 0.02
    assert np.max(np.abs(np.mean(drawn.skips, axis=0) - 0.5)) < 0.05
    widths, counts = np.unique(drawn.width, return_counts=True)
    assert widths.tolist() == [8, 16, 32] and np.ptp(counts) < 200
    rows = np.stack([drawn.doubling, drawn.convolution, drawn.kernel, drawn.slope], 1)
    found = {tuple(row) for row in rows.tolist()}
    assert found == {tuple(row) for row in space.cells().tolist()} and len(found) == 105
    # What the code of GI-NAS cannot build is not there.
    assert not found & {
        (SHUFFLED, c, 1.0, s) for c in (DEPTHWISE, NONE) for s in (1.0, 0.0)
    }


def test_doubling_is_torchs():
    """Rows that torch.nn.functional.interpolate gives, scale_factor 2, of side 4."""
    cubic = architectures_matrix(BICUBIC)
    np.testing.assert_allclose(cubic, bicubic_by_hand(4), atol=1e-7)
    np.testing.assert_allclose(
        cubic[2], [0.2265625, 0.87890625, -0.10546875, 0.0], atol=1e-7
    )
    np.testing.assert_allclose(
        cubic[3], [-0.10546875, 0.87890625, 0.26171875, -0.03515625], atol=1e-7
    )
    linear = architectures_matrix(BILINEAR)
    np.testing.assert_allclose(linear, bilinear_by_hand(4), atol=1e-7)


def architectures_matrix(doubling):
    return encoder_decoders.doubling_matrix(doubling, 4)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((32, 32, 3), 4), ((64, 64, 3), 5), ((256, 128, 3), 5), ((28, 28, 1), 2),
     ((8, 8, 1), 2), ((6, 10, 1), 1), ((2, 2, 1), None), ((15, 16, 1), None)],
)  # fmt: skip
def test_an_image_has_as_many_scales_as_fit(shape, scales):
    if scales is None:
        with pytest.raises(ValueError, match="15 x 16|2 x 2 .* cannot be halved"):
            fitting_scales(shape)
    else:
        assert fitting_scales(shape) == scales


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": 4}, "scales=4: .* 8 x 12 pixels can be halved 2 times"),
        ({"scales": 0}, "scales=0"),
        ({"channels": 18, "narrowest": 18}, "channels=18 must be a multiple of 4"),
        ({"channels": 4, "narrowest": 4}, "channels=4 must be a multiple of 4"),
        ({"narrowest": 32}, "narrowest=32 must be from 8 to channels=16"),
        ({"narrowest": 4}, "narrowest=4 must be from 8"),
        ({"channels": 36, "narrowest": 10}, "halves of channels=36"),
        ({"kernel": 4}, "kernel=4 must be one of 1, 3, 5, 7"),
    ],
)
def test_numbers_of_which_no_network_is_made_are_refused(changes, message):
    check_space(SPACE)
    with pytest.raises(ValueError, match=message):
        check_space(SPACE._replace(**changes))
