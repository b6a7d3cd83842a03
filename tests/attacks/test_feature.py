"""The classifier's input: how exactly it leaks, and as a term of any attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_studies import scored, study, tiny
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    LOCK,
    locked_update,
    quick_jit,
    random_images,
    random_weights,
    replace_fields,
    setting,
    threat,
    toy_model,
)

from kljax.attacks import SECRETS, Candidate, dense_input, feature, no_prior
from kljax.attacks.presets import PRESETS
from kljax.attacks.priors import squared_variation, with_feature
from kljax.core.inputs import images_of
from kljax.core.types import Gate, Private, Public
from kljax.defences import keylock, none
from kljax.federated.clients import one_step
from kljax.models import from_nnx
from kljax.studies import leak_report, leak_summary
from kljax.studies.builder.study import build_study
from kljax.studies.diagnosis import feature_error
from kljax.threat import LocalSteps, Strategy, least_knowledge, observe

DEFENCE = keylock(LOCK)
REGRESS = threat("regress_gates", "joint")
EVAL = {"victim_norm": "eval", "attacker_norm": "eval"}  # as the toy client steps
# Three have a generator, one needs a density, one looks for rows of a table, and one
# takes updates alone.
ELSEWHERE = ("ggl", "gias", "gifd", "likelihood", "tableak", "sme")
ITERATIVE = sorted(
    name
    for name in PRESETS
    if PRESETS[name].objective is not None
    and "image" in (PRESETS[name].inputs or ("image",))
    and name not in ELSEWHERE
)

# --- how exactly it leaks ----------------------------------------------------------


@pytest.fixture(scope="module")
def finished():
    """One example under arms that lock and disturb."""
    result = study(
        arms=(
            "none",
            "keylock/unit",
            "gaussian-noise=0.1",
        )
    )
    return result, scored(result)


def errors(rows, arm):
    # One error for each upload, which the row of its first image says, too.
    rows = [row for row in rows if row["arm"] == arm and row["example"] == 0]
    return [row["feature_error"] for row in rows]


def test_no_lock_hides_it_and_a_changed_gradient_does(finished):
    result, rows = finished
    for arm in ("none", "keylock/unit"):
        assert max(errors(rows, arm)) < 1e-5
    assert min(errors(rows, "gaussian-noise=0.1")) > 0.01
    summary = leak_summary.summarise(result, rows)
    assert summary["arms"]["keylock/unit"]["feature_error"] < 1e-5
    header, lines = leak_report.table(summary)
    column = header.index("feature error")
    shown = {line[0]: line[column] for line in lines}
    assert float(shown["none"]) < 1e-5 and shown["floor: grey"] == "-"


def test_it_is_the_error_of_a_quotient_worked_out_by_hand():
    update = locked_update(1)
    kernel, bias = (update.sent.model[f"fc/{name}"] for name in ("kernel", "bias"))
    disturbed = dict(update.sent.model, **{"fc/kernel": np.asarray(kernel) * 1.5})
    update = update._replace(sent=update.sent._replace(model=disturbed))
    ground = setting(REGRESS, DEFENCE)
    # All of the gradient is half as long again, and so is what follows from it.
    assert feature_error(ground, update) == pytest.approx(0.5, rel=1e-4)
    del disturbed["fc/bias"]
    assert np.isnan(feature_error(ground, update))
    assert np.any(np.asarray(bias) != 0)


@pytest.mark.slow
@pytest.mark.parametrize("examples", (2, 4))
def test_no_lock_hides_those_of_a_batch(examples):
    arms = ("none", "keylock/unit", "gaussian-noise=0.1")
    rows = scored(study(examples=examples, victims=4, arms=arms))
    for arm in arms[:2]:
        # Labels that were recovered wrongly, or are all the same, hide them.
        assert sum(error < 1e-4 for error in errors(rows, arm)) >= 2
    assert min(errors(rows, "gaussian-noise=0.1")) > 0.01


@pytest.mark.slow
def test_what_a_gradient_does_not_determine_has_no_error():
    classes = setting(threat(), DEFENCE).task.num_classes
    batch = setting(threat(examples=classes), DEFENCE)
    assert np.isnan(feature_error(batch, locked_update(classes)))
    several = setting(threat(upload="update"), DEFENCE)
    changed = locked_update(1)._replace(local=LocalSteps(2, 1))
    assert np.isnan(feature_error(several, changed))
    rows = scored(study(examples=10, victims=2))
    assert errors(rows, "none") == [None, None]


class Twice(nnx.Module):
    """Calls its head for either half of the image, and adds up."""

    def __init__(self, rngs: nnx.Rngs, *, outputs=CLASSES, parts=2):
        self.fc = nnx.Linear(4 // parts, outputs, rngs=rngs)
        self.parts = parts

    def __call__(self, images):
        halves = jnp.split(images.reshape(images.shape[0], -1), self.parts, axis=1)
        return sum(self.fc(half) for half in halves)


class AtEveryRow(nnx.Module):
    """Applies its head to every row of the image at once."""

    def __init__(self, rngs: nnx.Rngs):
        self.fc = nnx.Linear(2, CLASSES, rngs=rngs)

    def __call__(self, images):
        return self.fc(images[..., 0]).sum(axis=1)


ODD = {
    "a head that is called twice": (Twice, 1, {}),
    "a head at every row": (AtEveryRow, 1, {}),
    "one output for several classes": (
        functools.partial(Twice, outputs=1, parts=1),
        3,
        {"num_classes": 5, "loss": lambda logits, targets: jnp.mean(logits**2)},
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_a_classifier_without_an_input_of_its_own_has_no_error(name):
    make, examples, changes = ODD[name]
    model = from_nnx(make)
    params, stats = random_weights(model)
    images = random_images(examples, *IMAGE_SHAPE)
    classes = changes.get("num_classes", CLASSES)
    targets = np.eye(classes, dtype=np.float32)[np.arange(examples) % classes]
    declared = threat("unit", "given", examples=examples, labels="known")
    ground = setting(declared, none(), model=model, sites=(), **changes)
    step = one_step(model, ground.task.loss, none(), train=False)
    update = quick_jit(step)(
        jax.random.key(0), Public(params), stats, Private(), images, targets
    )
    assert np.isnan(feature_error(ground, update))


def test_a_rule_that_does_not_fit_leaves_no_error():
    """The attack is given its labels, and needs no rule."""
    declared = threat("unit", "given", examples=2, labels="known")
    ground = setting(declared, DEFENCE, label_rule="idlg")  # of one example alone
    assert np.isnan(feature_error(ground, locked_update(2)))


# --- as a term of any attack -------------------------------------------------------


def gates_of(public, lock):
    return lock


def test_it_is_added_to_an_attacks_own_priors():
    update = locked_update(1)
    view, images = observe(REGRESS, update), random_images(1, *IMAGE_SHAPE, seed=8)
    gate = Gate(np.ones(3, np.float32), np.zeros(3, np.float32))
    candidate = Candidate(images, update.targets, {"norm": gate})
    ground, own = setting(REGRESS, DEFENCE, features=0.3), squared_variation(2.0)
    progress = np.float32(0)
    parts = [
        own(view, candidate, progress),
        feature(ground, gates_of, 0.3)(view, candidate, progress),
    ]
    assert min(parts) > 1e-4
    whole = with_feature(ground, gates_of, own)(view, candidate, progress)
    assert whole == pytest.approx(float(sum(parts)), rel=1e-5)
    without = replace_fields(ground, features=0.0)
    alone = with_feature(without, gates_of, own)(view, candidate, progress)
    assert alone == pytest.approx(float(parts[0]), rel=1e-6)
    assert with_feature(without, gates_of) is no_prior


@pytest.mark.parametrize("hidden", ([0], [1, 2]))
def test_inputs_of_which_nothing_can_be_read_are_no_target(hidden):
    """Rows of the classifier's gradient are hidden; its bias is not."""
    update, ground = locked_update(1), setting(REGRESS, DEFENCE)
    visible = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), update.sent)
    visible.model["fc/kernel"][hidden] = False
    view = observe(REGRESS, update._replace(visible=visible))
    gate = Gate(np.full(3, 1.3, np.float32), np.full(3, 0.2, np.float32))
    prior = feature(ground, gates_of, 0.3)

    def of(images):
        candidate = Candidate(images, update.targets, {"norm": gate})
        return prior(view, candidate, np.float32(0))

    def by_hand(images):
        out = ground.task.model.apply(
            view.public.model,
            view.stats,
            images,
            gates={"norm": gate},
            taps=("fc:input",),
            train=False,
        )
        sent = update.sent.model
        wanted = dense_input(sent["fc/kernel"], sent["fc/bias"])
        told = np.delete(np.arange(3), hidden)
        return 0.3 * jnp.sum((out.taps["fc:input"][0] - wanted)[told] ** 2)

    images = random_images(1, *IMAGE_SHAPE, seed=8)
    (value, slopes), (expected, its) = (
        quick_jit(jax.value_and_grad(function))(images) for function in (of, by_hand)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slopes, its, rtol=1e-4, atol=1e-7)
    assert np.any(its != 0)


