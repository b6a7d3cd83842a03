"""Studies of sentences, and of images of any sides: from the option to the report."""

import dataclasses
import functools

import begun_runs
import jax
import numpy as np
import pytest
from tiny_studies import quick_compilation, scored, study, tiny

from kljax import data
from kljax.metrics import COLUMNS
from kljax.metrics.text import rouge
from kljax.models.ngrams import perplexity
from kljax.studies import leak_report, leak_summary, leakage
from kljax.studies.builder import from_run, run_setup, task
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.sentences import (
    as_markdown,
    bold_right,
    mark,
    sentence_lines,
    split_by_truth,
)

TEXT = {
    "model": "text_networks:small",
    "init": 0.0,
    "data": "text",
    "attack": "dlg",
    "labels": "given",
    "tokens": 4,
    "victims": 2,
    "steps": 150,
    "layout": tiny().layout,
}


@functools.cache
def finished():
    with quick_compilation():
        config = LeakConfig(arms=("none", "gaussian-noise=3"), **TEXT)
        result = leakage.leak(config)
    return result, scored(result)


def of(arm):
    return [row for row in finished()[1] if row["arm"] == arm]


@pytest.mark.slow
def test_sentences_are_recovered_undefended_and_not_under_noise():
    for row in of("none"):
        assert row["exact_match"] and row["success"] and row["outcome"] == "recovered"
        assert row["text_guess"] == row["text"] and row["rouge_1"] == 1
    for row in of("gaussian-noise=3"):
        assert not row["success"] and row["outcome"] != "recovered"
        assert row["token_accuracy"] <= 0.5 and row["text_guess"] != row["text"]


@pytest.mark.slow
def test_a_row_of_a_sentence_says_nothing_of_images():
    result, rows = finished()
    for row in rows:
        assert row.keys() == COLUMNS.keys()
        for column in ("ssim", "mse", "psnr", "floor_mse", "image_size", "channels"):
            assert row[column] is None, column
        assert row["tokens"] == 4
        assert 0 <= row["floor_token_accuracy"] <= 1
    spelled = [result.dataset.input_spec.spell(t) for t in result.victims.inputs[:, 0]]
    assert [row["text"] for row in of("none")] == spelled


def test_networks_of_sentences_draw_their_weights_themselves():
    for model, init in (("transformer", 0.0), ("lenet", 0.5)):
        assert from_run.settle(LeakConfig(model=model)).init == init
    assert from_run.settle(LeakConfig(model="transformer", init=0.25)).init == 0.25


@pytest.mark.parametrize(
    ("model", "data", "init"),
    (
        ("text_networks:small", "text", 0.0),
        ("text_networks:small", "text_networks:corpus", 0.0),
        ("text_networks:small", "digits", 0.5),
        ("toys:toy_model", "outside_package:label_out_of_range", None),
    ),
)
def test_own_networks_of_sentences_draw_their_weights_themselves(model, data, init):
    config = LeakConfig(model=model, data=data)
    if init is None:
        with pytest.raises(ValueError, match="labels must lie"):
            from_run.settle(config)
    else:
        assert from_run.settle(config).init == init


@pytest.mark.slow
def test_floors_of_sentences_are_rows():
    floors = {row["arm"] for row in finished()[1] if row["arm"].startswith("floor/")}
    assert {"floor/commonest", "floor/bigrams", "floor/own_tokens"} <= floors
    for row in of("floor/own_tokens"):
        assert row["rouge_1"] > row["rouge_2"] or row["exact_match"]
        assert row["outcome"] is None


def test_report_and_gallery_show_text(tmp_path):
    result, rows = finished()
    summary = leak_summary.summarise(result, rows)
    leak_report.write_run(tmp_path / "run", result, rows, summary)
    page = (tmp_path / "run" / "summary.md").read_text()
    assert f"| {rows[-1]['text']} | none " in " ".join(page.split())
    assert "found, right words bold" in page and "**" in page
    assert "| all tokens [95 %]" in page and "ROUGE-L" in page and "SSIM" not in page
    assert (tmp_path / "run" / "gallery.png").stat().st_size > 5000
    header, lines = leak_report.brief_tables(summary)[0]
    assert "tokens" in header and lines[0][0] == "none"
    assert len(sentence_lines(rows, most=1)) == 3  # the truth and two arms


