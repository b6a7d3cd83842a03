"""Two studies become one."""

import pytest
from small_sweeps import parts, run, sweep_of

from kljax.studies import store
from kljax.studies.store.manifest import open_study, read_manifest
from kljax.studies.store.merging import merge_studies
from kljax.studies.sweeps import expand, parse_sweep

KEPT = {"reconstructions": True}
AXES = {"arm": ["none"], "seed": [0, 1], "step_size": [0.1]}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "first"
    run(folder, sweep_of(axes=AXES, options=KEPT))
    return folder


def by_cell(folder):
    rows = {}
    for row in store.read(folder).rows.to_pylist():
        rows[row["cell"], row["arm"], row["victim"]] = row
    return rows


def test_two_studies_are_merged(first, tmp_path):
    second = tmp_path / "second"
    both = tmp_path / ("b" * 255)  # as long as file systems have names
    run(second, sweep_of(axes=AXES | {"seed": [1, 2]}, options=KEPT))
    merge_studies(first, second, both)
    study = store.read(both)
    assert len(study.manifest["cells"]) == 3
    assert study.manifest["axes"]["seed"] == ["0", "1", "2"]
    assert not store.missing_cells(study)
    assert by_cell(both) == by_cell(second) | by_cell(first)
    assert len(list((both / "reconstructions").iterdir())) == 3
    with pytest.raises(FileExistsError):
        merge_studies(first, second, both)
    # Its sweep is that of both: it can be gone on with, and nothing is missing.
    sweep = parse_sweep(study.manifest["sweep"])
    ids = {cell["id"] for cell in study.manifest["cells"]}
    assert {cell.id for cell in expand(sweep).cells} == ids
    before = parts(both)
    run(both, sweep, on_chunk=pytest.fail)
    assert parts(both) == before


@pytest.mark.slow
def test_batches_are_merged_with_all_of_their_images(tmp_path):
    for name, seeds in (("one", [0]), ("two", [1])):
        run(
            tmp_path / name,
            sweep_of(victims=3, examples=2, axes=AXES | {"seed": seeds}),
            part=2,
        )
    both = tmp_path / "both"
    merge_studies(tmp_path / "one", tmp_path / "two", both)
    assert by_cell(both) == by_cell(tmp_path / "one") | by_cell(tmp_path / "two")
    assert len(by_cell(both)) == 2 * 3 * 2 * 7
    assert not store.missing_cells(store.read(both))
    before = parts(both)
    run(both, parse_sweep(read_manifest(both)["sweep"]), part=2, on_chunk=pytest.fail)
    assert parts(both) == before


def test_what_is_finished_in_neither_is_missing_and_can_be_finished(first, tmp_path):
    second, both = tmp_path / "second", tmp_path / "both"
    sweep = sweep_of(axes=AXES | {"seed": [1, 2]}, options=KEPT)
    open_study(second, sweep, expand(sweep), part=8)  # and nothing is run
    merge_studies(second, first, both)
    study = store.read(both)
    assert [cell["point"]["seed"] for cell in store.missing_cells(study)] == ["2"]
    assert run(both, parse_sweep(study.manifest["sweep"])).attacks
    assert not store.missing_cells(store.read(both))


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        # Each at points that the first study does not have: no cell contradicts one.
        ({"steps": 5}, "steps is 4 in the first study and 5 in the second: what"),
        ({"weights": "shared"}, "weights is 'fresh' in the first study and 'shared'"),
        ({"threat": ["attacker_norm=eval"]}, r"threat is \(\) .*attacker_norm=eval"),
    ),
)
def test_what_differs_must_be_an_axis(changes, message, first, tmp_path):
    sweep = sweep_of(axes=AXES | {"seed": [7]}, options=KEPT, **changes)
    open_study(tmp_path / "second", sweep, expand(sweep))
    with pytest.raises(ValueError, match=message):
        merge_studies(first, tmp_path / "second", tmp_path / "both")
    assert [path.name for path in tmp_path.iterdir()] == ["second"]


def test_points_of_one_name_must_be_the_same(tmp_path):
    for name, steps, seed in (("first", 4, 0), ("second", 5, 1)):
        axes = {"seed": [seed], "budget": {"short": {"restarts": steps}}}
        sweep = sweep_of(axes=AXES | axes)
        open_study(tmp_path / name, sweep, expand(sweep))
    with pytest.raises(ValueError, match="axis budget: point short sets .*4.*5"):
        merge_studies(tmp_path / "first", tmp_path / "second", tmp_path / "both")


def test_the_same_data_may_lie_elsewhere(first, tmp_path):
    sweep = sweep_of(axes=AXES | {"seed": [7]}, options=KEPT, data_dir=str(tmp_path))
    open_study(tmp_path / "second", sweep, expand(sweep))
    merge_studies(first, tmp_path / "second", tmp_path / "both")
    assert len(read_manifest(tmp_path / "both")["cells"]) == 3
