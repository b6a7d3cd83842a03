"""The victim axis: layouts agree, nothing depends on the batch, nothing recompiles."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from search_path import SEARCH_PATH
from tiny_studies import lone_attack, lone_victims, quick_compilation

from kljax.parallel import (
    LAYOUTS,
    Layout,
    compile_victims,
    hold_programs,
    map_victims,
    victim_axis,
)
from kljax.parallel.threads import Once
from kljax.studies import leakage, scoring
from kljax.studies.config import LeakConfig

# For five victims: blocks that they do not fill, but for vmap and loop.
EVERY_LAYOUT = (
    Layout("vmap"),
    Layout("chunked", 2),
    Layout("loop"),
    Layout("sharded", 1),
    Layout("sharded_loop", 1),
)
MORE_LAYOUTS = (*EVERY_LAYOUT, Layout("chunked", 5), Layout("sharded", 8))
VICTIMS = 5


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


ATTACKS = {"lbfgs": 5, "adam": 60}  # steps by optimiser


def run(layout, victims=VICTIMS):
    results, _ = map_victims(lone_attack(**ATTACKS), layout)(*lone_victims(victims))
    return results


def assert_agree(ones, others):
    assert ones.keys() == others.keys() == ATTACKS.keys()
    for name, one in ones.items():
        image, loss = others[name]["image"], others[name]["loss"]
        np.testing.assert_allclose(one["image"], image, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one["loss"], loss, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def alone():
    """Every victim by itself: the definition of a right result."""
    with quick_compilation():
        one = jax.jit(lone_attack(**ATTACKS))
    args = lone_victims(VICTIMS)
    found = [one(*jax.tree.map(lambda x, n=n: x[n], args)) for n in range(VICTIMS)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def test_every_layout_is_under_test():
    assert {layout.kind for layout in EVERY_LAYOUT} == set(LAYOUTS)
    assert jax.local_device_count() == 2


@pytest.mark.slow
@pytest.mark.parametrize("layout", EVERY_LAYOUT, ids=str)
def test_layouts_agree_on_five_steps_of_lbfgs_and_on_adam(layout, alone):
    assert_agree(run(layout), alone)


def test_the_attack_under_test_moves_and_tells_victims_apart(alone):
    # Otherwise agreement would mean nothing.
    for result in alone.values():
        assert np.all(np.isfinite(result["image"]))
        assert np.mean(np.std(result["image"], axis=0)) > 0.01
    assert np.all(alone["adam"]["loss"] < alone["lbfgs"]["loss"])


EIGHT_DEVICES = """
import sys
import jax, numpy as np
jax.config.update("jax_default_matmul_precision", "highest")
from kljax.parallel import Layout
from test_mapping import run
from search_path import SEARCH_PATH
from tiny_studies import quick_compilation
assert jax.local_device_count() == 8, jax.devices()
with quick_compilation():
    found = run(Layout("sharded", 1), victims=9)
for name, result in found.items():
    np.savez(f"{sys.argv[1]}/{name}.npz", **result)
