"""experiments/table6.py: what of a sweep's rows stands in its table."""

import pytest
import table6

ROW = {"rmse255": 10.0, "ssim": 0.5, "outcome": "recovered", "arm": "none"}


def cell(name, attacker="matching", norm="none", arm="none"):
    point = {"attacker": attacker, "norm": norm, "arm": arm, "data": "digits"}
    return {"id": name, "point": point}


def rows_of(name, *victims, **others):
    """Makes a row of each victim, an upload of its own, from its outcome and RMSE."""
    return [
        ROW
        | {"cell": name, "victim": n, "group": n, "outcome": outcome, "rmse255": rmse}
        | others
        for n, (outcome, rmse) in enumerate(victims)
    ]


def lines(text):
    return [
        [part.strip() for part in line.split("|")[1:-1]] for line in text.split("\n")
    ]


def test_outcomes_are_counted_apart():
    rows = rows_of(
        "a",
        ("recovered", 2.0),
        ("recovered_affine", 4.0),
        ("unsolved", 6.0),
        ("diverged", 8.0),
        ("ambiguous", 10.0),
    )
    rmse, ssim, recovered, unsolved = table6.scores(rows)
    # All the same, values do not tell how sure their mean is.
    assert rmse.startswith("6.0 [") and ssim == "0.500"
    assert (recovered, unsolved) == ("1 + 1 of 5", "2 of 5")
    # Nobody is recovered up to contrast: no plus.
    assert table6.scores(rows[:1] + rows[2:])[2] == "1 of 4"


def test_intervals_are_over_uploads():
    """Of two uploads of ten images each: the ten tell no more than one."""
    apart = rows_of("a", *[("recovered", 2.0)] * 10, *[("recovered", 4.0)] * 10)
    together = [row | {"group": row["victim"] // 10} for row in apart]
    assert table6.scores(together)[0] == "3.0 [2.0, 4.0]"
    assert table6.scores(apart)[0] != "3.0 [2.0, 4.0]"


def test_one_upload_has_no_interval():
    assert table6.scores(rows_of("a", ("recovered", 2.0)))[0] == "2.0"


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_mean_of_what_is_broken_is_none(broken):
    rows = rows_of("a", ("recovered", 2.0), ("diverged", broken))
    assert table6.scores(rows)[0] == "not finite"


def test_cells_stand_in_the_order_of_the_file_and_none_is_left_out():
    # By attacker, norm and arm, each as it comes first in the file.
    cells = [
        cell("1", "matching", "none", "none"),
        cell("2", "ggl", "none", "none"),
        cell("3", "ggl", "norm", "none"),
        cell("4", "matching", "none", "keylock"),
        cell("5", "matching", "norm", "none"),
    ]
    rows = rows_of("4", ("ambiguous", 30.0)) + rows_of("1", ("recovered", 20.0))
    rows += rows_of("of another dataset", ("recovered", 1.0))
    head, _, *body = lines(table6.measured(cells, rows))
    assert head == list(table6.HEAD)
    assert [line[:3] for line in body] == [
        ["matching", "none", "none"],
        ["matching", "none", "keylock"],
        ["matching", "norm", "none"],
        ["ggl", "none", "none"],
        ["ggl", "norm", "none"],
    ]
    assert body[0][3:] == ["20.0", "0.500", "1 of 1", "0 of 1"]
    assert body[1][3:] == ["30.0", "0.500", "0 of 1", "0 of 1"]
    assert all(line[3:] == ["not run", "-", "-", "-"] for line in body[2:])


def test_a_floor_stands_once_and_victims_count_once():
    cells = [cell("1"), cell("2", "ggl")]
    floor = {"arm": "floor/grey", "ssim": 0.1}
    rows = [
        row
        for name in ("1", "2")
        for row in (
            *rows_of(name, ("recovered", 20.0), ("recovered", 20.0)),
            *rows_of(name, (None, 50.0), (None, 70.0), **floor),
        )
    ]
    *_, last = body = lines(table6.measured(cells, rows))[2:]
    assert len(body) == 3 and last[:3] == ["-", "-", "floor/grey"]
    assert last[3].startswith("60.0 [") and last[4].startswith("0.100")
    assert last[5:] == ["-", "-"]
    # And is not among what the attackers found.
    assert body[0][5] == "2 of 2"
