"""Residual networks: sizes as published, the formula, and the norms that a lock takes.

What is computed is a toy of two stages; the real networks are only counted.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import (
    ACTIVATIONS,
    convolve,
    normalise,
    parameter_count,
    parameter_shapes,
    pool,
)
from jax.flatten_util import ravel_pytree
from toys import check_refused, quick_jit, random_images, random_weights

from kljax.core.types import Gate
from kljax.defences.lock import key_lock
from kljax.models import (
    NETWORKS,
    ResNet,
    from_nnx,
    resnet18,
    resnet20,
    resnet20_tanh,
    resnet32,
    resnet34,
    site_widths,
    uniform,
)
from kljax.models.losses import cross_entropy

WIDTHS = (4, 24)
GROUPS = {4: 1, 24: 2}  # of 4 and of 12 channels: the most that divide, up to 16
MAIN = ("norm1", *(f"blocks/{i}/norm{n}" for i in (0, 1) for n in (1, 2)))
IMAGES = random_images(2, 8, 8, 2)


def build(num_classes=3, **changes):
    options = {
        "depths": (1, 1),
        "widths": WIDTHS,
        "stem": "small",
        "image_shape": (8, 8, 2),
        "shortcut": "pad",
        "max_pool": False,
    }
    return lambda rngs: ResNet(num_classes, rngs=rngs, **(options | changes))


def of(factory, *args, **options):
    return lambda rngs: factory(*args, rngs=rngs, **options)


# --- sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "classes", "options", "count"),
    [
        # He et al. (2016), table 6: 0.27M and 0.46M; Idelbayev: the same.
        (resnet20, 10, {}, 269_722),
        (resnet32, 10, {}, 464_154),
        # Option B: 1x1 kernels 16 -> 32 -> 64 and the scales and shifts of their norms.
        (resnet20, 10, {"shortcut": "conv"}, 269_722 + 16 * 32 + 32 * 64 + 2 * 96),
        # torchvision's own counts.
        (resnet18, 1000, {}, 11_689_512),
        (resnet34, 1000, {}, 21_797_672),
        # What has no weights.
        (resnet18, 1000, {"max_pool": False, "norm": "group"}, 11_689_512),
        (resnet20, 10, {"activation": jax.nn.sigmoid}, 269_722),
        (resnet20_tanh, 10, {}, 269_722),
    ],
)
def test_published_parameter_counts(factory, classes, options, count):
    assert parameter_count(of(factory, classes, **options)) == count


@functools.cache
def catalogued(name, sites):
    """A network of the catalogue with 100 classes, for 32x32, locked at its sites."""
    factory = NETWORKS[name].factory
    return from_nnx(
        of(
            factory,
            100,
            image_shape=(32, 32, 3),
            lockable=getattr(NETWORKS[name], sites),
        )
    )


def lock_count(sites, widths, chained):
    lock = key_lock(sites, widths, chained=chained)
    weights = jax.eval_shape(lock.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(weights))


@pytest.mark.parametrize(
    ("name", "width", "lock"),
    [("resnet20", 16, 32_800), ("resnet18", 64, 131_200), ("vgg16", 64, 131_200)],
)
def test_the_single_site_is_that_of_the_paper(name, width, lock):
    sites = NETWORKS[name].sites
    assert len(sites) == 1 and sites[0] == NETWORKS[name].all_sites[0]
    widths = site_widths(catalogued(name, "sites"), sites, (32, 32, 3))
    assert widths == (width,)
    assert lock_count(sites, widths, chained=False) == lock


@pytest.mark.parametrize(
    ("factory", "count", "private", "share"),
    [
        # FedKL's locked networks with 100 classes: shortcuts by convolution.
        (functools.partial(resnet20, shortcut="conv"), 278_292, 32_800, 0.105),
        (functools.partial(resnet32, shortcut="conv"), 472_724, 32_800, 0.065),
        (resnet18, 11_227_684, 131_200, 0.0116),
        (resnet34, 21_335_844, 131_200, 0.0061),
    ],
)
def test_the_private_share_is_that_of_the_paper(factory, count, private, share):
    public = parameter_count(of(factory, 100, lockable=("norm1",)))
    assert public == count
    assert private / (public + private) == pytest.approx(share, rel=0.01)


def test_all_sites_are_those_of_the_chained_lock():
    sites = NETWORKS["resnet20"].all_sites
    assert len(sites) == 19
    widths = site_widths(catalogued("resnet20", "all_sites"), sites, (32, 32, 3))
    assert sum(widths) == 688
    assert widths == (16,) * 7 + (32,) * 6 + (64,) * 6
    assert lock_count(sites, widths, chained=True) == 93_536


@pytest.mark.parametrize(
    "name", [name for name, network in NETWORKS.items() if network.inputs == "image"]
)
def test_rows_of_the_catalogue_fit_their_network(name):
    network = NETWORKS[name]
    build = of(network.factory, 100, image_shape=(32, 32, 3))
    plain = parameter_shapes(build)
    assert plain[f"{network.classifier}/kernel"][-1] == 100
    assert network.accepts("initialiser") and not network.accepts("initialisers")
    if not network.accepts("lockable"):
        assert name in ("dense", "dense-relu-plain", "cnn6", "vit")
        return
    for sites in (network.sites, network.all_sites):
        locked = parameter_shapes(functools.partial(_locked, network, sites))
        taken = {f"{site}/{part}" for site in sites for part in ("scale", "bias")}
        if name in ("lenet", "dense-relu"):  # norms at lockable paths alone
            taken = set()
        assert plain.keys() - locked.keys() == taken
        assert locked == {path: plain[path] for path in locked}


def _locked(network, sites, rngs):
    return network.factory(100, image_shape=(32, 32, 3), lockable=sites, rngs=rngs)


def test_arguments_are_found_behind_partials():
    # Its own signature would not say: NNX classes hide theirs.
    assert "lockable" not in inspect.signature(ResNet).parameters
    assert NETWORKS["resnet34"].accepts("lockable")
    assert not NETWORKS["resnet34"].accepts("lockables")


@pytest.mark.parametrize("max_pool", (False, True))
def test_shapes_at_32(max_pool):
    model = from_nnx(of(resnet18, 7, max_pool=max_pool))
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((5, 32, 32, 3), np.float32)
    taps = ("norm1", "blocks/0", "blocks/7")
    out = jax.eval_shape(
        functools.partial(model.apply, train=True, taps=taps), params, stats, images
    )
    assert out.logits.shape == (5, 7)
    # A lock on the last stage would gate zeros, at batch 1 and behind a max-pool.
    side = 16 // (1 + max_pool)
    assert [out.taps[name].shape for name in taps] == [
        (5, 16, 16, 64),
        (5, side, side, 64),
        (5, side // 8, side // 8, 512),
    ]


# --- the formula ----------------------------------------------------------------------


def formula(params, stats, x, *, norm, activation, stem, shortcut, max_pool):
    """The toy network in NumPy; `stats` None for the batch's own."""
    act = ACTIVATIONS[activation][1]
    params = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}

    def layer(x, conv, name, stride=1):
        x = convolve(x, params[f"{conv}/kernel"], stride)
        running = (
            None if stats is None else (stats[f"{name}/mean"], stats[f"{name}/var"])
        )
        x = normalise(x, norm, GROUPS[x.shape[-1]], running)
        return x * params[f"{name}/scale"] + params[f"{name}/bias"]

    x = act(layer(x, "conv1", "norm1", stride=2 if stem == "large" else 1))
    x = pool(x, 3, 2, padding=1) if max_pool else x
    for i in range(2):
        path, stride = f"blocks/{i}", i + 1
        y = act(layer(x, f"{path}/conv1", f"{path}/norm1", stride))
        y = layer(y, f"{path}/conv2", f"{path}/norm2")
        if i == 1 and shortcut == "conv":
            x = layer(x, f"{path}/shortcut_conv", f"{path}/shortcut_norm", 2)
        elif i == 1:
            wider = np.zeros((*y.shape[:3], 24))
            wider[..., 10:14] = x[:, ::2, ::2]  # 4 of 24 channels, in the middle
            x = wider
        x = act(x + y)
    return x.mean((1, 2)) @ params["fc/kernel"] + params["fc/bias"]


