"""Sweeps of an attack that learns: once for each cell, as a study of it does."""

import dataclasses

import numpy as np
import pytest
from small_sweeps import LAYOUT, quick, run

from kljax.studies.leakage import leak
from kljax.studies.store import read
from kljax.studies.store.manifest import cells_of, read_manifest
from kljax.studies.sweeps import parse_sweep

SWEEP = {
    "fixed": {
        "model": "dense",
        "image_size": 8,
        "channels": 1,
        "attack": "learned",
        "attack_options": ["width=8", "hashed=32", "uploads=4", "learning_rate=1e-2"],
        "weights": "shared",
        "victims": 3,
        "steps": 4,
    },
    "axes": {"arm": ["gaussian-noise=0.01", "gaussian-noise=10"], "seed": [0, 1]},
}


@pytest.mark.slow
def test_each_cell_learns_for_itself(tmp_path):
    folder = tmp_path / "learned"
    # Parts of two victims: those of a cell are in two chunks, beside other cells'.
    report = run(folder, parse_sweep(SWEEP), part=2)
    assert not report.failed
    rows = read(folder).rows.to_pandas()
    rows = rows[~rows["arm"].str.startswith("floor/")]
    assert rows.groupby("cell")["validation_error"].nunique().eq(1).all()
    assert rows["validation_error"].nunique() == 4
    cell = cells_of(read_manifest(folder))[0]
    with quick():
        alone = leak(dataclasses.replace(cell.config, layout=LAYOUT)).to_frame()
    alone = alone[~alone["arm"].str.startswith("floor/")].sort_values("victim")
    swept = rows[rows["cell"] == cell.id].sort_values("victim")
    np.testing.assert_allclose(swept["mse"], alone["mse"], rtol=1e-3)