@pytest.mark.parametrize("name", ITERATIVE)
def test_every_attack_that_searches_takes_it(name):
    """Where it cannot be, asking for it is refused: so it was asked for."""
    preset = PRESETS[name]
    plan = Strategy(secret="regress_gates", labels=preset.labels)
    declared = least_knowledge(plan, **EVAL, **preset.needs, examples=2)

    def apply(params, stats, images, **options):
        blocks = images.reshape(images.shape[0], 2, 4, 2, 4, 1)
        return toy_model().apply(params, stats, blocks.mean(axis=(2, 4)), **options)

    def init(rng):
        params, stats = toy_model().init(rng)
        if name.startswith("april"):
            params["positions"] = np.zeros((5, 3), np.float32)
        return params, stats

    model = toy_model()._replace(apply=apply, init=init)
    ground = setting(declared, DEFENCE, model=model, inputs=images_of((8, 8, 1)))
    preset.build(ground, steps=1, restarts=2)
    with pytest.raises(ValueError, match="classifier's input is exact for one example"):
        preset.build(replace_fields(ground, features=0.1), steps=1, restarts=2)


@pytest.mark.parametrize("name", ("rgap", "april", "imprint"))
def test_a_closed_form_has_no_term(name):
    config = tiny(attack=name, optimiser=None, features=0.1)
    with pytest.raises(ValueError, match=f"{name} has no objective that features=0.1"):
        build_study(config)


@pytest.mark.slow
def test_the_term_brings_the_classifiers_input_nearer():
    """Against a lock that is taken for unit gates, which never matches the gradient."""
    declared, update = threat("unit", "recovered"), locked_update(1)
    view, apart = observe(declared, update), {}
    for weight in (0.0, 10.0):
        ground = setting(declared, DEFENCE, features=weight)
        attack = PRESETS["matching"].build(ground, steps=60, restarts=1)
        found = quick_jit(attack)(jax.random.key(0), view)
        assert bool(found.finite)
        candidate = Candidate(found.inputs, update.targets, found.info["secret"])
        term = feature(ground, SECRETS["unit"](ground).gates, 1.0)
        apart[weight] = float(term(view, candidate, np.float32(0)))
    assert apart[10.0] < 0.9 * apart[0.0]


def test_a_study_hands_its_weight_on():
    (job,) = build_study(tiny(features=0.2)).attacks
    assert job.setting.attacker.features == 0.2
    with pytest.raises(ValueError, match="classifier's input is exact for one example"):
        build_study(tiny(features=0.2, examples=2))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="features must be a number >= 0"):
        tiny(features=-0.1)