def test_what_is_wrong_is_marked():
    words = ["a", " b", " c", "d"]

    def spell(tokens):
        return "".join(words[t] for t in tokens)

    assert mark(spell, np.array([0, 1, 2]), np.array([0, 1, 2])) == "a b c"
    assert mark(spell, np.array([0, 1, 3, 2]), np.array([0, 2, 2, 2])) == "a [bd] c"
    assert mark(spell, np.array([0, 1]), np.array([1, 0])) == "[a b]"


@pytest.mark.parametrize(
    ("guess", "truth", "right"),
    (
        ("a b c", "a b c", ["a b c"]),
        ("c b a", "a b c", ["c"]),
        ("x y", "a b", []),
        ("", "a b", []),
        ("a x b y", "a b", ["a", "b"]),
        ("In THE, beginning", "in the beginning.", ["In THE, beginning"]),
        ("b b b", "a b", ["b"]),
        ("; : a", "; a", [";", "a"]),
    ),
)
def test_right_words_are_those_that_rouge_l_counts(guess, truth, right):
    runs = split_by_truth(guess, truth)
    assert [words for words, is_right in runs if is_right] == right
    assert " ".join(words for words, _ in runs) == guess
    count = sum(len(words.split()) for words in right)
    if guess and ";" not in guess:
        mean = (len(guess.split()) + len(truth.split())) / 2
        assert rouge(guess, truth)["rouge_l"] == pytest.approx(count / mean)


def test_text_is_no_markup():
    written = bold_right("<b>a</b> | *x* a_b", "*x* [y]")
    assert written == r"&lt;b&gt;a&lt;/b&gt; \| **\*x\*** a\_b"
    assert as_markdown("a\nb & c") == "a b &amp; c"


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        (
            {"model": "lenet"},
            "'lenet' takes inputs of kind 'image', and dataset 'text' holds 'text': "
            "take transformer or causal-transformer",
        ),
        (
            {"model": "transformer", "data": "digits"},
            "'transformer' takes inputs of kind 'text'.* 'digits'",
        ),
        (
            {"attack": "matching"},
            "'matching' looks for .* image.* take dlg, idlg, tag, lamp, "
            "lamp-l1l2 or dager",
        ),
        ({"tokens": 400}, "no sentences of 400 tokens: the longest verses"),
        (
            {"data": "text-verses", "tokens": 9, "model": "text_networks:unpadded"},
            "pads its sentences with the token -1, and model .*:unpadded' has no arg",
        ),
        ({"tokens": 0}, "tokens must be an integer >= 1, got 0"),
    ),
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_study(LeakConfig(arms=("none",), **TEXT | changes))


@pytest.mark.parametrize(
    "arm", ("obscured-inputs", "selective-sensitivity", "selective-product=0.2")
)
def test_a_defence_that_differentiates_by_inputs_is_refused_before_anything_runs(arm):
    message = rf"arm '{arm}' fails on inputs of kind text, .*'text'.* these are int32: "
    with pytest.raises(ValueError, match=message):
        build_study(LeakConfig(arms=("none", arm), **TEXT))


def test_a_defence_that_looks_at_no_derivative_of_inputs_is_for_text_too():
    build_study(LeakConfig(arms=("selective-fisher", "selective-random"), **TEXT))


@pytest.mark.slow
def test_where_sentences_of_different_lengths_end_is_read_off():
    changes = {"data": "text-verses", "tokens": 9, "seed": 1, "optimiser": "lbfgs"}
    with quick_compilation():
        result = leakage.leak(LeakConfig(arms=("none",), **TEXT | changes))
    lengths = np.sum(result.victims.inputs >= 0, axis=-1).ravel()
    assert lengths.min() < 9
    # Who sees the gradient of the places reads off where each sentence ends.
    found = np.asarray(result.arms[0].attacked.reconstruction.inputs)
    np.testing.assert_array_equal(found >= 0, result.victims.inputs >= 0)
    rows = [row for row in scored(result) if row["arm"] == "none"]
    # Of 9 places the shorter has 6, and no more count. In 16 dimensions some of the
    # 4,096 embeddings are too near to each other to be told apart.
    for row, length in zip(rows, lengths, strict=True):
        right = row["token_accuracy"] * length
        assert right == pytest.approx(round(right)) and row["token_accuracy"] >= 0.5


