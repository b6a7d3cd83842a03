"""Arms: what is written on the command line, and the defence that it stands for."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import outside_package
import pytest
from tiny_studies import sites_of

from kljax.attacks import SECRETS
from kljax.core.types import Gate, Public
from kljax.defences import Context, Defence
from kljax.defences.arms import (
    KINDS,
    parse_arm,
    parse_training_arm,
    split_combination,
)
from kljax.threat import KEYLOCK_STRATEGIES
from kljax.threat.secrets import OWN_NAMES

SITES = sites_of("layers/0")
GRADS = Public({"w": jnp.array([3.0, -4.0, 0.1, 0.2, -0.3])})


def parse(text, sites=SITES):
    return parse_arm(text, sites, {})


CONTEXT = Context(
    GRADS,
    {},
    jnp.zeros((1, 2, 2, 1)),
    jnp.zeros((1, 2)),
    gradient=lambda images, targets: SimpleNamespace(public=GRADS),
    loss=lambda public: jnp.sum(public.model["w"]),
    features=lambda name, inputs: inputs.reshape(1, -1)[:, :2] + 1,
)
WITH_CLASSIFIER = Public(GRADS.model | {"classifier/kernel": jnp.ones((2, 3))})


def sent_by(defence, grads=GRADS):
    """What a defence lets a client send."""
    context = CONTEXT._replace(
        public=grads, gradient=lambda *_: SimpleNamespace(public=grads)
    )
    released, _ = defence.release(
        jax.random.key(3), defence.init_state(grads), grads, context
    )
    return released.model["w"]


def sent(arm, grads=GRADS):
    """What an arm's client sends."""
    return np.asarray(sent_by(arm.defence, grads))


def gates(arm):
    public, private = arm.defence.init(jax.random.key(4), {})
    return arm.defence.gates(public, private)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_defence_has_an_arm(name):
    hides = bool(parse_training_arm(name, SITES, {}).defence.strategies)
    text = f"{name}/known" if hides else name
    arm = parse(text)
    assert arm.name == text
    assert isinstance(arm.defence, Defence)
    assert arm.secret_strategy == ("known" if hides else "unit")
    # Gates sit where the norm that a lock brings along is, and only gated arms gate.
    gated = [gate for gate in gates(arm).values() if isinstance(gate, Gate)]
    assert bool(gated) == arm.gated
    assert arm.norm == (arm.gated or name == "bn-control")


def test_strengths_are_those_of_censor_unless_they_are_written():
    """Zhang et al. (NDSS 2025): noise of .01, a fifth pruned, a bound of 4."""
    strengths = {
        "gaussian-noise": {"std": 0.01},
        "magnitude-pruning": {"fraction": 0.2},
        "norm-clipping": {"bound": 4.0},
    }
    assert {name: dict(KINDS[name].options) for name in strengths} == strengths


def test_the_largest_number_is_that_of_float32():
    largest = float(np.finfo(np.float32).max)
    assert largest == 3.4028234663852886e38
    assert parse("norm-clipping=3.4028234663852886e38").options == (largest,)
    with pytest.raises(ValueError, match="bound of norm-clipping must be a finite num"):
        parse("norm-clipping=3.403e38")


@pytest.mark.parametrize("number", ["1e+3", "1.E+3", "1E3", "+1000", "1e+03"])
def test_an_exponent_may_have_a_sign(number):
    arm = parse(f"norm-clipping={number}+gaussian-noise=2e+1")
    assert arm.options == (1000, 20)
    assert arm.skeleton == "norm-clipping+gaussian-noise"


def test_a_combination_is_split_at_what_is_no_sign_of_an_exponent():
    for text, parts in {
        "none": ["none"],
        "keylock+gaussian-noise=1e+3": ["keylock", "gaussian-noise=1e+3"],
        "one:lock1e+norm-clipping=1+two:e": ["one:lock1e", "norm-clipping=1", "two:e"],
        "a=4+b=+.5": ["a=4", "b=+.5"],
    }.items():
        assert split_combination(text) == parts


@pytest.mark.parametrize("strategy", KEYLOCK_STRATEGIES)
def test_every_secret_strategy_can_be_named(strategy):
    arm = parse(f"keylock/{strategy}")
    assert (arm.secret_strategy, arm.norm, arm.gated) == (strategy, True, True)


def test_every_strategy_of_a_threat_model_has_an_attack():
    assert SECRETS.keys() == OWN_NAMES


