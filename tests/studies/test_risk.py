"""Risk scores against a dense Jacobian and NumPy, and known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from tiny_studies import scored, study
from toys import quick_jit, setting

from kljax import threat as threats
from kljax.attacks import Candidate, Protocol, replay
from kljax.attacks.presets import PRESETS
from kljax.core.tables import TableColumn, table_of
from kljax.core.types import Private, Public
from kljax.defences import gaussian_noise, none
from kljax.federated.clients import local_update, one_step
from kljax.models import Perceptron, from_nnx
from kljax.studies import risk
from kljax.studies.risk import Risk, cramer_rao, risk_scores

SPEC = table_of([TableColumn(name, (place,)) for place, name in enumerate("abcde")])
MODEL = from_nnx(
    lambda rngs: Perceptron(
        2, image_shape=(5,), widths=(8,), activation=jax.nn.sigmoid, rngs=rngs
    )
)
ROWS = np.random.default_rng(0).random((2, 5)).astype(np.float32)
TARGETS = np.eye(2, dtype=np.float32)
SIZE = ROWS.size
NOISE = 0.01


def ground(defence):
    strategy = threats.Strategy(secret="unit", labels="given")
    declared = threats.least_knowledge(strategy, examples=len(ROWS))
    here = {"model": MODEL, "inputs": SPEC, "num_classes": 2, "sites": ()}
    return setting(declared, defence, **here)


@functools.cache
def case(noisy):
    """Gives the scores of an upload, its dense Jacobian and what was done to it."""
    defence = gaussian_noise(NOISE) if noisy else none()
    here = ground(defence)
    step = one_step(MODEL, here.task.loss, defence, train=False)
    params, stats = MODEL.init(jax.random.key(3))

    @quick_jit
    def run(rows):
        update = step(
            jax.random.key(0), Public(params), stats, Private(), rows, TARGETS
        )
        view = threats.observe(here.threat, update)
        scores = risk_scores(here, PRESETS["dlg"], update, view)

        def compared(inputs):
            candidate = Candidate(inputs.reshape(ROWS.shape), TARGETS, Private())
            return replay(here, here.defence.gates)(view, candidate)

        def simulated(inputs):
            return ravel_pytree(compared(inputs)[0])[0]

        point = rows.ravel()
        hessian = jax.hessian(lambda x: PRESETS["dlg"].objective(here)(*compared(x)))(
            point
        )
        upload = simulated(point)
        change = ravel_pytree(compared(point)[1])[0] - upload
        return scores, jax.jacobian(simulated)(point), change, hessian, upload

    return jax.tree.map(lambda x: np.asarray(x, np.float64), run(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("noisy", (False, True))
def test_eigenvalues_are_those_of_the_dense_jacobian(noisy):
    scores, jacobian, _, _, _ = case(noisy)
    values = np.linalg.eigvalsh(jacobian.T @ jacobian)
    assert jacobian.shape == (5 * 8 + 8 + 8 * 2 + 2, SIZE)
    assert scores.largest == pytest.approx(values[-1], rel=1e-4)
    # A singular value is known to the rounding of the largest one.
    root = np.sqrt(values[-1])
    assert np.sqrt(scores.least) == pytest.approx(np.sqrt(values[0]), abs=1e-5 * root)


@pytest.mark.parametrize("noisy", (False, True))
def test_curvatures_are_those_of_the_dense_hessian(noisy):
    scores, jacobian, _, hessian, _ = case(noisy)
    values = np.linalg.eigvalsh(hessian)
    known = {"rel": 1e-3, "abs": 1e-5 * values[-1]}
    assert scores.curvature_largest == pytest.approx(values[-1], **known)
    assert scores.curvature_least == pytest.approx(values[0], **known)
    twice = 2 * np.linalg.eigvalsh(jacobian.T @ jacobian)[-1]
    # At the truth the Hessian is twice J^T J, and under noise it is not.
    assert (abs(values[-1] / twice - 1) < 1e-3) == (not noisy)


def test_the_bound_of_i2f_is_the_papers():
    scores, jacobian, change, _, _ = case(True)
    assert np.std(change) == pytest.approx(NOISE, rel=0.5)
    pulled = np.linalg.norm(jacobian.T @ change)
    largest = np.linalg.norm(jacobian, 2) ** 2
    known = pulled / largest / np.sqrt(SIZE)
    assert scores.i2f_bound == pytest.approx(known, rel=1e-3)
    # It is a bound of what the influence function says.
    off = np.linalg.pinv(jacobian) @ change
    assert 0 < known < np.sqrt(np.mean(off**2))
    assert np.isnan(case(False)[0].i2f_bound)  # nothing was done


@pytest.mark.parametrize("noisy", (False, True))
def test_the_cramer_rao_bound_is_a_trace(noisy):
    scores, jacobian, change, _, upload = case(noisy)
    deviation = np.sqrt(np.mean(change**2))
    rounding = 2.0**-24 * np.sqrt(np.mean(upload**2))
    deviation = max(deviation, rounding)
    information = jacobian.T @ jacobian / deviation**2 + 12 * np.eye(SIZE)
    known = np.trace(np.linalg.inv(information)) / SIZE
    # In float32 what was not done to an upload is rounding of another order.
    assert scores.cramer_rao == pytest.approx(known, rel=0.01 if noisy else 0.5)
    assert scores.cramer_rao < 1 / 12


def test_known_bounds():
    """Noise as large as the signal halves nothing but what it says; none gives 0."""
    upload = jnp.ones(4)
    found = cramer_rao(jnp.array([0.0, 2.0]), jnp.full(4, 0.5), upload)
    assert found == pytest.approx(np.mean([1 / 12, 1 / (16 + 12)]))
    assert cramer_rao(jnp.ones(2), jnp.zeros(4), upload) < 1e-13
    assert cramer_rao(jnp.zeros(2), jnp.zeros(4), jnp.zeros(4)) == pytest.approx(1 / 12)


def test_more_noise_is_less_risk():
    assert case(True)[0].cramer_rao > 100 * case(False)[0].cramer_rao


def shapes(**changes):
    here = ground(none())
    step = quick_jit(one_step(MODEL, here.task.loss, none(), train=False))
    params, stats = MODEL.init(jax.random.key(3))
    update = step(jax.random.key(0), Public(params), stats, Private(), ROWS, TARGETS)
    update = update._replace(**changes)
    view = threats.observe(here.threat, update)
    scores = quick_jit(lambda *seen: risk_scores(here, PRESETS["dlg"], *seen))
    return scores(update, view)


@pytest.mark.slow
def test_attacks_are_shown_no_risk():
    """Every attack finds the very same with and without them, and so do its floors."""
    arms = ("gaussian-noise=0.01", "keylock/regress_gates")
    plain, risky = (
        scored(study(arms=arms, victims=2, channels=1, risk=risk))
        for risk in (False, True)
    )
    for before, after in zip(plain, risky, strict=True):
        risks = {name for name in after if name.startswith("risk_")}
        assert len(risks) == len(Risk._fields) and risks <= before.keys()
        assert all(before[name] is None for name in risks)
        for name in after.keys() - risks:
            known = after[name]
            if isinstance(known, float):
                known = pytest.approx(known, rel=1e-3, abs=1e-6, nan_ok=True)
            assert before[name] == known, name
        attacked = after["attack"] is not None
        assert (after["risk_largest"] is not None) == attacked
        noisy = after["arm"].startswith("gaussian")
        assert (after["risk_i2f_bound"] is not None) == noisy


def test_an_update_of_several_steps_has_scores():
    """Its Jacobian goes through all of the training; it is traced, and not computed."""
    declared = threats.least_knowledge(
        threats.Strategy(secret="unit", labels="given"), examples=2, upload="update"
    )
    protocol = Protocol(optax.sgd(0.1), 2, 1, 0.1)
    here = setting(
        declared,
        none(),
        model=MODEL,
        inputs=SPEC,
        num_classes=2,
        sites=(),
        protocol=protocol,
    )
    train = local_update(
        MODEL, here.task.loss, none(), optax.sgd(0.1), steps=2, batch=1
    )

    def run(rows):
        params, stats = MODEL.init(jax.random.key(3))
        received = Public(params)
        update = train.run(
            jax.random.key(0),
            jnp.asarray(0),
            received,
            stats,
            train.init(received, Private()),
            rows,
            np.array([0, 1]),
        )
        view = threats.observe(declared, update)
        return risk_scores(here, PRESETS["dlg"], update, view)

    found = jax.eval_shape(run, ROWS)
    assert {leaf.shape for leaf in found} == {()}


def test_tokens_have_no_derivative():
    found = shapes(inputs=np.array([[1, 2], [3, 4]], np.int32))
    assert all(map(np.isnan, found)) and len(found) == len(Risk._fields)


def test_of_many_entries_the_largest_alone_is_computed(monkeypatch):
    monkeypatch.setattr(risk, "LIMIT", SIZE - 1)
    monkeypatch.setattr(risk, "STEPS", SIZE - 1)
    found = shapes()
    assert found.largest == pytest.approx(case(False)[0].largest, rel=1e-3)
    assert np.isnan([found.least, found.cramer_rao, found.curvature_least]).all()
    assert np.isfinite(found.curvature_largest)