@pytest.mark.slow
def test_a_language_model_gives_its_sentence_away_with_its_targets():
    changes = {"data": "text-next-token", "model": "text_networks:language_model"}
    config = LeakConfig(arms=("none",), **TEXT | changes | {"labels": "joint"})
    with quick_compilation():
        result = leakage.leak(config)
    (row, _) = [row for row in scored(result) if row["arm"] == "none"]
    assert row["label"] is row["label_guess"] is row["label_accuracy"] is None
    assert 0 <= row["target_accuracy"] <= 1 and row["kind"] == "text"
    assert result.arms[0].attacked.reconstruction.labels.shape == (2, 1, 4)


OF_TEXT = {
    "model": "text_networks:small",
    "data": "text",
    "tokens": 4,
    "init": 0.0,
    "arms": ("none",),
}


@pytest.mark.slow
def test_a_client_of_a_training_on_text_is_attacked(tmp_path):
    begun_runs.begin(tmp_path / "run", **OF_TEXT)
    options = {"attack": "dlg", "labels": "given", "victims": 1, "steps": 150}
    config = begun_runs.study(tmp_path / "run", **options)
    with quick_compilation():
        result = leakage.leak(config)
    assert result.config.tokens == 4 and result.config.data == "text"
    (row,) = [row for row in scored(result) if row["arm"] == "none"]
    assert row["exact_match"], (row["text"], row["text_guess"])


def of_an_update(tmp_path):
    begun_runs.begin(tmp_path / "run", **OF_TEXT)
    options = {"attack": "dlg", "labels": "given", "victims": 1, "steps": 2}
    config = begun_runs.study(tmp_path / "run", **options, optimiser="adam")
    return dataclasses.replace(config, upload="update", local_steps=2, batch=1)


@pytest.mark.slow
def test_an_attack_on_a_whole_update_of_text_is_built(tmp_path):
    study = build_study(of_an_update(tmp_path))
    assert study.attacks[0].setting.protocol.steps == 2
    assert study.victims.inputs.shape == (1, 2, 4)


@pytest.mark.slow
def test_a_whole_update_on_text_can_be_attacked(tmp_path):
    with quick_compilation():
        result = leakage.leak(of_an_update(tmp_path))
    assert result.victims.inputs.shape == (1, 2, 4)
    rows = [row for row in scored(result) if row["arm"] == "none"]
    assert [row["example"] for row in rows] == [0, 1]
    for row in rows:
        assert row["kind"] == "text" and row["replay_is_exact"]
        # The true sentences train to the very update, and the guess does not yet.
        assert row["matching_loss_at_truth"] < 1e-9 < row["matching_loss"]


def test_a_training_towards_next_tokens_is_measured_by_them():
    of_tokens = {"data": "text-next-token", "model": "text_networks:language_model"}
    config = dataclasses.replace(begun_runs.RUN, **OF_TEXT | of_tokens)
    targets = run_setup.build_run_setup(config).task.dataset.target_spec
    assert targets.measure == "token accuracy"


def test_more_sentences_than_there_are_are_no_images():
    text = {"model": "transformer", "data": "text", "tokens": 4, "attack": "dlg"}
    config = LeakConfig(**text, victims=10**6, arms=("none",))
    with pytest.raises(ValueError, match="are 1000000 inputs, and dataset 'text'"):
        build_study(config)


@pytest.mark.parametrize(
    "changes", ({"normalise": "cifar10"}, {"roles": ("0:backdoor",)})
)
def test_what_is_about_images_is_refused_of_text(changes):
    config = dataclasses.replace(begun_runs.RUN, **OF_TEXT | changes)
    with pytest.raises(ValueError, match="is about images, and dataset 'text' holds"):
        run_setup.build_run_setup(config)


# --- language models ------------------------------------------------------------------


