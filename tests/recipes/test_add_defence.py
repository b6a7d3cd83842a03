"""Recipe: a defence, with numbers, a memory and an attacker that knows of it."""

import pytest

import kljax
from kljax import cli

DEFENCE = """
    import jax
    import jax.numpy as jnp
    from kljax.defences import Defence

    def fading(factor, least=0.1):
        \"\"\"Sends each gradient weaker than the last, down to a least share.\"\"\"
        def share(sent_before):
            return jnp.maximum(factor ** (sent_before + 1.0), least)

        def release(rng, sent_before, grads, context):
            sent = jax.tree.map(lambda g: share(sent_before) * g, grads)
            return sent, sent_before + 1.0

        def simulate(grads, sent, earlier, private):
            before = 0.0 if earlier is None else jax.tree.leaves(earlier)[0].shape[0]
            return jax.tree.map(lambda g: share(before) * g, grads)

        return Defence(
            release=release, simulate=simulate, init_state=lambda grads: jnp.zeros(())
        )

    def unknown(factor):
        \"\"\"Makes the same, of which no attacker knows.\"\"\"
        return Defence(release=fading(factor).release, init_state=lambda grads: 0.0)

    def classifier_hidden(layer="fc"):
        \"\"\"Sends all, and lets the server read nothing of the classifier.\"\"\"
        def visible(rng, sent, context):
            def mask(path, leaf):
                return jnp.full(leaf.shape, layer not in jax.tree_util.keystr(path))
            return jax.tree_util.tree_map_with_path(mask, sent)
        return Defence(visible=visible)

    def unhidden():
        return classifier_hidden(layer="nothing")
"""


def at_truth(row):
    return float(row["matching_loss_at_truth"])


def test_a_defence_is_studied_beside_none_and_its_attacker_knows_it(mine, leak):
    mine(DEFENCE)
    arms = ("none", "mine:fading=0.5,0.2", "mine:fading=factor=0.01,least=0.2")
    job = leak("--arms", *arms, "mine:unknown=0.5")
    rows = {row["arm"]: row for row in job.of_arms()}
    assert list(rows) == [*arms, "mine:unknown=0.5"]
    for arm in arms:
        assert f"| {arm} " in job.report
        # What an attacker assumes of the truth is what was sent.
        assert at_truth(rows[arm]) == pytest.approx(0, abs=1e-6)
    assert at_truth(rows["mine:unknown=0.5"]) > 1e-3


@pytest.mark.slow
def test_its_numbers_are_an_axis_of_a_sweep_and_data_of_one_compilation(mine, tmp_path):
    mine(DEFENCE)
    (tmp_path / "mine.toml").write_text(
        """
[fixed]
model = "dense"
image_size = 8
victims = 1
steps = 2
optimiser = "adam"
private_key_size = 16

[axes]
arm = ["mine:fading=0.5", "mine:fading=0.9", "mine:fading=0.9,0.3"]
"""
    )
    did = kljax.sweep(
        tmp_path / "mine.toml", tmp_path / "study", layout=kljax.Layout("chunked", 1)
    )
    # One group: its draws, its floors and its attack, whatever the numbers.
    assert (did.attacks, did.compilations) == (3, 3)
    page = kljax.reports.write_report(kljax.store.read(tmp_path / "study"))
    report = page.with_name("report.md").read_text()
    for arm in ("mine:fading=0.5", "mine:fading=0.9", "mine:fading=0.9,0.3"):
        assert f"| {arm} " in report


@pytest.mark.slow
def test_what_it_hides_is_not_seen(mine, leak):
    mine(DEFENCE)
    arms = "mine:unhidden", "mine:classifier_hidden"
    seen, hidden = leak("--arms", *arms).of_arms()
    assert seen["label_guess"] == seen["label"]
    assert hidden["label_guess"] == "-1"  # nothing says anything of labels


def test_an_option_that_it_has_not_is_named(mine, capsys):
    mine(DEFENCE)
    for arm, said in (
        ("mine:fading", "factor"),
        ("mine:fading=0.5,least=0.2,most=1", "most"),
        ("mine:fading=0.5,0.2,1", "mine:fading"),
    ):
        assert cli.main(["leak", "--arms", arm, "--model", "dense"]) == 2
        assert said in capsys.readouterr().err
