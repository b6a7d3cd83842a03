"""Roles: what attackers train on and send, and what it does to a round."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_rounds import (
    LAYOUTS,
    assert_close,
    client_data,
    pixels,
    play,
    product,
    trainable,
    weight_after,
)
from tiny_studies import quick_compilation
from toys import toy_model

from kljax.core.randomness import derive_rng
from kljax.core.types import Output, Public
from kljax.data.triggers import TRIGGERS, make_trigger, patch
from kljax.federated import evaluation
from kljax.federated.aggregation import coordinate_median, krum
from kljax.federated.algorithms import fedavg
from kljax.federated.cast import ROLE_PURPOSES, cast_of
from kljax.federated.clients import Batches, Upload
from kljax.federated.role_texts import parse_roles
from kljax.federated.roles import (
    ROLES,
    Attack,
    Role,
    backdoor,
    honest,
    label_flip,
    model_replacement,
)
from kljax.models.losses import cross_entropy

RNG = jax.random.key(5)


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def corner(images):
    """Marks the first pixel."""
    return jnp.asarray(images).at[..., 0, 0, 0].set(1.0)


ATTACK = Attack(corner, target=2, share=0.5, num_classes=3, clients=5)


def some_batches():
    batches, _ = client_data(clients=1)
    return jax.tree.map(lambda x: x[0], batches)


# --- what is trained on -------------------------------------------------------------


def test_a_backdoor_is_half_of_each_batch():
    batches = some_batches()
    images, labels, valid = backdoor(ATTACK).batches(RNG, batches)
    for t in range(3):
        for b in range(4):
            expected = batches.inputs[t, b].copy()
            if b < 2:
                expected[0, 0, 0] = 1.0
            np.testing.assert_array_equal(images[t, b], expected)
            assert labels[t, b] == (2 if b < 2 else batches.labels[t, b])
    assert np.all(valid)


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.3, 1), (0.4, 2), (1, 4)])
def test_a_share_is_rounded_and_never_nobody(share, count):
    poisoned = backdoor(ATTACK._replace(share=share)).batches(RNG, some_batches())
    changed = np.any(poisoned.inputs != some_batches().inputs, axis=(2, 3, 4))
    assert changed.sum(axis=1).tolist() == [count] * 3


def test_a_weak_trigger_is_mixed_in():
    batches = some_batches()
    images = backdoor(ATTACK, 0.25).batches(RNG, batches).inputs
    expected = np.array(batches.inputs)
    first = expected[:, :2, 0, 0, 0]
    expected[:, :2, 0, 0, 0] = 0.75 * first + 0.25
    np.testing.assert_allclose(images, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backdoor=0", r"strength of backdoor must be in \(0, 1\], got 0"),
        ("hardened-backdoor=1.5", r"strength of backdoor must be in \(0, 1\], got 1.5"),
        ("hardened-backdoor=1,2", "hardens_first of hardened-backdoor must be 0 or 1"),
    ],
)
def test_what_is_no_strength_or_order_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_roles([f"0:{text}"], ATTACK, 1)


def test_labels_are_flipped_to_the_other_end():
    flipped = label_flip(ATTACK).batches(RNG, some_batches())
    assert (flipped.labels + some_batches().labels).tolist() == [[2] * 4] * 3
    np.testing.assert_array_equal(flipped.inputs, some_batches().inputs)


def test_a_patch_is_white_in_the_lower_right_corner():
    image = np.zeros((1, 4, 5, 2), np.float32)
    painted = np.asarray(patch(2)(image))
    expected = image.copy()
    for row, column in ((2, 3), (2, 4), (3, 3), (3, 4)):
        expected[0, row, column] = 1.0
    np.testing.assert_array_equal(painted, expected)
    # Of batches of batches, too.
    assert np.asarray(patch(2)(image[None])).sum() == 8


# --- what is sent -------------------------------------------------------------------


@pytest.mark.slow
def test_a_role_draws_apart_for_what_it_trains_on_and_for_what_it_sends():
    """By name; and who has no role draws nothing."""

    def batches(rng, given):
        return given._replace(inputs=jax.random.normal(rng, given.inputs.shape))

    def upload(rng, public, stats, given):
        return given._replace(stats=jax.random.normal(rng, (3,)))

    cast, given = cast_of({3: Role(batches, upload)}), some_batches()
    sent = Upload(Public({"w": np.ones(2, np.float32)}), np.ones(3, np.float32))
    assert cast.numbers(np.array([2, 3]), 0).tolist() == [0, 1]
    made = cast.batches(1, RNG, given, hardened=False).inputs
    rng = derive_rng(RNG, ROLE_PURPOSES, "batches")
    np.testing.assert_allclose(made, jax.random.normal(rng, made.shape), atol=1e-6)
    drawn = cast.upload(1, RNG, None, None, sent)[0].stats
    rng = derive_rng(RNG, ROLE_PURPOSES, "upload")
    np.testing.assert_allclose(drawn, jax.random.normal(rng, (3,)), atol=1e-6)
    same, (unchanged, _) = (
        cast.batches(0, RNG, given, hardened=False),
        cast.upload(0, RNG, None, None, sent),
    )
    jax.tree.map(np.testing.assert_array_equal, (same, unchanged), (given, sent))


def sent(role):
    upload = Upload(Public({"w": np.array([3.0, 4.0])}), {"mean": np.array([9.0])})
    return role.upload(RNG, Public({"w": np.zeros(2)}), {}, upload)


def test_replacement_is_boosted_by_clients_over_the_servers_rate():
    boosted = sent(model_replacement(ATTACK))
    np.testing.assert_allclose(boosted.delta.model["w"], [15, 20])
    assert boosted.stats["mean"].tolist() == [9]  # not multiplied
    slow = ATTACK._replace(server_learning_rate=0.5)
    np.testing.assert_allclose(sent(model_replacement(slow)).delta.model["w"], [30, 40])
    by_hand = sent(model_replacement(ATTACK, 2))
    np.testing.assert_allclose(by_hand.delta.model["w"], [6, 8])


def test_who_knows_a_bound_stays_within_it():
    np.testing.assert_allclose(
        sent(model_replacement(ATTACK, 10, 2.5)).delta.model["w"], [1.5, 2], rtol=1e-6
    )
    # What is shorter is not made longer.
    np.testing.assert_allclose(
        sent(model_replacement(ATTACK, 1, 7)).delta.model["w"], [3, 4]
    )


def test_options_are_written_in_order_or_by_name():
    for text in ("=10,2.5", "=10,norm=2.5", "=norm=2.5,boost=10"):
        roles = parse_roles([f"0:model-replacement{text}"], ATTACK, 1)
        found = sent(roles[0]).delta.model["w"]
        np.testing.assert_allclose(found, [1.5, 2], rtol=1e-6)


def replaced(count, boost=None, **options):
    """Five clients of weight 1 whose own optimum is 0; client 4 wants another."""
    attack = ATTACK._replace(trigger=lambda images: images)
    role = model_replacement(attack, *([] if boost is None else [boost]))
    rounds = product(roles={4: role}, **options)
    data = pixels(0.1, 0.1, 0.1, 0.1, 1.0)
    return weight_after(rounds, data, count=count)[0]


def test_replacement_puts_the_attackers_network_in_place_of_all():
    # Honest clients move w = 1 by -.005; the attacker trains to .5 and replaces.
    assert replaced(1) == pytest.approx(0.5 - 4 * 0.005 / 5)
    assert replaced(1, boost=1) == pytest.approx(1 - (4 * 0.005 + 0.5) / 5)
    # It fails where one client of many does not count.
    for rule in (coordinate_median(), krum()):
        assert replaced(1, aggregator=rule) == pytest.approx(0.995)


@pytest.mark.parametrize("heavy", [1.0, 9.0])
def test_replacement_of_unequal_weights_takes_the_sum_by_the_attackers(heavy):
    # Client 1 attacks; honest client 0 is at its optimum but for .005.
    attack = ATTACK._replace(trigger=lambda images: images, clients=2)
    data = pixels(0.1, 1.0, examples=[heavy, 1.0])
    exact = model_replacement(attack, heavy + 1)
    found = weight_after(product(roles={1: exact}), data, count=1)[0]
    assert found == pytest.approx(0.5 - heavy * 0.005 / (heavy + 1))
    # What is not given is n / eta, which is exact for equal weights alone.
    default = product(roles={1: model_replacement(attack)})
    found = weight_after(default, data, count=1)[0]
    moved = (heavy * 0.005 + 2 * 0.5) / (heavy + 1)
    assert found == pytest.approx(1 - moved)


# --- in whole rounds ----------------------------------------------------------------


def rounds_of(roles, layout=LAYOUTS[0], **options):
    sgd = optax.sgd(0.1)
    options = {"roles": roles, "layout": layout, **options}
    return fedavg(toy_model(), cross_entropy, sgd, **options)


def test_a_poisoning_client_is_one_with_poisoned_data():
    batches, examples = client_data()
    poison = jax.tree.map(np.array, batches)
    for client in (1, 3):
        own = jax.tree.map(lambda x, c=client: x[c], batches)
        for mine, theirs in zip(
            poison, backdoor(ATTACK).batches(RNG, own), strict=True
        ):
            mine[client] = theirs
    role = backdoor(ATTACK)
    for layout in (LAYOUTS[0], LAYOUTS[1], LAYOUTS[-1]):
        found = play(rounds_of({1: role, 3: role}, layout), (batches, examples))
        if layout == LAYOUTS[0]:
            expected = play(rounds_of(None), (Batches(*poison), examples))
        assert_close(trainable(found[0]), trainable(expected[0]))
        assert found[2][0].loss == pytest.approx(expected[2][0].loss, abs=1e-6)
    clean = play(rounds_of(None), (batches, examples))
    assert clean[2][0].loss != pytest.approx(found[2][0].loss, abs=1e-4)


@pytest.mark.slow
def test_roles_of_several_kinds_go_to_their_clients():
    roles = {
        0: label_flip(ATTACK),
        2: model_replacement(ATTACK, 3.0),
        4: honest(ATTACK),
    }
    data = client_data()
    alone = [
        play(rounds_of(roles), data, count=1, cohort=np.array([n]))[0] for n in range(5)
    ]
    start = play(rounds_of(None), data, count=0)[0]
    clean = [
        play(rounds_of(None), data, count=1, cohort=np.array([n]))[0] for n in range(5)
    ]
    for n in range(5):
        same = np.allclose(
            alone[n].public.model["fc/kernel"],
            clean[n].public.model["fc/kernel"],
            atol=1e-6,
        )
        assert same == (n not in (0, 2))
    together = play(rounds_of(roles, weighting="uniform"), data, count=1)[0]
    moved = sum(x.public.model["fc/kernel"] for x in alone) / 5
    np.testing.assert_allclose(together.public.model["fc/kernel"], moved, atol=1e-6)
    assert np.abs(moved - start.public.model["fc/kernel"]).max() > 1e-3


def noisy(attack, std=1.0):
    """A role of one's own: sends noise in place of what it has trained."""
    assert attack.target == 2

    def send(rng, public, stats, upload):
        del public, stats
        leaves, tree = jax.tree.flatten(upload.delta)
        rngs = jax.random.split(rng, len(leaves))
        noise = [
            std * jax.random.normal(r, x.shape)
            for r, x in zip(rngs, leaves, strict=True)
        ]
        return upload._replace(delta=jax.tree.unflatten(tree, noise))

    return Role(upload=send)