def test_the_control_starts_from_the_very_gates_of_the_lock():
    lock, control = parse("keylock/known"), parse("plaintext-gates-as-lock")
    for site, gate in gates(lock).items():
        np.testing.assert_array_equal(gate.scale, gates(control)[site].scale)
        np.testing.assert_array_equal(gate.shift, gates(control)[site].shift)
    unit = gates(parse("plaintext-gates"))["layers/0"]
    np.testing.assert_array_equal(unit.scale, np.ones(4))
    np.testing.assert_array_equal(unit.shift, np.zeros(4))
    # Dead channels, which a unit gate has none of, are part of the start.
    many = [
        parse("keylock/known").defence.init(jax.random.key(s), {}) for s in range(9)
    ]
    scales = [lock.defence.gates(*parts)["layers/0"].scale for parts in many]
    assert np.any(np.stack(scales) == 0) and np.any(np.stack(scales) > 0)


def test_a_written_strength_is_used():
    small, large = parse("gaussian-noise=0.5"), parse("gaussian-noise=5")
    added = [sent(arm) - GRADS.model["w"] for arm in (small, large)]
    np.testing.assert_allclose(10 * added[0], added[1], rtol=1e-5)
    np.testing.assert_array_equal(sent(parse("gaussian-noise=0")), GRADS.model["w"])
    np.testing.assert_allclose(
        sent(parse("magnitude-pruning=0.5")), [3, -4, 0, 0, -0.3]
    )
    np.testing.assert_allclose(np.linalg.norm(sent(parse("norm-clipping=2"))), 2, 1e-6)


def test_an_unwritten_strength_is_the_default():
    for name, kind in KINDS.items():
        if kind.options:
            written = ",".join(map(str, kind.options.values()))
            plain, said = (
                parse_training_arm(text, SITES, {})
                for text in (name, f"{name}={written}")
            )
            assert (plain.options, plain.skeleton) == (said.options, said.skeleton)


@pytest.mark.slow
def test_an_unwritten_strength_acts_as_the_default():
    for name, kind in KINDS.items():
        if kind.options:
            written = ",".join(map(str, kind.options.values()))
            plain, said = (
                sent(parse_training_arm(text, SITES, {}), WITH_CLASSIFIER)
                for text in (name, f"{name}={written}")
            )
            np.testing.assert_array_equal(plain, said)


def test_transforms_follow_in_the_order_written():
    pruned_first = sent(parse("magnitude-pruning=0.5+norm-clipping=1"))
    assert np.count_nonzero(pruned_first) == 3
    np.testing.assert_allclose(np.linalg.norm(pruned_first), 1, rtol=1e-6)
    # Noise after pruning fills the zeros; pruning after noise leaves some.
    assert np.all(sent(parse("magnitude-pruning=0.5+gaussian-noise=0.1")) != 0)
    assert np.sum(sent(parse("gaussian-noise=0.1+magnitude-pruning=0.5")) == 0) == 2


def test_a_lock_can_be_chained_with_transforms():
    arm = parse("keylock+magnitude-pruning=0.5+norm-clipping=2/regress_gates")
    assert (arm.secret_strategy, arm.norm, arm.gated) == ("regress_gates", True, True)
    assert gates(arm).keys() == {"layers/0"}
    assert np.count_nonzero(sent(arm)) == 3
    np.testing.assert_allclose(np.linalg.norm(sent(arm)), 2, rtol=1e-6)


def test_arms_that_differ_in_strategy_alone_share_their_defence():
    made = {}
    known = parse_arm("keylock/known", SITES, made)
    guessed = parse_arm("keylock/fixed_mean", SITES, made)
    other = parse_arm("keylock+norm-clipping=2/known", SITES, made)
    assert known.defence is guessed.defence
    assert other.defence is not known.defence
    assert parse_arm("keylock/known", SITES, {}).defence is not known.defence


def test_a_users_defence_can_be_named():
    arm = parse("outside_package:half_gradient")
    assert (arm.norm, arm.gated, arm.secret_strategy) == (False, False, "unit")
    np.testing.assert_allclose(sent(arm), outside_package.HALF * GRADS.model["w"])
    behind_a_lock = parse("keylock+outside_package:half_gradient/known")
    np.testing.assert_allclose(sent(behind_a_lock), 0.5 * GRADS.model["w"])


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("0.3,0.9", 0.3),
        ("0.3", 0.3),
        ("0.3,mix=0.9", 0.3),
        ("mix=0.9,size=0.3", 0.3),
        ("size=-2e-1", -0.2),
    ],
)
def test_options_are_written_in_order_or_by_name(written, size):
    arm = parse(f"outside_package:blended={written}")
    assert arm.options == (size, 0.9 if "0.9" in written else 0.5)
    assert arm.skeleton == "outside_package:blended"
    grads = GRADS.model["w"]
    np.testing.assert_allclose(sent(arm), size * grads, rtol=1e-6)
    # And remembers what it has sent.
    again, _ = arm.defence.release(None, GRADS, GRADS, CONTEXT)
    np.testing.assert_allclose(
        again.model["w"], (size + arm.options[1]) * grads, rtol=1e-6
    )


