"""Recipe: a modality: one InputSpec, its scores, its source of data. Here, tables."""

import importlib

import pytest

from kljax import cli

TABLE = """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from kljax import data
    from kljax.core.inputs import InputSpec, SearchSpace
    from kljax.metrics import outcomes
    from kljax.metrics.kinds import Kind

    COLUMNS = 6

    # --- the input: a row of numbers, scaled to [0, 1] ------------------------------

    def check(rows, places, name):
        wrong = ~np.isfinite(rows).all(axis=1)
        if wrong.any():
            raise ValueError(f"row {places[wrong][0]} of {name} is not finite")
        return rows.astype(np.float32)

    SPEC = InputSpec(
        kind="mine:ROWS",
        shape=(COLUMNS,),
        dtype=np.float32,
        check=check,
        search=SearchSpace(
            shape=lambda params: (COLUMNS,), project=lambda x: jnp.clip(x, 0.0, 1.0)
        ),
        draw=lambda rng, count: jax.random.uniform(rng, (count, COLUMNS)),
        spell=lambda row: " ".join(f"{value:.2f}" for value in row),
    )

    # --- its scores, and what is reached without any gradient ------------------------

    def score(guesses, truths, spec):
        error = np.mean((guesses - truths) ** 2, axis=1)
        return {"mse": error, "psnr": -10 * np.log10(np.maximum(error, 1e-10))}

    def floors(row, label, index, reference, seed):
        return {"column_means": reference.mean(axis=0)}

    def best_floors(truths, made, scores):
        return {"floor_mse": scores["column_means"][1]["mse"]}

    def outcome(row, matching_loss, loss_floor, finite):
        return outcomes.judge(
            right=row["mse"] <= row["floor_mse"] / 2,
            matching_loss=matching_loss,
            loss_floor=loss_floor,
            finite=finite,
        )

    ROWS = Kind(
        score=score,
        primary="psnr",
        caption=lambda psnr: f"{psnr:.1f} dB",
        reference=lambda rows, labels, indices, spec: rows,
        floors=("column_means",),
        make_floors=floors,
        best_floors=best_floors,
        success=lambda row: row["psnr"] > 20,
        success_words="PSNR > 20 dB",
        reading="*recovered*: at most half the squared error of the columns' means.",
        outcome=outcome,
        noun="row",
    )

    # --- data, and a network that takes it -------------------------------------------

    def table(shape):
        generator = np.random.default_rng(0)
        rows = generator.random((40, COLUMNS))
        labels = (rows[:, 0] > 0.5).astype(int)
        return data.Dataset(
            "table", rows, labels, 2, groups=None, licence="drawn", input_spec=SPEC
        )

    def broken(shape):
        rows = np.full((4, COLUMNS), 0.5)
        rows[2, 1] = np.nan
        return data.Dataset(
            "broken", rows, np.arange(4) % 2, 2, None, "-", input_spec=SPEC
        )

    class Network(nnx.Module):
        def __init__(self, num_classes, *, image_shape, rngs):
            self.hidden = nnx.Linear(COLUMNS, 16, rngs=rngs)
            self.head = nnx.Linear(16, num_classes, rngs=rngs)

        def __call__(self, rows):
            return self.head(nnx.sigmoid(self.hidden(rows)))
"""
OPTIONS = (
    "--data mine:table --model mine:Network --classifier head --attack dlg".split()
)


@pytest.mark.slow
def test_rows_of_a_table_are_attacked_scored_and_reported(mine, leak):
    mine(TABLE)
    job = leak(*OPTIONS, "--victims", "3", "--steps", "300", "--step-size", "0.1")
    attacked = job.of_arms()
    assert {row["arm"] for row in job.rows} == {"none", "floor/column_means"}
    # A dense layer with a bias gives its input away, and the search finds it.
    assert {row["outcome"] for row in attacked} == {"recovered"}
    assert all(float(row["psnr"]) > 20 for row in attacked)
    assert all(row["ssim"] == "" for row in job.rows)  # no score of images
    assert "# Leakage of `mine:Network` on `mine:table`" in job.report
    assert "PSNR > 20 dB [95 %]" in job.report
    # It is called what it is.
    assert {row["kind"] for row in job.rows} == {"mine:ROWS"}
    assert "| rows" in job.report and "image" not in job.report
    assert (job.folder / "gallery.png").stat().st_size > 1000


def test_what_is_no_row_is_refused(mine, capsys):
    mine(TABLE)
    with pytest.raises(ValueError, match="row 2 of dataset 'broken' is not finite"):
        importlib.import_module("mine").broken(())
    # A prior of images says what it is for.
    assert cli.main(["leak", *OPTIONS, "--attack", "matching"]) == 2
    assert "mine:ROWS" in capsys.readouterr().err