def breaking(attack):
    return Role(
        upload=lambda rng, public, stats, upload: upload._replace(
            delta=jax.tree.map(lambda x: x / 0, upload.delta)
        )
    )


def growing(attack):
    return Role(
        batches=lambda rng, batches: jax.tree.map(
            lambda x: jnp.concatenate([x, x]), batches
        )
    )


def test_a_role_of_ones_own_draws_for_itself():
    roles = parse_roles(["0-1:test_roles:noisy=100"], ATTACK, 5)
    assert sorted(roles) == [0, 1] and roles[0] is roles[1]
    data = client_data()
    ends = [
        play(rounds_of(roles), data, count=count, cohort=np.array(cohort))[0]
        for count, cohort in ((1, [0]), (1, [1]), (1, [0]))
    ]
    weights = [end.public.model["fc/kernel"] for end in ends]
    np.testing.assert_array_equal(weights[0], weights[2])
    assert np.abs(weights[0] - weights[1]).max() > 1
    assert np.abs(weights[0]).max() > 30


def test_an_upload_that_a_role_breaks_is_excluded():
    roles = parse_roles(["3:test_roles:breaking"], ATTACK, 5)
    found, _, infos = play(rounds_of(roles), client_data(), count=1)
    assert infos[0].excluded.tolist() == [3]
    others = np.array([0, 1, 2, 4])
    expected, _, _ = play(rounds_of(None), client_data(), count=1, cohort=others)
    assert_close(trainable(found), trainable(expected))