"""


@pytest.mark.slow
def test_eight_devices_agree_with_one(alone, tmp_path):
    # Nine victims: one on each device, and a block with one and seven paddings.
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": SEARCH_PATH,
    }
    subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, str(tmp_path)],
        env=os.environ | flags,
        check=True,
        timeout=300,
    )
    found = {name: dict(np.load(tmp_path / f"{name}.npz")) for name in ATTACKS}
    assert_agree(jax.tree.map(lambda x: x[:VICTIMS], found), alone)
    for result in found.values():
        assert len(result["loss"]) == 9
        # The lonely last one is somebody else.
        assert np.mean(np.abs(result["image"][8] - result["image"][7])) > 0.01


def test_a_victim_does_not_depend_on_the_others(alone):
    mapped = map_victims(lone_attack(**ATTACKS), Layout("chunked", 2))
    args = lone_victims(VICTIMS)
    for chosen in ([0, 1], [3, 1], [4, 2, 0]):
        some, _ = mapped(*jax.tree.map(lambda x, rows=chosen: x[rows], args))
        assert_agree(some, jax.tree.map(lambda x, rows=chosen: x[rows], alone))


def square(x, factor):
    return {"square": factor["a"] * x**2, "sum": jnp.sum(x)}


def numbers(count):
    x = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)
    return x, {"a": np.full(count, 3.0, np.float32)}


@pytest.mark.parametrize("layout", MORE_LAYOUTS, ids=str)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_any_number_of_victims_fits(layout, count):
    x, factor = numbers(count)
    results, timing = map_victims(square, layout)(x, factor)
    assert isinstance(results["square"], np.ndarray)
    np.testing.assert_array_equal(results["square"], 3 * x**2)
    np.testing.assert_array_equal(results["sum"], x.sum(axis=1))
    assert timing.run_s > 0


def counting(fn):
    """Counts how often a function is traced, which is once per compilation."""

    def counted(*args):
        counted.traces += 1
        return fn(*args)

    counted.traces = 0
    return counted


@pytest.mark.parametrize("kind", LAYOUTS)
def test_one_compilation_per_shape_and_none_per_victim(kind):
    counted = counting(square)
    mapped = map_victims(counted, Layout(kind, 2))
    _, timing = mapped(*numbers(12))
    assert (counted.traces, timing.compilations) == (1, 1)
    assert timing.compile_s > 0
    # The block of vmap is all victims; the others' blocks only have to be filled.
    for victims in (12,) if kind == "vmap" else (12, 13, 30):
        _, timing = mapped(*numbers(victims))
        assert (counted.traces, timing.compilations) == (1, 0)
        assert timing.compile_s == 0
    x, factor = numbers(12)
    _, timing = mapped(np.concatenate([x, x], axis=1), factor)
    assert (counted.traces, timing.compilations) == (2, 1)


def test_a_real_attack_is_compiled_once():
    counted = counting(lone_attack(adam=2))
    mapped = map_victims(counted, Layout("chunked", 2))
    compilations = [mapped(*lone_victims(n))[1].compilations for n in (2, 5, 7)]
    assert compilations == [1, 0, 0]
    assert counted.traces == 1


def test_another_precision_is_another_compilation():
    # Whatever else is shared, matmuls of another precision are not.
    counted = counting(square)
    for precision in ("highest", "default", "highest"):
        with jax.default_matmul_precision(precision):
            map_victims(counted, Layout("chunked", 2))(*numbers(4))
    assert counted.traces == 2


@pytest.mark.parametrize("layout", MORE_LAYOUTS, ids=str)
def test_draws_come_first_and_are_shared(layout):
    weights = counting(lambda index: {"w": 10.0 * index})
    offsets = counting(lambda index, drawn: drawn["w"] + 1)
    draws = (weights, offsets)

    def total(drawn, offset, index, x):
        return drawn["w"] + offset + index + x

    index, x = np.arange(5, dtype=np.float32), np.full(5, 0.5, np.float32)
    done = []
    for fn in (total, lambda *args: 2 * total(*args)):
        results, timing = map_victims(fn, layout, draws=draws, on_block=done.append)(
            index, x
        )
        factor = 1 if fn is total else 2
        np.testing.assert_allclose(results, factor * (21 * index + 1.5))
        assert timing.compilations == (3 if fn is total else 1)
    assert (weights.traces, offsets.traces) == (1, 1)
    assert done[-1] == 5


@pytest.mark.parametrize("layout", MORE_LAYOUTS, ids=str)
def test_what_was_compiled_ahead_is_not_compiled_again(layout):
    weights = counting(lambda index: {"w": 10.0 * index})
    fns = [
        counting(lambda drawn, index, x, factor=factor: factor * drawn["w"] + x)
        for factor in (1, 2, 3)
    ]
    args = np.arange(5, dtype=np.float32), np.full(5, 0.5, np.float32)
    # One is asked for twice, and all draw the same.
    calls = [(fn, (weights,), args) for fn in (*fns, fns[0])]
    spent = list(compile_victims(calls, layout))
    assert sum(timing.compilations for timing in spent) == 4
    assert all(timing.compile_s >= 0 and timing.run_s == 0 for timing in spent)
    for factor, fn in enumerate(fns, 1):
        results, timing = map_victims(fn, layout, draws=(weights,))(*args)
        np.testing.assert_allclose(results, factor * 10 * args[0] + 0.5)
        assert (timing.compilations, timing.compile_s) == (0, 0)
    assert [fn.traces for fn in (weights, *fns)] == [1, 1, 1, 1]


def many_arms(monkeypatch):
    """Gives three programs that draw the same, more than are kept, and arguments."""
    monkeypatch.setattr(victim_axis, "_compilations", Once(most=1))
    weights = counting(lambda index: {"w": 10.0 * index})
    fns = [
        counting(lambda drawn, index, factor=factor: factor * drawn["w"])
        for factor in (1, 2, 3)
    ]
    return weights, fns, (np.arange(5, dtype=np.float32),)


def test_more_programs_than_are_kept_are_compiled_once(monkeypatch):
    weights, fns, args = many_arms(monkeypatch)
    layout = Layout("chunked", 2)
    with hold_programs():
        list(compile_victims([(fn, (weights,), args) for fn in fns], layout))
        for fn in fns:
            _, timing = map_victims(fn, layout, draws=(weights,))(*args)
            assert timing.compilations == 0
    assert [fn.traces for fn in (weights, *fns)] == [1, 1, 1, 1]


def test_a_study_of_many_arms_compiles_each_once(monkeypatch):
    weights, fns, args = many_arms(monkeypatch)
    attacks = [
        SimpleNamespace(
            arm=SimpleNamespace(name="none"),
            client=SimpleNamespace(draws=(weights,)),
            setting=SimpleNamespace(threat=None),
            attack_one=fn,
            inputs=args,
            learn=None,
        )
        for fn in fns
    ]
    config = LeakConfig(layout=Layout("chunked", 2))
    task = SimpleNamespace(dataset=None)
    study = SimpleNamespace(config=config, attacks=attacks, task=task, victims=None)
    monkeypatch.setattr(leakage, "build_study", lambda config, **options: study)
    monkeypatch.setattr(leakage, "check_layout", lambda study: None)
    result = leakage.leak(config)
    for factor, arm in enumerate(result.arms, 1):
        np.testing.assert_allclose(arm.attacked, factor * 10 * args[0])
    assert sum(arm.timing.compilations for arm in result.arms) == 4
    assert [fn.traces for fn in (weights, *fns)] == [1, 1, 1, 1]


def test_draws_do_not_depend_on_the_batch():
    def noise(index):
        return jax.random.normal(jax.random.fold_in(jax.random.key(0), index), (3,))

    def run(layout, indices):
        fn = map_victims(lambda drawn, index: drawn, layout, draws=(noise,))
        return fn(np.asarray(indices))[0]

    everyone = run(Layout("vmap"), range(5))
    assert len(np.unique(everyone)) == 15
    for layout in EVERY_LAYOUT:
        np.testing.assert_array_equal(run(layout, [4, 0, 2]), everyone[[4, 0, 2]])


def test_blocks_are_reported():
    for layout, expected in (
        (Layout("chunked", 2), [2, 4, 5]),
        (Layout("loop"), [1, 2, 3, 4, 5]),
        (Layout("vmap"), [5]),
        (Layout("sharded", 2), [4, 5]),
        (Layout("sharded", 8), [5]),
    ):
        done = []
        map_victims(square, layout, on_block=done.append)(*numbers(5))
        assert done == expected, layout


def test_no_victims_and_unequal_numbers_are_refused():
    mapped = map_victims(square, Layout("chunked", 2))
    with pytest.raises(ValueError, match=r"victims >= 1, got \[0\]"):
        mapped(*numbers(0))
    with pytest.raises(ValueError, match=r"got \[3, 4\]"):
        mapped(numbers(4)[0], numbers(3)[1])
    with pytest.raises(ValueError, match=r"got \[\]"):
        mapped()


def test_unknown_layouts_are_refused():
    with pytest.raises(
        ValueError, match="unknown layout 'pmap'.*'sharded', 'sharded_loop'"
    ):
        Layout("pmap")
    for chunk in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"chunk must be .* got {chunk}"):
            Layout("chunked", chunk)


# ---- LeNet, with the compiler's optimisation: minutes --------------------------------


@pytest.fixture
def fully():
    """Undoes `quickly`: what is used is what is tested."""
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.parametrize(("optimiser", "steps"), [("lbfgs", 5), ("adam", 60)])
def test_layouts_agree_on_lenet(optimiser, steps, fully):
    images = []
    for layout in (Layout("sharded", 2), Layout("chunked", 4), Layout("loop")):
        config = LeakConfig(
            victims=6, arms=("none",), optimiser=optimiser, steps=steps, layout=layout
        )
        study = leakage.leak(config)
        # Weights, defence and attack are compiled apart; victims are not.
        assert study.arms[0].timing.compilations == 3
        images.append(study.arms[0].attacked.reconstruction.inputs)
    sharded, chunked, single = images
    np.testing.assert_allclose(sharded, chunked, rtol=0, atol=1e-5)
    # Without a batch XLA adds up in another order, and these steps amplify rounding: in
    # the root mean square, and by how much in single pixels depends on the processor
    # (above 1e-5 in 0.1 % of them on one, in 3 % on another).
    apart = single - chunked
    assert np.sqrt(np.mean(apart**2, axis=(1, 2, 3, 4))).max() < 1e-5
    assert np.abs(apart).max() < 1e-4


@pytest.mark.slow
def test_layouts_recover_the_same_victims_by_long_fixed_steps(fully):
    # Fixed steps amplify rounding: images differ, what they show does not. A loop
    # against a batch, because batches of any size round alike here.
    recovered, images = [], []
    for layout in (Layout("sharded", 4), Layout("loop")):
        study = leakage.leak(
            LeakConfig(
                victims=8,
                arms=("none",),
                optimiser="lbfgs_torch",
                steps=2000,
                layout=layout,
            )
        )
        rows = [r for r in scoring.score_rows(study) if r["arm"] == "none"]
        recovered.append({r["victim"] for r in rows if r["outcome"] == "recovered"})
        images.append(study.arms[0].attacked.reconstruction.inputs)
    print("recovered:", *map(sorted, recovered))
    assert np.max(np.abs(images[0] - images[1])) > 1e-5
    assert len(recovered[0] & recovered[1]) >= 6
    assert len(recovered[0] ^ recovered[1]) <= 1


@pytest.mark.parametrize("layout", EVERY_LAYOUT, ids=str)
def test_what_is_drawn_need_not_matter(layout):
    """XLA sees that nothing depends on it, and JAX does not: it stays an argument."""

    def draw(x):
        return {"used": 2 * x, "ignored": jnp.full(12, x)}

    def fn(drawn, x):
        def step(total):
            jnp.sum(drawn["ignored"] * total)  # in the loop, and for nothing
            return total + drawn["used"]

        return jax.lax.while_loop(lambda total: total < 10, step, x)

    x = np.arange(1.0, 6.0, dtype=np.float32)
    found, _ = map_victims(fn, layout, draws=(draw,))(x)
    np.testing.assert_allclose(found, [11, 10, 15, 12, 15])
