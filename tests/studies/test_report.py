"""Reports: the summary says what the rows say, and people can read it."""

import csv
import json
import math

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_studies import close, finished, pretended, scored, tiny, wrong

from kljax.core import provenance
from kljax.metrics import COLUMNS, FLOORS, OUTCOMES
from kljax.parallel import Layout
from kljax.studies import leak_report, leak_summary
from kljax.studies.config import LeakConfig
from kljax.studies.matched_but_wrong import ambiguous_lines

# The keys that the first version promises; later versions may add some.
TOP = {"schema_version", "arms", "floors", "throughput", "config"}
ARM = {
    "n",
    "n_diverged",
    "outcomes",
    "psnr",
    "ssim",
    "ssim_minmax",
    "ssim_affine_oracle",
    "success_rate",
    "success_low",
    "success_high",
    "recovered_rate",
    "label_accuracy",
    "label_multiset_accuracy",
    "matching_loss",
    "feature_error",
}
THROUGHPUT = {
    "evaluations_per_s",
    "attacks_per_hour",
    "compile_s",
    "run_s",
    "device",
    "victims",
}
FILES = {"config.json", "rows.csv", "summary.json", "summary.md", "gallery.png"}
FILES |= {"manifest.json", "parts", "reconstructions"}  # see kljax.studies.leak_study
Z = 1.959963984540054  # of 95 %