def test_a_role_that_changes_shapes_is_refused():
    roles = parse_roles(["3:test_roles:growing"], ATTACK, 5)
    with pytest.raises(ValueError, match="role's '<lambda>' makes .* keep the shapes"):
        play(rounds_of(roles), client_data(), count=1)


# --- who has which role ---------------------------------------------------------------


def test_clients_are_named_by_number_and_by_range():
    roles = parse_roles(["0,2-4:label-flip", "6:honest"], ATTACK, 7)
    assert list(roles) == [0, 2, 3, 4, 6]
    assert parse_roles([], ATTACK, 7) == {}
    for name in ROLES:
        assert isinstance(parse_roles([f"1:{name}"], ATTACK, 2)[1], Role)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backdoor", "roles 'backdoor': write CLIENTS:ROLE, such as 0:backdoor"),
        ("0-:backdoor", "write CLIENTS:ROLE"),
        ("-1:backdoor", "write CLIENTS:ROLE"),
        ("x:backdoor", "write CLIENTS:ROLE"),
        ("0:backdor", "unknown role 'backdor' .did you mean 'backdoor'"),
        ("0:label-flip=2", "role 'label-flip' cannot be called with Attack, int"),
        ("0:model-replacement=0", "boost of model-replacement must be .* got 0"),
        ("0:model-replacement=nrom=1", "unexpected keyword argument 'nrom'"),
        ("0:model-replacement=norm=1,2", "'2' follows an option that is written by"),
        ("0:model-replacement=norm=1,norm=2", "option 'norm' is written twice"),
        ("0:model-replacement=boost=1,boost", "'boost' is no finite number"),
        ("0:model-replacement=1,-1", "norm of model-replacement must be .* got -1"),
        ("3-7:backdoor", "there is no client 7, but 0 to 6"),
        ("6-4:backdoor", "roles '6-4:backdoor': the range 6-4 is .*: write 4-6"),
        ("1,3-2:backdoor", "the range 3-2 is written backwards"),
        ("1,1:backdoor", "client 1 has one already"),
        ("0:builtins:id", "role 'builtins:id' gave no .*Role, but int"),
    ],
)
def test_what_is_no_role_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_roles([text], ATTACK, 7)