@pytest.mark.parametrize(
    ("norm", "activation", "stem", "shortcut", "max_pool", "train"),
    [
        ("batch", "relu", "small", "pad", False, True),
        ("group", "relu", "large", "conv", True, True),
        ("batch", "sigmoid", "small", "conv", True, False),
    ],
)
def test_the_network_equals_the_formula(
    norm, activation, stem, shortcut, max_pool, train
):
    options = {"norm": norm, "stem": stem, "shortcut": shortcut, "max_pool": max_pool}
    model = from_nnx(build(activation=ACTIVATIONS[activation][0], **options))
    params, stats = random_weights(model)
    assert bool(stats) == (norm == "batch")
    out = quick_jit(lambda p, s, x: model.apply(p, s, x, train=train))(
        params, stats, IMAGES
    )
    expected = formula(
        params, None if train else stats, IMAGES, activation=activation, **options
    )
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0.1


# --- with and without a lock ----------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    """The network without lock, with random weights, and its logits by the batch."""
    model = from_nnx(build())
    params, stats = random_weights(model)
    logits = quick_jit(lambda p: model.apply(p, stats, IMAGES, train=True).logits)
    return model, params, stats, logits


@pytest.mark.parametrize("sites", (MAIN[:1], MAIN), ids=("single", "all"))
def test_gates_take_the_place_of_scale_and_shift(plain, sites):
    _, params, stats, logits = plain
    locked = from_nnx(build(lockable=sites))
    taken = {f"{site}/{part}" for site in sites for part in ("scale", "bias")}
    public, _ = jax.eval_shape(locked.init, jax.random.key(0))
    assert params.keys() - public.keys() == taken and public.keys() <= params.keys()
    public = {path: params[path] for path in public}

    runs = []

    @quick_jit
    def gated(gates):
        runs.append(0)
        return locked.apply(public, stats, IMAGES, gates=gates, train=True).logits

    own = {
        site: Gate(params[f"{site}/scale"], params[f"{site}/bias"]) for site in sites
    }
    np.testing.assert_allclose(gated(own), logits(params), rtol=1e-5, atol=1e-5)
    unit = {
        site: Gate(np.ones_like(gate.scale), np.zeros_like(gate.shift))
        for site, gate in own.items()
    }
    fresh = params | {
        f"{site}/{part}": value
        for site, gate in unit.items()
        for part, value in zip(("scale", "bias"), gate, strict=True)
    }
    np.testing.assert_allclose(gated(unit), logits(fresh), rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(gated(unit) - gated(own))) > 0.1
    assert len(runs) == 1  # other gates, the same program