def test_options_may_be_data():
    arm = parse("magnitude-pruning=0.2+outside_package:blended=0.3,0.9")
    assert arm.options == (0.2, 0.3, 0.9)

    @jax.jit
    def released(options):
        return sent_by(arm.make(options))

    for options in ((0.2, 0.3, 0.9), (0.5, -1.0, 0.0)):
        kept = np.where(np.abs(GRADS.model["w"]) < 0.15, 0, GRADS.model["w"])
        if options[0] == 0.5:
            kept = np.where(np.abs(kept) < 0.3, 0, kept)
        np.testing.assert_allclose(released(options), options[1] * kept, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "lock", "release"),
    [
        ("adadefense", "unit", "simulate"),
        ("adadefense/simulate", "unit", "simulate"),
        ("gaussian-noise/unaware", "unit", "unaware"),
        ("adadefense/undo", "unit", "undo"),
        ("adadefense@update/undo", "unit", "undo"),
        ("keylock+adadefense/known", "known", "simulate"),
        ("keylock+adadefense/known/undo", "known", "undo"),
        ("keylock+norm-clipping/peel/unaware", "peel", "unaware"),
    ],
)
def test_an_attacker_has_a_strategy_about_what_is_sent(text, lock, release):
    arm = parse(text)
    assert (arm.secret_strategy, arm.release_strategy) == (lock, release)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "unknown defence 'nothing'"),
        ("keylok/known", "unknown defence 'keylok' .did you mean 'keylock'"),
        ("", "unknown defence ''"),
        ("none+", "unknown defence ''"),
        ("none,keylock/known", "unknown defence 'none,keylock'"),
        ("keylock", "unknown secret strategy ''.*keylock/STRATEGY.*regress_gates"),
        ("keylock/", "unknown secret strategy ''"),
        ("keylock/knwon", "'keylock/knwon'.*did you mean 'known'"),
        ("none/known", "'none/known': none has no secret strategy, drop '/known'"),
        ("bn-control/known", "bn-control has no secret strategy"),
        ("none/", "none has no secret strategy"),
        ("gaussian-noise=loud", "option std of gaussian-noise.* got 'loud'"),
        ("gaussian-noise=-1", "std must be >= 0, got -1"),
        ("magnitude-pruning=1", "fraction must be in .0, 1., got 1"),
        ("norm-clipping=0", "bound must be > 0, got 0"),
        ("none=3", "'none=3': none has no options, drop '=3'"),
        ("keylock=3/known", "keylock has no options, drop '=3'"),
        ("none/unaware", "'none/unaware' changes nothing that is sent"),
        ("keylock/known/undo", "hides nothing of it: drop '/undo'"),
        ("keylock+adadefense/undo", "unknown secret strategy ''"),
        ("adadefense/unawre", "drop '/unawre' .did you mean 'unaware'"),
        ("gaussian-noise/undo", "does cannot be undone, drop '/undo'"),
        ("adadefense+norm-clipping/undo", "does cannot be undone, drop '/undo'"),
        ("adadefense=beta=1", "no option 'beta'.*options are size, b1, b2, eps"),
        ("adadefense=b2=1", "b2 must be in .0, 1., got 1"),
        ("none+keylock/known", "keylock"),
        ("gaussian-noise+plaintext-gates", "gates or parts of its own"),
        ("outside_package:missing", "has no attribute 'missing'"),
        ("outside_package:no_defence", "gave str, expected a kljax.defences.Defence"),
        ("outside_package:half_gradient=2", "half_gradient has no options"),
        ("gaussian-noise=1,2", "gaussian-noise has no option for '2'; .* std$"),
        (
            "gaussian-noise=sdt=1",
            "no option 'sdt' .did you mean 'std'.*options are std",
        ),
        ("gaussian-noise=std=1,std=2", "option std of gaussian-noise is written twice"),
        ("gaussian-noise=1,std=2", "option std of gaussian-noise is written twice"),
        ("gaussian-noise=1,", "has no option for ''"),
        ("outside_package:blended", "option size of .*blended has no default.*size=N"),
        ("outside_package:blended=mix=1", "option size of .*blended has no default"),
        ("outside_package:blended=mix=1,2", "'2' follows options.*write it by name"),
        ("outside_package:looking=2", "numbers are data.*is_concrete"),
    ],
)
def test_bad_arms_are_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    "text", ["keylock/known", "plaintext-gates", "plaintext-gates-as-lock"]
)
def test_gates_without_a_site_are_refused(text):
    # A lock that silently misses its layer protects nothing.
    with pytest.raises(ValueError, match=f"{text}.*sites"):
        parse(text, sites_of())
    assert parse("none", sites_of()).defence