def test_no_victim_is_in_the_language_model():
    changes = {"attack": "lamp", "arms": ("none",), "tokens": 8}
    study = build_study(LeakConfig(**TEXT | changes))
    model, dataset = study.attacker.language_model, study.task.dataset
    assert not {*model.sentences} & {*study.victims.indices.ravel()}
    assert len(model.sentences) == len({*model.sentences}) == int(0.75 * len(dataset))
    # More victims, with a past, change nothing of it, and are not in it either.
    more = build_study(LeakConfig(**TEXT | changes | {"victims": 40, "earlier": 2}))
    other = more.attacker.language_model
    assert not {*other.sentences} & {*more.victims.indices.ravel()}
    past = {tuple(s) for s in more.victims.before[0].reshape(-1, 8)}
    assert not past & {tuple(s) for s in dataset.inputs[other.sentences]}
    # It says more of sentences that it has not seen than guessing does.
    found = perplexity(model, study.victims.inputs.reshape(-1, 8))
    assert found < 500 < dataset.input_spec.sizes["vocabulary"]


def test_a_language_model_of_too_few_sentences_is_refused():
    with pytest.raises(ValueError, match="2000 victims of 1 examples leave"):
        build_study(LeakConfig(**TEXT | {"attack": "lamp", "victims": 2000}))


@pytest.mark.slow
def test_lamp_finds_a_sentence_and_says_what_it_tried():
    changes = {"attack": "lamp", "steps": 200, "victims": 1, "tokens": 6}
    with quick_compilation():
        result = leakage.leak(LeakConfig(arms=("none",), **TEXT | changes))
    (row,) = [row for row in scored(result) if row["arm"] == "none"]
    assert row["proposals"] == 1000 + 2 * 200 and row["evaluations"] == 200
    assert row["token_accuracy"] >= 0.5, (row["text"], row["text_guess"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "dataset"),
    (
        ("bert-tiny", "text"),
        ("gpt-tiny-classifier", "text"),
        ("gpt-tiny", "text-next-token"),
    ),
)
def test_lamp_fits_networks_as_bert_and_gpt_have_them(model, dataset):
    part = "visible=blocks/0/attention/query/kernel"
    changes = {"model": model, "data": dataset, "attack": "lamp", "threat": (part,)}
    study = build_study(LeakConfig(arms=("none",), **TEXT | changes))
    (attack,) = study.attacks

    def attacked(source, *others):
        parts = []
        for draw in attack.client.draws:
            parts.append(draw(source, *parts))
        return attack.attack_one(*parts, source, *others)

    one = jax.tree.map(lambda x: x[0], attack.inputs)
    found = jax.eval_shape(attacked, *one).reconstruction  # traced, and not compiled
    assert found.inputs.shape == (1, 4) and found.numbers["proposals"].shape == ()


# --- images of any sides -------------------------------------------------------------


@functools.cache
def narrow():
    result = study(
        image_size=12, image_width=8, channels=1, victims=2, steps=60, attack="idlg"
    )
    return result, scored(result)


def test_images_need_be_neither_square_nor_coloured():
    result, rows = narrow()
    assert result.victims.inputs.shape == (2, 1, 12, 8, 1)
    found = [row for row in rows if row["arm"] == "none"]
    assert all(row["ssim"] > 0.9 for row in found)
    assert {(r["image_size"], r["image_width"], r["channels"]) for r in rows} == {
        (12, 8, 1)
    }
    assert {row["tokens"] for row in rows} == {None}
    assert {row["init"] for row in rows} == {0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"image_width": 6}, "image_width must be an integer >= 7, got 6"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
    ),
)
def test_sides_that_cannot_be_are_refused(changes, message):
    for kind in (LeakConfig, TrainConfig):
        with pytest.raises(ValueError, match=message):
            kind(**changes)


def test_a_photograph_of_another_shape():
    photos = task.load_dataset(
        tiny(data="photos", image_size=9, image_width=15, channels=1), None
    )
    assert photos.shape == (9, 15, 1)
    assert data.load("photos", shape=(9, 15, 1)).inputs[3] == pytest.approx(
        photos.inputs[3]
    )
