"""Labels that `kljax.invert` and `kljax audit` try, where reading leaves them open."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_studies import quick_compilation

import kljax
from kljax.attacks import Protocol
from kljax.core.inputs import images_of
from kljax.studies.inversion import build_model, make_setting, make_view
from kljax.studies.label_search import settle_labels

SHAPE, RATE = (4, 4, 1), 0.5
PROTOCOL = Protocol(optax.sgd(RATE), 2, 1, RATE)


@pytest.fixture(scope="module")
def trained():
    """Makes a network, its weights, and the change of two steps of one example each."""
    model, *_ = build_model("dense", 10, SHAPE)
    params, stats = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, *SHAPE))

    @jax.jit
    def change(labels):
        now = params
        for step in range(2):

            def loss(weights, at=slice(step, step + 1)):
                out = model.apply(weights, stats, images[at], train=True).logits
                return optax.softmax_cross_entropy_with_integer_labels(
                    out, labels[at]
                ).mean()

            now = jax.tree.map(lambda w, g: w - RATE * g, now, jax.grad(loss)(now))
        return jax.tree.map(jnp.subtract, now, params)

    return params, change


@pytest.mark.slow
@pytest.mark.parametrize("labels", [[2, 7], [7, 2]])
def test_the_order_of_labels_over_steps_is_found_by_the_attacks_own_loss(
    trained, labels
):
    params, change = trained
    with quick_compilation():
        found = kljax.invert(
            "dense",
            params,
            change(jnp.array(labels)),
            image_shape=SHAPE,
            examples=2,
            protocol=PROTOCOL,
            steps=100,
            label_candidates=12,
        )
    assert found.labels.tolist() == labels


def setting_of(known_labels, examples=2, protocol=PROTOCOL):
    model, classifier, _ = build_model("dense", 10, SHAPE)
    return make_setting(
        model,
        images_of(SHAPE),
        classifier,
        examples=examples,
        known_labels=known_labels,
        attack="matching",
        loss="cross_entropy",
        protocol=protocol,
    )


@pytest.mark.parametrize(
    ("known", "examples", "protocol", "attack", "most"),
    [
        (True, 2, PROTOCOL, "matching", 12),
        (False, 2, PROTOCOL, "matching", 1),
        (False, 2, PROTOCOL, "rgap", 12),
        (False, 1, None, "matching", 12),
    ],
    ids=["known", "one sequence", "closed form", "read off"],
)
def test_nothing_is_tried_where_nothing_is_open(
    trained, known, examples, protocol, attack, most
):
    """Neither for known labels, nor for a closed form, nor where a rule reads them."""
    params, change = trained
    setting = setting_of(known, examples, protocol)
    sent, labels = change(jnp.array([2, 7])), np.array([2, 7]) if known else None
    view = make_view(setting, params, sent, stats=None, labels=labels)
    options = {"most": most, "steps": 100}
    given = settle_labels(setting, view, attack, pytest.fail, **options)
    assert given == (setting, view, None)


def test_a_number_of_label_sequences_is_refused_before_any_work():
    with pytest.raises(ValueError, match="label_candidates must be an integer >= 1"):
        kljax.invert("dense", {}, {}, label_candidates=0)
