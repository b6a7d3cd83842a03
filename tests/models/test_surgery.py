"""Gates, taps and the fast convolution, put on for one pass and taken off again.

All networks are linear layers of one size, so that a few compiled operations serve
every test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from toys import quick_jit, random_images, random_weights

from kljax.core.types import Gate
from kljax.models import LeNet, from_nnx, site_widths, uniform
from kljax.models import convolution as convolutions
from kljax.models.gating import find_sites

WIDTH = 3
X = random_images(2, WIDTH)
GATE = Gate(np.array([2.0, 0.0, 0.5], np.float32), np.array([0, 1, -1], np.float32))


class Layer(nnx.Linear):
    """A linear layer of the one size."""

    def __init__(self, rngs: nnx.Rngs):
        super().__init__(WIDTH, WIDTH, kernel_init=uniform(1.0), rngs=rngs)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.inner = Layer(rngs)

    def __call__(self, x):
        return self.inner(x)


class Plain(nnx.Module):
    """Layers as attribute, list item, in a Sequential, and one that is never used."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = Layer(rngs)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.last = nnx.Sequential(Layer(rngs), jnp.tanh)
        self.unused = Layer(rngs)

    def __call__(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        assert self.first.out_features == WIDTH  # attributes are read as ever
        return self.last(x)


ORDER = ("first", "blocks/0/inner", "blocks/1/inner", "last/layers/0")


def by_hand(params, x, gates):
    """What `Plain` computes, and the output of each layer after its gate."""
    outputs = {}
    for path in ORDER:
        x = x @ params[f"{path}/kernel"] + params[f"{path}/bias"]
        x = gates[path].scale * x + gates[path].shift if path in gates else x
        outputs[path] = x
    return np.tanh(x), outputs


@pytest.fixture(scope="module")
def plain():
    model = from_nnx(Plain)
    return model, *random_weights(model)


def run(build, gates=None, taps=(), x=X, train=False):
    """Applies a network with random weights."""
    model = from_nnx(build)
    params, stats = random_weights(model)
    return model.apply(params, stats, x, gates=gates, taps=taps, train=train)


def refuse(build, message, gates=None, taps=()):
    """Traces a network and expects an error."""
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: run(build, gates, taps))


# --- gates -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "sites", [(), *((site,) for site in ORDER), ORDER[::-1]], ids=str
)
def test_gates_act_where_they_are_put(plain, sites):
    model, params, stats = plain
    gates = {site: GATE for site in sites}
    out = model.apply(params, stats, X, gates=gates, train=False)
    np.testing.assert_allclose(out.logits, by_hand(params, X, gates)[0], atol=1e-6)


def test_gates_are_plain_data_that_vmap_batches(plain):
    model, params, stats = plain
    gates = [{"first": GATE}, {"first": Gate(GATE.shift, GATE.scale)}]

    def logits(gates):
        return model.apply(params, stats, X, gates=gates, train=False).logits

    batched = jax.vmap(logits)(jax.tree.map(lambda *parts: np.stack(parts), *gates))
    for one, result in zip(gates, batched, strict=True):
        np.testing.assert_allclose(result, by_hand(params, X, one)[0], atol=1e-6)


def test_a_gate_on_a_block_acts_on_its_output(plain):
    model, params, stats = plain
    on_block, on_layer = (
        model.apply(params, stats, X, gates={site: GATE}, train=False).logits
        for site in ("blocks/1", "blocks/1/inner")
    )
    np.testing.assert_array_equal(on_block, on_layer)


def test_unit_gates_change_no_bit(plain):
    model, params, stats = plain
    unit = Gate(jnp.ones(WIDTH), jnp.zeros(WIDTH))
    bare, gated = (
        model.apply(params, stats, X, gates=gates, train=True).logits
        for gates in ({}, {site: unit for site in ORDER})
    )
    np.testing.assert_array_equal(bare, gated)