def strict_json(path):
    """Reads JSON as other languages do, where NaN is no number."""

    def refuse(name):
        raise AssertionError(f"{path.name} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def write(folder, result, rows):
    leak_report.write_run(folder, result, rows, leak_summary.summarise(result, rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    result, rows = finished()
    folder = tmp_path_factory.mktemp("runs") / "deep" / "study"
    write(folder, result, rows)
    return folder


@pytest.fixture(scope="module")
def summary(folder):
    return strict_json(folder / "summary.json")


@pytest.fixture(scope="module")
def table(folder):
    """The rows as anyone would read them: text."""
    with open(folder / "rows.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- Rows ----------------------------------------------------------------------------


def test_a_run_folder_has_its_files(folder):
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["study"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_rows_are_written_as_they_are(table):
    _, rows = finished()
    assert tuple(table[0]) == tuple(COLUMNS)
    assert len(table) == len(rows)
    for line, row in zip(table, rows, strict=True):
        for name, value in row.items():
            assert line[name] == ("" if value is None else str(value))


# ---- Summary, recomputed from the file of rows ---------------------------------------


def lines_of(table, arm):
    return [line for line in table if line["arm"] == arm]


def wilson(successes, n):
    """Wilson's interval by its formula."""
    rate = successes / n
    middle = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    return middle - half, middle + half


def test_the_summary_has_the_keys_of_the_schema(summary):
    result, _ = finished()
    assert summary.keys() == TOP
    assert summary["schema_version"] == 7
    assert tuple(summary["arms"]) == result.config.arms
    assert tuple(summary["floors"]) == tuple(FLOORS)
    for arm in summary["arms"].values():
        assert ARM <= arm.keys()
    assert summary["throughput"].keys() == THROUGHPUT
    assert "live_channels" in summary["arms"]["keylock/known"]
    assert "live_channels" not in summary["arms"]["none"]
    for floor in summary["floors"].values():
        assert {"n", "psnr", "ssim", "success_rate", "success_low"} <= floor.keys()
        assert not {"outcomes", "recovered_rate", "matching_loss"} & floor.keys()
    # The paper's own metrics, under names of their own.
    assert all({"rmse255", "psnr_fedkl"} <= a.keys() for a in summary["arms"].values())


def test_the_summary_is_what_the_rows_say(summary, table):
    described = summary["arms"] | {
        f"floor/{k}": v for k, v in summary["floors"].items()
    }
    for name, arm in described.items():
        lines = lines_of(table, name)
        assert arm["n"] == len(lines) == 5
        for column in ("psnr", "ssim", "ssim_minmax", "ssim_affine_oracle", "rmse255"):
            values = [float(line[column]) for line in lines]
            assert arm[column] == pytest.approx(sum(values) / 5, rel=1e-9)
        successes = sum(float(line["ssim"]) >= 0.6 for line in lines)
        assert arm["success_rate"] == pytest.approx(successes / 5)
        low, high = wilson(successes, 5)
        assert arm["success_interval"] == "wilson"
        assert arm["success_low"] == pytest.approx(low, abs=1e-9)
        assert arm["success_high"] == pytest.approx(high, abs=1e-9)


def test_outcomes_add_up(summary, table):
    kinds = set()
    for name, arm in summary["arms"].items():
        outcomes = [line["outcome"] for line in lines_of(table, name)]
        assert tuple(arm["outcomes"]) == OUTCOMES
        assert sum(arm["outcomes"].values()) == arm["n"]
        for outcome, count in arm["outcomes"].items():
            assert count == outcomes.count(outcome)
        assert arm["n_diverged"] == arm["outcomes"]["diverged"]
        assert arm["recovered_rate"] == pytest.approx(arm["outcomes"]["recovered"] / 5)
        assert "recovered_of_uploads" not in arm  # of one image each
        hits = [line["label"] == line["label_guess"] for line in lines_of(table, name)]
        assert arm["label_accuracy"] == pytest.approx(sum(hits) / 5)
        kinds |= set(outcomes)
    assert len(kinds) > 1  # or there would be nothing to tell apart


def test_throughput_is_evaluations_and_attacks_over_running_time(summary):
    result, _ = finished()
    speed = summary["throughput"]
    run_s = sum(arm.timing.run_s for arm in result.arms)
    assert speed["run_s"] == pytest.approx(run_s)
    assert speed["compile_s"] == pytest.approx(
        sum(arm.timing.compile_s for arm in result.arms)
    )
    # 4 arms, 5 victims, 100 evaluations each.
    assert speed["evaluations_per_s"] == pytest.approx(4 * 5 * 100 / run_s)
    assert speed["attacks_per_hour"] == pytest.approx(3600 * 4 * 5 / run_s)
    assert speed["victims"] == 5
    assert speed["device"].startswith(f"{jax.default_backend()}: ")


def test_restarts_are_evaluations_of_one_attack():
    result = pretended(tiny(restarts=3, steps=10), close)
    speed = leak_summary.summarise(result, scored(result))["throughput"]
    assert speed["evaluations_per_s"] == pytest.approx(3 * 3 * 10 / 0.5)
    assert speed["attacks_per_hour"] == pytest.approx(3600 * 3 / 0.5)
    uncounted = pretended(tiny(), close, numbers={})
    speed = leak_summary.summarise(uncounted, scored(uncounted))["throughput"]
    assert (speed["evaluations_per_s"], speed["attacks_per_hour"]) == (
        0,
        3600 * 3 / 0.5,
    )


def test_images_of_one_upload_are_one_cluster_and_one_attack():
    def half(arm, victims):
        images = wrong(arm, victims)
        images[0], images[1, :1] = victims.inputs[0], victims.inputs[1, :1]
        images[1, 1] = 0.15 * victims.inputs[1, 1] + 0.75
        return images

    config = tiny(victims=3, examples=4)
    result = pretended(config, half)
    rows = scored(result)
    summary = leak_summary.summarise(result, rows)
    arm = summary["arms"]["none"]
    assert (arm["n"], arm["recovered_rate"]) == (12, 5 / 12)
    assert arm["recovered_of_uploads"] == [4, 1, 0]
    assert arm["recovered_affine_of_uploads"] == [0, 1, 0]
    assert arm["success_interval"] == "cluster_bootstrap"
    # Wilson would take twelve images for twelve independent ones.
    low, high = wilson(sum(row["success"] for row in rows if row["arm"] == "none"), 12)
    assert arm["success_high"] - arm["success_low"] > high - low
    assert summary["throughput"]["attacks_per_hour"] == pytest.approx(3600 * 3 / 0.5)
    assert summary["throughput"]["evaluations_per_s"] == pytest.approx(3 * 4 / 0.5)
    (line,) = leak_report.upload_lines(summary)
    assert line == (
        "none: recovered 0 to 4 (mean 1.7) of the 4 images of an upload, 0 to 4 (mean "
        "2.0) with those up to brightness and contrast; a lower bound of what leaked"
    )
    single = pretended(tiny(), close)
    summary = leak_summary.summarise(single, scored(single))
    assert leak_report.upload_lines(summary) == []


def test_ambiguous_images_are_held_against_the_undefended_arm():
    result, rows = finished()
    rows = [dict(row) for row in rows]
    outcomes = {
        "none": ["recovered", "recovered_affine", "unsolved", "ambiguous", "recovered"],
        "keylock/known": ["ambiguous"] * 4 + ["unsolved"],
        "gaussian-noise=0.1": ["unsolved"] * 3 + ["ambiguous", "diverged"],
    }
    for row in rows:
        if row["arm"] in outcomes:
            row["outcome"] = outcomes[row["arm"]][row["upload"]]
    summary = leak_summary.summarise(result, rows)
    assert ambiguous_lines(summary) == [
        "none: 1 of 5 matched but wrong, without any defence",
        "gaussian-noise=0.1: 1 of 5 matched but wrong; no evidence for this arm: "
        "`none` recovers none",
        "keylock/known: 4 of 5 matched but wrong; evidence for this arm: `none` "
        "recovers 2",
    ]
    text = leak_report.markdown(result, summary)
    assert "- keylock/known: 4 of 5 matched but wrong; evidence for this arm" in text
    alone = [row for row in rows if row["arm"] != "none"]
    (line, _) = ambiguous_lines(leak_summary.summarise(result, alone))
    assert line.endswith("no evidence for this arm without `none` beside it")


def test_crops_of_one_photograph_are_not_independent():
    def half(arm, victims):
        images = wrong(arm, victims)
        images[::2] = victims.inputs[::2]
        return images

    config = tiny(data="photos", victims=16)
    result = pretended(config, half)
    assert len(set(result.victims.groups)) < 16
    arm = leak_summary.summarise(result, scored(result))["arms"]["none"]
    assert arm["success_rate"] == 0.5
    assert arm["success_interval"] == "cluster_bootstrap"
    assert 0 <= arm["success_low"] < 0.5 < arm["success_high"] <= 1
    # The same successes of victims that stand for themselves.
    digits = pretended(tiny(victims=16), half)
    arm = leak_summary.summarise(digits, scored(digits))["arms"]["none"]
    assert arm["success_interval"] == "wilson"
    assert (arm["success_low"], arm["success_high"]) == pytest.approx(wilson(8, 16))


def test_an_interval_that_is_not_known_reads_so():
    def half(arm, victims):
        images = wrong(arm, victims)
        images[::2] = victims.inputs[::2]
        return images

    result = pretended(tiny(victims=4), half)
    # One photograph shows no spread between photographs.
    rows = [row | {"group": 0} for row in scored(result)]
    summary = leak_summary.summarise(result, rows)
    assert summary["arms"]["none"]["success_interval"] == "none"
    header, lines = leak_report.table(summary)
    (place,) = [n for n, name in enumerate(header) if name.startswith("SSIM >= .6")]
    assert lines[0][place] == "50% [?]"


def test_an_arm_that_only_diverged_has_all_keys_and_no_means(tmp_path):
    def broken(arm, victims):
        return np.full_like(victims.inputs, np.nan)

    result = pretended(tiny(), broken, loss=np.full(3, np.nan))
    write(tmp_path / "run", result, scored(result))
    arm = strict_json(tmp_path / "run" / "summary.json")["arms"]["none"]
    assert ARM <= arm.keys()
    assert arm["psnr"] is arm["ssim"] is arm["matching_loss"] is None
    assert (arm["n_diverged"], arm["success_rate"]) == (3, 0)
    assert "| none" in (tmp_path / "run" / "summary.md").read_text()


def test_means_leave_out_what_is_not_finite_and_say_how_many():
    def guesses(arm, victims):
        images = close(arm, victims)
        images[1] = np.nan
        return images

    result = pretended(tiny(), guesses)
    rows = scored(result)
    arm = leak_summary.summarise(result, rows)["arms"]["none"]
    psnr = [row["psnr"] for row in rows if row["arm"] == "none"]
    assert arm["psnr"] == pytest.approx((psnr[0] + psnr[2]) / 2)
    assert (arm["n"], arm["n_diverged"]) == (3, 1)
    # A diverged attack is a failed one, not one left out.
    assert arm["success_rate"] == pytest.approx(2 / 3)


# ---- Config --------------------------------------------------------------------------


def rebuilt(path):
    content = strict_json(path)
    names = LeakConfig.__dataclass_fields__
    return LeakConfig(**{name: content[name] for name in names})


def test_the_config_rebuilds_the_study(folder, tmp_path):
    result, _ = finished()
    assert rebuilt(folder / "config.json") == result.config
    unusual = tiny(
        data="photos",
        threat=("lock_weights=initial", "labels=known"),
        arms=("keylock/fixed_mean",),
        examples=2,
        sites=("layers/0",),
        weights="shared",
        init=0.25,
        seed=3,
        layout=Layout("sharded", 3),
        victims=2,
    )
    made = pretended(unusual, close)
    write(tmp_path / "run", made, scored(made))
    assert rebuilt(tmp_path / "run" / "config.json") == unusual


def test_the_config_says_where_it_ran(folder, summary):
    config = strict_json(folder / "config.json")
    assert config == summary["config"]
    assert config["versions"].keys() == {*provenance.PACKAGES}
    assert config["versions"]["jax"] == jax.__version__
    assert config["layout"] == {"kind": "chunked", "chunk": 4}
    assert config["precision"] == "highest"
    assert config["local_devices"] == 2
    assert config["device"].startswith("cpu")
    threat = config["threat_models"]["keylock/known"]
    assert threat["knowledge"]["private_key"] == "known"
    assert threat["strategy"] == {"secret": "known", "labels": "recovered"}
    assert "Handwritten Digits" in config["data_licence"]


# ---- For people ----------------------------------------------------------------------


def test_the_markdown_has_arms_floors_and_how_to_read_them(folder, summary):
    text = (folder / "summary.md").read_text()
    lines = [line.split("|")[1].strip() for line in text.splitlines() if "|" in line]
    floors = [f"floor: {name}" for name in FLOORS]
    assert lines[0] == "arm" and lines[2:] == [*summary["arms"], *floors]
    none = next(line for line in text.splitlines() if line.startswith("| none"))
    cells = [cell.strip() for cell in none.split("|")]
    arm = summary["arms"]["none"]
    assert f"{arm['recovered_rate']:.0%}" in cells
    assert f"{arm['ssim']:.3f}" in cells and f"{arm['psnr']:.1f}" in cells
    for word in ("difficulty, not", "proves nothing", "attacker knows", "licence"):
        assert word in " ".join(text.split()), word


def test_threat_models_say_once_what_all_arms_share():
    result, _ = finished()
    lines = leak_report.threat_lines(result)
    facts = "\n".join(lines)
    assert lines[0].startswith("attacker knows, in every arm: ")
    for fact in ("labels=hidden", "victim_norm=train", "examples=1"):
        assert fact in lines[0] and facts.count(fact) == 1
    assert "labels=recovered" in lines[1] and facts.count("labels=recovered") == 1
    known = next(line for line in lines if line.startswith("keylock/known: "))
    assert "private_key=known" in known and "secret=known" in known
    assert len(lines) == 2 + 4
    # One arm shares everything with itself.
    alone = leak_report.threat_lines(result._replace(arms=result.arms[:1]))
    assert len(alone) == 2 and "secret=unit" in alone[1]


def test_all_of_a_threat_model_is_in_what_is_printed():
    result, _ = finished()
    shared, *own = leak_report.threat_lines(result)
    for arm in result.arms:
        mine = next(line for line in own if line.startswith(f"{arm.arm.name}: "))
        for name in type(arm.threat.knowledge).__dataclass_fields__:
            fact = f"{name}={getattr(arm.threat.knowledge, name)}"
            assert (fact in shared) != (fact in mine), fact


def test_brief_tables_part_arms_from_floors(summary):
    (header, arms), (floor_header, floors) = leak_report.brief_tables(summary)
    assert [line[0] for line in arms] == list(summary["arms"])
    assert [line[0] for line in floors] == list(FLOORS)
    assert header[0] == "arm" and len(header) == 8
    assert floor_header[0] == "floor" and "label" not in floor_header
    for table in ((header, arms), (floor_header, floors)):
        assert {len(line) for line in table[1]} == {len(table[0])}
    # It fits a terminal of 80 columns, with a space in between.
    for head, lines in ((header, arms), (floor_header, floors)):
        widths = [
            max(
                *(len(part) for part in title.split("\n")),
                *(len(line[i]) for line in lines),
            )
            for i, title in enumerate(head)
        ]
        assert sum(widths) + len(widths) - 1 <= 80


def test_the_gallery_is_a_picture(folder):
    with Image.open(folder / "gallery.png") as picture:
        picture.load()
        width, height = picture.size
        assert picture.format == "PNG"
        # Five victims, a truth, a floor and four arms: about 110 dots each.
        assert 500 < width < 1500 and 500 < height < 1500
        pixels = np.asarray(picture.convert("RGB"))
    assert np.mean(pixels == 255) < 0.9 and pixels.std() > 10


def test_the_gallery_shows_the_first_victims_only(tmp_path):
    sizes = []
    for victims in (2, 8, 20):
        result = pretended(tiny(victims=victims), wrong)
        path = tmp_path / f"{victims}.png"
        leak_report.draw_gallery(result, scored(result), path)
        with Image.open(path) as picture:
            sizes.append(picture.size)
    assert sizes[0][0] < sizes[1][0]
    assert sizes[1] == sizes[2]