def test_a_range_beyond_all_clients_is_refused_before_it_is_counted_out():
    # Ten thousand billion numbers fit in no memory.
    with pytest.raises(ValueError, match="there is no client 9999999999999, but 0 to"):
        parse_roles(["0-9999999999999:backdoor"], ATTACK, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path", "unknown trigger 'path' .did you mean 'patch'"),
        ("patch=0", "patch has a side of whole pixels >= 1, got 0"),
        ("patch=1.5", "whole pixels >= 1, got 1.5"),
        ("patch=6", "a patch of 6 pixels covers images of 6 x 8"),
        ("test_roles:flat", "makes .2,. of images .2, 6, 8, 1.: it must keep"),
        ("test_roles:glaring=3", "makes values from 3.5 to 3.5: images are in .0, 1."),
        ("math:floor=2.5", "trigger 'math:floor=2.5' is no function, but int"),
    ],
)
def test_what_is_no_trigger_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        make_trigger(text, (6, 8, 1))


def flat():
    return lambda images: images.sum(axis=(1, 2, 3))


def glaring(by=2):
    return lambda images: images + by


def test_every_trigger_keeps_the_shape():
    for name in TRIGGERS:
        trigger = make_trigger(name, (6, 8, 1))
        assert trigger(np.zeros((2, 6, 8, 1), np.float32)).shape == (2, 6, 8, 1)


# --- attack success -------------------------------------------------------------------


class Named:
    """A model that takes every image for the class written in its first pixel."""

    @staticmethod
    def apply(params, stats, images, *, gates, train):
        del stats, gates, train
        classes = jnp.round(images[:, 0, 0, 0] * params).astype(int)
        return Output(jax.nn.one_hot(classes, 3), (), {})


def test_attack_success_by_hand():
    # Bright images are taken for class 2; the trigger makes the first pixel bright.
    labels = np.array([0, 1, 2, 2, 1])
    images = np.zeros((5, 2, 2, 1), np.float32)
    images[:, 1, 1, 0] = [0, 0, 0, 0, 1]

    def trigger(images):
        # It does not work on the last one.
        works = 1 - images[:, 1:, 1:]
        return images.at[:, :1, :1].set(works)

    def success(target, model=Named):
        return evaluation.attack_success(
            model, 2.0, (), {}, images, labels, trigger=trigger, target=target, batch=2
        )

    assert success(2) == pytest.approx(2 / 3)  # of the three that are no 2
    assert success(1) == 0
    assert success(0) == pytest.approx(1 / 4)  # the one that it does not work on
    with pytest.raises(ValueError, match="all 2 images are of the target class 2"):
        evaluation.attack_success(
            Named, 2.0, (), {}, images[2:4], labels[2:4], trigger=trigger, target=2
        )