def test_gates_reach_every_channel_of_an_image():
    gates = {"conv": Gate(np.array([3.0, 0.5]), np.array([0.0, 7.0]))}

    class Image(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.conv = nnx.Conv(1, 2, (1, 1), rngs=rngs)

        def __call__(self, x):
            return self.conv(x)

    x = random_images(2, 3, 3, 1)
    bare, gated = (np.asarray(run(Image, g, x=x).logits) for g in ({}, gates))
    np.testing.assert_allclose(gated[..., 0], 3 * bare[..., 0], atol=1e-6)
    np.testing.assert_allclose(gated[..., 1], 0.5 * bare[..., 1] + 7, atol=1e-6)


class Normed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = Layer(rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.last = Layer(rngs)

    def __call__(self, x):
        return self.last(self.norm(self.first(x)))


def test_a_lock_leaves_the_public_trees_alone():
    model = from_nnx(Normed)
    params, stats = random_weights(model)

    def step(gates):
        def loss(params):
            out = model.apply(params, stats, X, gates=gates, train=True)
            return jnp.sum(out.logits**2), out.stats

        return jax.grad(loss, has_aux=True)(params)

    bare, gated = (jax.eval_shape(step, gates) for gates in ({}, {"norm": GATE}))
    assert bare == gated
    assert (bare[0].keys(), bare[1].keys()) == (params.keys(), stats.keys())


def test_statistics_are_those_before_the_gate():
    seen = [run(Normed, gates, train=True).stats for gates in ({}, {"norm": GATE})]
    jax.tree.map(np.testing.assert_array_equal, *seen)


# --- taps ------------------------------------------------------------------------


def test_taps_give_inputs_and_gated_outputs(plain):
    model, params, stats = plain
    names = (
        "blocks/1:input",
        "blocks/0/inner",
        "first",
        "first:input",
        "last",
        "blocks/0",
    )
    gates = {"blocks/0/inner": GATE}
    out = model.apply(params, stats, X, gates=gates, taps=names, train=False)
    logits, outputs = by_hand(params, X, gates)
    expected = {
        "blocks/1:input": outputs["blocks/0/inner"],
        "blocks/0/inner": outputs["blocks/0/inner"],
        "first": outputs["first"],
        "first:input": X,
        "last": logits,
        "blocks/0": outputs["blocks/0/inner"],
    }
    assert tuple(out.taps) == names
    for name, value in expected.items():
        np.testing.assert_allclose(out.taps[name], value, atol=1e-6, err_msg=name)


def test_an_input_given_by_name_is_tapped():
    class ByName(Block):
        def __call__(self, x):
            return self.inner(inputs=x)

    taps = run(ByName, taps=("inner:input",)).taps
    np.testing.assert_array_equal(taps["inner:input"], X)


# --- what raises -----------------------------------------------------------------


@pytest.mark.parametrize("where", ("gates", "taps"))
def test_an_unknown_path_lists_the_real_ones(where):
    arguments = {"gates": {"fisrt": GATE}} if where == "gates" else {"taps": ("fisrt",)}
    listed = r"did you mean 'first'\?.*'blocks/0', 'blocks/0/inner'.*'unused'"
    refuse(Plain, listed, **arguments)


def test_nested_sites_are_refused():
    refuse(
        Plain,
        "'blocks/0/inner' lies inside site 'blocks/0'",
        {"blocks/0": GATE, "blocks/0/inner": GATE},
    )
    # A common beginning of two names is no nesting.
    jax.eval_shape(lambda: run(Tens, {"blocks/1": GATE, "blocks/10": GATE}))


class Tens(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([Layer(rngs) for _ in range(11)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("part", ("scale", "shift"))
def test_a_gate_of_the_wrong_width_is_refused(part):
    gate = GATE._replace(**{part: np.ones(4)})
    refuse(
        Plain,
        rf"gate {part} of site 'first' has shape \(4,\).*3 channels",
        {"first": gate},
    )


def test_a_layer_that_is_never_called_is_refused():
    refuse(Plain, r"\['unused'\] were never called", {"unused": GATE})


class Shared(nnx.Module):
    """One layer, used twice, known by two names."""

    def __init__(self, rngs: nnx.Rngs):
        self.layer = self.same_layer = Layer(rngs)

    def __call__(self, x):
        return self.same_layer(self.layer(x))


@pytest.mark.parametrize(
    "arguments", ({"gates": {"layer": GATE}}, {"taps": ("layer",)})
)
def test_a_shared_layer_is_refused(arguments):
    assert run(Shared).logits.shape == X.shape
    refuse(Shared, "'layer' is shared", **arguments)


def stack(rngs, kind):
    """Makes three modules in one, each of its leaves with a leading axis of 3."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(rngs):
        return kind(rngs)

    return make(rngs)


class Activation(nnx.Module):
    """A module without a leaf."""

    def __call__(self, x):
        return jnp.tanh(x)


class ActiveBlock(Block):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.activation = Activation()

    def __call__(self, x):
        return self.activation(self.inner(x))


class Scanned(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = Layer(rngs)
        self.stack = stack(rngs, ActiveBlock)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(block, x):
            return block(x)

        return forward(self.stack, self.first(x))


class Vmapped(Scanned):
    def __call__(self, x):
        forward = nnx.vmap(lambda block, x: block(x), in_axes=(0, None))
        return forward(self.stack, self.first(x)).sum(axis=0)


@pytest.mark.parametrize("network", (Scanned, Vmapped))
def test_a_stack_of_layers_is_refused_and_its_neighbour_is_not(network):
    is_stack = r"'stack/inner' is a scanned or vmapped stack: .*\(3, 3, 3\).*\(3, 3\)"
    refuse(network, is_stack, {"stack/inner": GATE})
    refuse(network, is_stack, taps=("stack/inner:input",))
    refuse(network, "'stack' is a scanned or vmapped stack", {"stack": GATE})
    refuse(network, "cannot be told from a stack", {"stack/activation": GATE})
    jax.eval_shape(lambda: run(network, {"first": GATE}, ("first",)))


class Pair(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layer = Layer(rngs)

    def __call__(self, x):
        return self.layer(x), x


def test_a_module_that_returns_several_things_cannot_be_gated():
    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.pair = Pair(rngs)

        def __call__(self, x):
            return self.pair(x)[0]

    with pytest.raises(TypeError, match="'pair' returns tuple.*layer inside it"):
        jax.eval_shape(lambda: run(Network, {"pair": GATE}))


# --- inside other transformations ------------------------------------------------


def wrapped(transform):
    """A network whose blocks run inside `transform`, and its twin without."""

    class Inside(Block):
        __call__ = transform(Block.__call__)

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs, kind=Inside):
            self.blocks = nnx.List([kind(rngs), kind(rngs)])

        def __call__(self, x):
            for block in self.blocks:
                x = jnp.tanh(block(x))
            return x

    return Network, lambda rngs: Network(rngs, Block)


@pytest.mark.parametrize("transform", (nnx.remat, nnx.jit), ids=("remat", "jit"))
@pytest.mark.parametrize("site", ("blocks/0/inner", "blocks/0"))
def test_rematerialised_and_compiled_modules_are_gated_and_tapped(transform, site):
    taps = ("blocks/0/inner", "blocks/1/inner:input", "blocks/1")

    def results(build):
        model = from_nnx(build)
        params, stats = random_weights(model)

        def loss(params, gates):
            out = model.apply(params, stats, X, gates=gates, taps=taps, train=False)
            return jnp.sum(out.logits), out

        return quick_jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
            params, {site: GATE}
        )

    inside, outside = (results(build) for build in wrapped(transform))
    assert set(inside[1].taps) == set(outside[1].taps) == set(taps)
    assert np.any(inside[0][1][site].scale != 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), inside, outside
    )


def test_gates_of_one_pass_do_not_linger_in_the_next():
    """nnx.jit caches by structure: the second pass must not see the first's gate."""
    network, _ = wrapped(nnx.jit)
    model = from_nnx(network)
    params, stats = random_weights(model)

    def logits(gates):
        return model.apply(params, stats, X, gates=gates, train=False).logits

    before = logits({})
    gated = logits({"blocks/0/inner": GATE})
    assert np.any(before != gated)
    other = logits({"blocks/0/inner": GATE._replace(scale=GATE.scale + 1)})
    assert np.any(gated != other)
    np.testing.assert_array_equal(logits({}), before)


def test_the_users_instance_is_unchanged():
    network = Plain(nnx.Rngs(0))
    model = from_nnx(network)
    before = nnx.split(network)
    classes = {path: type(module) for path, module in nnx.iter_modules(network)}
    attributes = {path: set(vars(m)) for path, m in nnx.iter_modules(network)}
    params, stats = model.init(jax.random.key(0))
    gates = {"first": GATE, "blocks/0/inner": GATE}
    model.apply(params, stats, X, gates=gates, taps=("first", "last"), train=True)
    assert {p: type(m) for p, m in nnx.iter_modules(network)} == classes
    assert {p: set(vars(m)) for p, m in nnx.iter_modules(network)} == attributes
    after = nnx.split(network)
    assert after[0] == before[0]
    jax.tree.map(np.testing.assert_array_equal, after[1], before[1])


# --- sites -----------------------------------------------------------------------


def is_layer(path, module):
    return isinstance(module, Layer)


def test_find_sites_of_a_builder_and_of_an_instance():
    expected = {*ORDER, "unused"}
    sites = find_sites(Plain, is_layer, count=5)
    assert isinstance(sites, tuple) and set(sites) == expected
    instance = Plain(nnx.Rngs(0))
    assert find_sites(instance, is_layer, count=5) == sites
    assert find_sites(Plain, lambda p, m: p == "last", count=1) == ("last",)
    assert site_widths(from_nnx(Plain), ORDER, (WIDTH,)) == (WIDTH,) * 4


@pytest.mark.parametrize("count", (0, 4, 6))
def test_find_sites_insists_on_its_count(count):
    message = rf"5 sites match .*'unused'.*expected {count}; .*'blocks/1/inner'"
    with pytest.raises(ValueError, match=message):
        find_sites(Plain, is_layer, count=count)


# --- the fast convolution --------------------------------------------------------


class Convolutions(nnx.Module):
    """Two plain convolutions, one inside a block, and one of the user's own."""

    def __init__(self, rngs: nnx.Rngs, own=lax.conv_general_dilated):
        self.first = nnx.Conv(2, 2, (3, 3), rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(2, 2, (3, 3), rngs=rngs)])
        self.own = nnx.Conv(2, 2, (3, 3), conv_general_dilated=own, rngs=rngs)

    def __call__(self, x):
        assert self.first.kernel_size == (3, 3)
        return self.own(self.blocks[0](self.first(x)))


def test_every_plain_convolution_is_replaced_and_a_users_own_is_not(monkeypatch):
    calls = []

    def counting(*args, **kwargs):
        calls.append("fast")
        return lax.conv_general_dilated(*args, **kwargs)

    def own(*args, **kwargs):
        calls.append("own")
        return lax.conv_general_dilated(*args, **kwargs)

    monkeypatch.setitem(convolutions.CONVOLUTIONS, "counting", counting)
    images = jnp.zeros((1, 4, 4, 2))
    gates = {"first": Gate(jnp.ones(2), jnp.zeros(2))}

    def trace(build, convolution):
        calls.clear()
        model = from_nnx(build, convolution=convolution)
        params, stats = random_weights(model)
        jax.eval_shape(
            lambda: model.apply(params, stats, images, gates=gates, train=False)
        )
        return list(calls)

    assert trace(Convolutions, "counting") == ["fast"] * 3
    assert trace(lambda rngs: Convolutions(rngs, own), "counting") == [
        "fast",
        "fast",
        "own",
    ]
    assert trace(lambda rngs: Convolutions(rngs, own), "lax") == ["own"]


@pytest.mark.parametrize(("name", "wanted"), [("auto", 0), ("matmul", 0), ("lax", 3)])
def test_lenet_convolves_as_it_is_told(name, wanted):
    model = from_nnx(
        lambda rngs: LeNet(image_shape=(4, 4, 1), rngs=rngs), convolution=name
    )
    params, stats = random_weights(model)
    images = jnp.zeros((1, 4, 4, 1))
    jaxpr = str(
        jax.make_jaxpr(lambda: model.apply(params, stats, images, train=False))()
    )
    assert jaxpr.count("conv_general_dilated[") == wanted
