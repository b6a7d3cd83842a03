"""Recipe: a defence that hides something, with what attackers may do about that."""

import pytest

import kljax
from kljax import cli

DEFENCE = """
    import jax
    import jax.numpy as jnp
    from kljax.attacks import Unknown
    from kljax.core.types import Private
    from kljax.defences import Defence
    from kljax.threat import SecretStrategy

    def known(setting):
        return Unknown(
            start=lambda rng, view: ((), Private(view.private_key)),
            decode=lambda free, fixed: fixed,
        )

    def searched(setting):
        \"\"\"Looks for the logarithm of the size, from that of 1.\"\"\"
        return Unknown(
            start=lambda rng, view: (jnp.zeros(()), ()),
            decode=lambda free, fixed: Private(jnp.exp(free)),
        )

    def hidden_size(low, high=3.0):
        \"\"\"Multiplies what is sent by a number that the client alone knows.\"\"\"
        def init(rng, params):
            return (), Private(jax.random.uniform(rng, minval=low, maxval=high))

        def times(grads, private):
            return jax.tree.map(lambda g: private.secret * g, grads)

        return Defence(
            init=init,
            release=lambda rng, state, grads, context: (
                times(grads, context.private), state
            ),
            simulate=lambda grads, sent, earlier, private: times(grads, private),
            strategies=(
                SecretStrategy(
                    "known", "It is given the size.", {"private_key": ("known",)}, known
                ),
                SecretStrategy(
                    "search",
                    "It looks for the size along with the {noun}.",
                    unknown=searched,
                ),
                SecretStrategy(
                    "lowest",
                    "It takes the lowest size, which is a number of the defence.",
                    unknown=lambda setting: Unknown(
                        start=lambda rng, view: ((), Private(jnp.asarray(low))),
                        decode=lambda free, fixed: fixed,
                    ),
                ),
            ),
        )

    def hidden_size_with(*strategies):
        return hidden_size(1.0)._replace(strategies=strategies)

    def useless():
        return hidden_size_with("guess")

    def misnamed():
        return hidden_size_with(SecretStrategy("peel", "It peels.", unknown=searched))

    def idle():
        return hidden_size_with(SecretStrategy("guess", "It rests."))

    def unheard():
        needs = {"privat_key": ("known",)}
        return hidden_size_with(
            SecretStrategy("guess", "It is given it.", needs, known)
        )

    def twice():
        same = SecretStrategy("guess", "It looks for it.", unknown=searched)
        return hidden_size_with(same, same)

    def older():
        return hidden_size(1.0)._replace(simulate=lambda grads, sent, earlier: grads)
"""
SWEEP = """
[fixed]
model = "dense"
image_size = 8
victims = 1
steps = 2
optimiser = "adam"

[axes]
arm = ["mine:hidden_size=2,2/known", "mine:hidden_size=2,2/search"]
"""


def loss(row, at=""):
    return float(row[f"matching_loss{at}"])


@pytest.mark.slow
def test_its_strategies_are_arms_and_rows_and_sections_of_a_report(mine, leak):
    mine(DEFENCE)
    arms = [f"mine:hidden_size=1.5,3/{name}" for name in ("known", "search", "lowest")]
    rows = leak("--arms", *arms, "--steps", "200").of_arms()
    assert [row["arm"] for row in rows] == arms
    assert [row["secret_strategy"] for row in rows] == ["known", "search", "lowest"]
    for row in rows:
        # With the client's own secret a replay gives what was sent.
        assert loss(row, "_at_truth") == pytest.approx(0, abs=1e-9)
    known, searched, lowest = map(loss, rows)
    assert searched < lowest and known < lowest


@pytest.mark.slow
def test_what_a_strategy_does_follows_from_the_numbers_of_its_arm(mine):
    """Arms that share a compilation do not share a guess."""
    mine(DEFENCE)
    arms = ("mine:hidden_size=2,2/lowest", "mine:hidden_size=1,2/lowest")

    def losses(*arms):
        config = kljax.LeakConfig(
            model="dense", image_size=8, victims=1, steps=50, arms=arms
        )
        attacked = kljax.leak(config).arms
        return [float(arm.attacked.reconstruction.loss[0]) for arm in attacked]

    right, wrong = losses(*arms)
    assert losses(arms[1]) == pytest.approx([wrong], rel=1e-3)
    assert right < wrong / 10


def test_a_strategy_that_needs_what_is_hidden_is_refused(mine, capsys):
    mine(DEFENCE)
    job = ["leak", "--model", "dense", "--arms", "mine:hidden_size=1/known"]
    assert cli.main([*job, "--threat", "private_key=hidden"]) == 2
    said = capsys.readouterr().err
    assert "secret='known' needs private_key='known'" in said


@pytest.mark.slow
def test_a_sweep_takes_them_and_its_report_says_what_they_do(mine, tmp_path):
    mine(DEFENCE)
    (tmp_path / "mine.toml").write_text(SWEEP)
    layout = kljax.Layout("chunked", 1)
    kljax.sweep(tmp_path / "mine.toml", tmp_path / "study", layout=layout)
    page = kljax.reports.write_report(kljax.store.read(tmp_path / "study"))
    report = page.with_name("report.md").read_text()
    for said in ("It is given the size.", "It looks for the size along with the image"):
        assert said in report
    assert set(kljax.read_rows(tmp_path / "study")["secret_strategy"].dropna()) == {
        "known",
        "search",
    }


@pytest.mark.parametrize(
    ("arm", "said"),
    (
        ("hidden_size=1", "unknown secret strategy ''.*known, search, lowest"),
        ("hidden_size=1/serch", "did you mean 'search'"),
        ("useless/guess", "strategy 'guess' is no kljax.threat.SecretStrategy"),
        ("twice/guess", "strategy 'guess' is there twice"),
        ("misnamed/peel", "'peel' is one of kljax: take another name"),
        ("idle/guess", "strategy 'guess' does nothing: give it `unknown`"),
        ("unheard/guess", "'privat_key', which is no fact.*mean 'private_key'"),
        ("older/known", r"simulate\(grads, sent, None, private\) raises TypeError"),
    ),
)
def test_what_is_wrong_with_a_strategy_is_named(mine, arm, said):
    mine(DEFENCE)
    config = kljax.LeakConfig(model="dense", image_size=8, arms=(f"mine:{arm}",))
    with pytest.raises(ValueError, match=f"(?s)mine:{arm.partition('=')[0]}.*{said}"):
        kljax.leak(config)