def test_a_lock_changes_nobody_elses_draws(plain):
    init = quick_jit(
        lambda rng: [m.init(rng)[0] for m in (plain[0], from_nnx(build(lockable=MAIN)))]
    )
    whole, locked = init(jax.random.key(3, impl="unsafe_rbg"))
    for path, leaf in locked.items():
        np.testing.assert_array_equal(leaf, whole[path])
    for path in whole.keys() - locked.keys():
        np.testing.assert_array_equal(whole[path], float(path.endswith("scale")))


def test_shortcuts_can_be_locked_too():
    lockable = (*MAIN, "blocks/1/shortcut_norm")
    shapes = parameter_shapes(build(shortcut="conv", lockable=lockable))
    assert not [path for path in shapes if path.endswith(("scale", "norm1/bias"))]
    assert "blocks/1/shortcut_conv/kernel" in shapes


# --- initial weights ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "initialiser", "kernel", "classifier"),
    [
        ("small", None, (2 / (9 * 8)) ** 0.5, (2 / 32) ** 0.5),
        ("large", None, (2 / (9 * 32)) ** 0.5, (1 / (3 * 32)) ** 0.5),
        ("large", uniform(0.5), (1 / 12) ** 0.5, (1 / 12) ** 0.5),
    ],
)
def test_initial_weights(stem, initialiser, kernel, classifier):
    options = {"stem": stem, "widths": (8, 32), "initialiser": initialiser}
    model = from_nnx(build(num_classes=40, **options))
    params, stats = quick_jit(model.init)(jax.random.key(1, impl="unsafe_rbg"))
    assert np.std(params["blocks/1/conv1/kernel"]) == pytest.approx(kernel, rel=0.06)
    assert np.std(params["fc/kernel"]) == pytest.approx(classifier, rel=0.06)
    limit = 0.5 if initialiser else 32**-0.5
    assert 0.8 * limit < np.max(np.abs(params["fc/bias"])) <= limit
    np.testing.assert_array_equal(params["norm1/scale"], 1)
    np.testing.assert_array_equal(params["norm1/bias"], 0)
    np.testing.assert_array_equal(stats["norm1/var"], 1)


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lockable": ("norm1", "blocks/0/norm3")},
            r"'blocks/0/norm3' \(did you mean 'blocks/0/norm\d'\?\) is no norm layer "
            f"of this network; those are {', '.join(MAIN)}",
        ),
        ({"lockable": ("blocks/1/shortcut_norm",)}, "is no norm layer"),
        ({"lockable": ("conv1",)}, "'conv1'.* is no norm layer"),
        ({"lockable": "norm1"}, "tuple of paths, got 'norm1'"),
        ({"norm": "other"}, "unknown norm 'other': expected one of 'batch', 'group'"),
        ({"norm": None}, "unknown norm None"),
        ({"shortcut": "A"}, "unknown shortcut 'A': expected one of 'pad', 'conv'"),
        ({"stem": "cifar"}, "unknown stem 'cifar': expected one of 'small', 'large'"),
        ({"depths": (1, 1, 1)}, r"depths=\(1, 1, 1\) and widths=\(4, 24\)"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, message):
    check_refused(build(**changes), message)


@pytest.mark.slow
def test_in_evaluation_mode_gates_trade_scale_for_contrast():
    """Half the contrast and twice the gates' scale: one gradient, so nobody can tell.

    The first convolution has no bias, and its norm nothing from the batch.
    """
    options = {"depths": (1, 1, 1), "image_shape": (8, 8, 3), "lockable": ("norm1",)}
    model = from_nnx(of(resnet20_tanh, 10, **options))
    params, stats = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3))
    scale = jax.random.uniform(jax.random.key(2), (16,), minval=0.5, maxval=3)
    shift = jax.random.normal(jax.random.key(3), (16,))

    @quick_jit
    def gradient(images, scale):
        def loss(params):
            gates = {"norm1": Gate(scale, shift)}
            out = model.apply(params, stats, images, gates=gates, train=False)
            return cross_entropy(out.logits, jax.nn.one_hot(jnp.zeros(1, int), 10))

        return ravel_pytree(jax.grad(loss)(params))[0]

    sent = gradient(images, scale)
    np.testing.assert_allclose(gradient(images / 2, 2 * scale), sent, rtol=1e-5)
    apart = jnp.linalg.norm(gradient(images / 2, scale) - sent)
    assert apart > 0.1 * jnp.linalg.norm(sent)
