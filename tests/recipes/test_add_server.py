"""Recipe: a rule of aggregation, an encryption, and a client's role."""

import csv
import json

import pytest

from kljax import cli

SERVER = """
    import jax
    import jax.numpy as jnp
    from kljax.federated.aggregation import Aggregator
    from kljax.federated.encryption import Cost, Encryption
    from kljax.federated.roles import Role

    def first_half():
        \"\"\"Averages the first half of the clients, and sees no others.\"\"\"
        def finish(server, uploads, weights):
            half = (len(weights) + 1) // 2
            return jax.tree.map(lambda x: x[:half].mean(axis=0), uploads), ()

        return Aggregator(finish, gathers=True, least=2, name="first-half")

    def shouting(attack, factor=1e6):
        \"\"\"Sends its change multiplied.\"\"\"
        def upload(rng, public, stats, upload):
            louder = jax.tree.map(lambda x: factor * x, upload.delta)
            return upload._replace(delta=louder)

        return Role(upload=upload)

    def shifted(offset=5):
        \"\"\"Adds a number to what each client sends, and takes it off the mean.\"\"\"
        def start():
            def add(number, ids, shares, values):
                return shares @ (values + offset) - offset, Cost()

            return add

        return Encryption("shifted", start)
"""
TRAIN = (
    "train --model dense --image-size 8 --arms none --clients 4 --rounds 2 --batch 8 "
    "--examples 64 --test-examples 32 --public-examples 0 --learning-rate 0.1 "
    "--no-floor"
).split()


def train(folder, *options):
    """Runs a training of seconds: rows of metrics.csv, summary.md and the summary."""
    assert cli.main([*TRAIN, *options, "--out", str(folder)]) == 0
    with (folder / "metrics.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    summary = json.loads((folder / "summary.json").read_text())
    return rows, (folder / "summary.md").read_text(), summary


@pytest.mark.slow
def test_a_rule_and_a_role_are_trained_with(mine, tmp_path):
    mine(SERVER)
    options = "--aggregator", "mine:first_half", "--roles"
    # The rule sees clients 0 and 1, and so does not hear client 3.
    unheard, report, summary = train(tmp_path / "a", *options, "3:mine:shouting=1e4")
    assert "Aggregator `mine:first_half`." in report
    assert "Roles `3:mine:shouting=1e4`." in report
    assert summary["config"]["aggregator"] == "mine:first_half"
    heard, _, _ = train(tmp_path / "b", *options, "0:mine:shouting=1e4")
    assert float(unheard[-1]["loss"]) < 3
    assert float(heard[-1]["loss"]) > 100


def test_an_encryption_is_trained_with(mine, tmp_path):
    mine(SERVER)
    rows, report, _ = train(tmp_path / "a", "--encryption", "mine:shifted=3")
    assert "Encryption `mine:shifted=3`." in report
    assert float(rows[-1]["loss"]) < 3  # every weight would be 3 too large otherwise


@pytest.mark.parametrize(
    ("options", "said"),
    (
        ("--aggregator mine:first_half --clients 1", "needs 2 clients in a round"),
        ("--roles 9:mine:shouting", "there is no client 9"),
        ("--roles 0:mine:shouting=1,2", "shouting"),
        ("--aggregator mine:shouting", "shouting"),
        ("--encryption mine:first_half", "gave no kljax.federated.encryption"),
        ("--encryption mine:shifted --aggregator mine:first_half", "first-half looks"),
    ),
)
def test_what_does_not_fit_is_named(mine, capsys, options, said):
    mine(SERVER)
    assert cli.main([*TRAIN, *options.split()]) == 2
    assert said in capsys.readouterr().err
