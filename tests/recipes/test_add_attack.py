"""Recipe: an attack from a paper, with an objective, a prior, an optimiser of its own.

And a label rule. Each is one function; what it is not about is taken from the library.
"""

import pytest

from kljax import cli

ATTACK = """
    import jax
    import jax.numpy as jnp
    import optax
    from kljax.attacks import adam, from_optax, normal
    from kljax.attacks.presets import Preset
    from kljax.attacks.presets.plain import gradient_matching

    def mean_squares():
        \"\"\"Averages the squared distance in each tensor.\"\"\"
        def objective(simulated, observed):
            apart = jax.tree.map(lambda a, b: (a - b) ** 2, simulated, observed)
            return sum(jnp.mean(leaf) for leaf in jax.tree.leaves(apart))
        return objective

    def towards_grey(weight):
        \"\"\"Pulls images towards grey.\"\"\"
        def prior(view, candidate, progress):
            return weight * jnp.mean((candidate.inputs - 0.5) ** 2)
        return prior

    def build(setting, optimiser=None, *, steps, restarts, weight=1e-3):
        return gradient_matching(
            setting,
            optimiser=optimiser or adam(0.1),
            steps=steps,
            restarts=restarts,
            start=normal(0.5, 0.1),
            prior=towards_grey(weight),
            objective=mean_squares(),
        )

    attack = Preset(build, "recovered", lambda setting: mean_squares())

    def all_grey(setting, optimiser=None, **budget):
        return build(setting, optimiser, weight=1e6, **budget)

    def slow_descent():
        return from_optax(optax.sgd(1e-9))

    def last_class(setting, view):
        \"\"\"Says of each example that it is of the last class.\"\"\"
        return jnp.full(setting.threat.knowledge.examples, setting.task.num_classes - 1)
"""


@pytest.mark.parametrize("arm", ("none", "keylock/regress_gates"))
def test_an_attack_is_run_in_every_arm_and_judged(mine, leak, arm):
    mine(ATTACK)
    job = leak("--attack", "mine:attack", "--arms", arm)
    (row,) = job.of_arms()
    assert row["attack"] == "mine:attack"
    assert row["evaluations"] == "2"
    # Its objective is known, so that its end can be called matched or not.
    assert float(row["matching_loss_floor"]) > 0 and row["outcome"]
    assert "`mine:attack` with 1 restart(s) of 2 evaluations" in job.report


def test_its_prior_decides_what_is_found(mine, leak):
    mine(ATTACK)
    steps = "--steps", "60", "--optimiser", "adam", "--step-size", "0.1"
    job = leak("--attack", "mine:all_grey", *steps)
    (row,) = job.of_arms()
    grey = next(r for r in job.rows if r["arm"] == "floor/grey")
    assert float(row["mse"]) == pytest.approx(float(grey["mse"]), abs=0.01)


def test_an_optimiser_moves_it(mine, leak):
    mine(ATTACK)
    job = leak("--optimiser", "mine:slow_descent")
    (row,) = job.of_arms()
    assert row["optimiser"] == "mine:slow_descent"
    # It has not left its grey start.
    grey = next(r for r in job.rows if r["arm"] == "floor/grey")
    assert float(row["mse"]) == pytest.approx(float(grey["mse"]), abs=0.05)


def test_a_label_rule_is_believed(mine, leak):
    mine(ATTACK)
    (row,) = leak("--label-rule", "mine:last_class").of_arms()
    assert row["label_guess"] == "9"
    assert row["label_rule_holds"] == ""  # nobody has said when it does


def test_what_is_no_part_is_refused_by_name(mine, capsys):
    mine("number = 3")
    for option, kind in (("--attack", "attack"), ("--label-rule", "label rule")):
        assert cli.main(["leak", option, "mine:number", "--model", "dense"]) == 2
        assert (
            f"{kind} 'mine:number' is no function, but int" in capsys.readouterr().err
        )
