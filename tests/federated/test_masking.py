"""Pairwise masks: the sum is exact, one upload is noise, a dropout is named."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from kljax.core.randomness import draw_system_rng
from kljax.federated.encryption import MissingUpload, masking, pairwise_masks
from kljax.federated.encryption.masking import (
    FRACTION,
    _rounded_up,
    add_masked,
    adding_with,
    from_fixed_point,
    mask_of,
    pair_key,
    to_fixed_point,
)

PAIRS = jax.random.key(20)
ROSTER = np.array([2, 7, 11, 4], np.int32)
SHARES = np.array([0.4, 0.3, 0.2, 0.1])
SIZE = 2000


def masks(number=0, roster=ROSTER, size=SIZE, pairs=PAIRS):
    return {
        int(c): np.asarray(mask_of(pairs, number, int(c), roster, size)) for c in roster
    }


def uniform(words):
    """Gives the p-value of 32-bit words under the uniform distribution (KS)."""
    return stats.kstest(words / 2.0**32, "uniform").pvalue


# --- sums -------------------------------------------------------------------------


def test_the_sum_is_exact_in_fixed_point():
    values = np.random.default_rng(1).normal(0, 20, (4, SIZE))
    mean, cost = adding_with(PAIRS)(3, ROSTER, SHARES, values)
    expected = []
    for column in values.T:
        whole = sum(
            round(float(s * x) * 2**FRACTION)
            for s, x in zip(SHARES, column, strict=True)
        )
        expected.append(whole / 2**FRACTION)
    np.testing.assert_array_equal(mean, expected)  # bit by bit
    np.testing.assert_allclose(mean, SHARES @ values, rtol=0, atol=4 * 2.0**-25)
    assert cost.upload_bytes == 4 * SIZE


def test_the_sum_does_not_depend_on_the_keys_or_the_order():
    values = np.random.default_rng(1).normal(0, 1, (4, 50))
    mean, _ = adding_with(PAIRS)(0, ROSTER, SHARES, values)
    turn = [3, 1, 0, 2]
    other, _ = adding_with(draw_system_rng())(
        5, ROSTER[turn], SHARES[turn], values[turn]
    )
    np.testing.assert_array_equal(mean, other)


def test_two_clients_with_one_pair_cancel():
    one, other = masks(roster=np.array([0, 1], np.int32)).values()
    assert np.all(one + other == 0) and one.dtype == np.uint32
    shared = jax.random.bits(
        jax.random.fold_in(pair_key(PAIRS, 1, 0), 0), (SIZE,), "uint32"
    )
    # The client of the smaller number adds what the other takes off.
    np.testing.assert_array_equal(one, shared)
    values = np.array([[1.5, -2.0], [0.5, 1.0]])
    mean, _ = adding_with(PAIRS)(0, np.array([0, 1]), np.array([0.5, 0.5]), values)
    np.testing.assert_array_equal(mean, [1.0, -0.5])


def test_the_largest_numbers_do_not_wrap_around():
    bits = 30
    most = 2.0 - 2.0**-13
    values = np.array([[most, -most], [most, -most]])
    add = pairwise_masks(bits).start()
    mean, _ = add(0, np.array([0, 1]), np.array([0.5, 0.5]), values)
    np.testing.assert_allclose(mean, [most, -most], atol=2.0**-29)


def test_masks_are_compiled_for_few_sizes():
    sizes = [_rounded_up(size) for size in range(1024, 2048)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 9  # eight, and the next
    for size, drawn in enumerate(sizes, start=1024):
        assert size <= drawn <= size * 9 / 8
    assert [_rounded_up(size) for size in range(9)] == list(range(9))


# --- single uploads ---------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1.0, -100.0])
def test_a_masked_upload_is_uniform_whatever_is_under_it(value):
    plain = to_fixed_point(np.full(SIZE, value), 0.4, FRACTION)
    for client, mask in masks().items():
        assert uniform(plain + mask) > 1e-3, client
    assert uniform(plain) < 1e-6  # without a mask the test would say so


def test_a_masked_upload_does_not_depend_on_its_value():
    signs = np.random.default_rng(2).choice([-1.0, 1.0], SIZE)
    plain = to_fixed_point(signs * 50, 0.4, FRACTION)

    def apart(sent):
        return stats.ks_2samp(sent[signs > 0], sent[signs < 0]).pvalue

    for client, mask in masks().items():
        assert apart(plain + mask) > 1e-3, client
    assert apart(plain) < 1e-6


def test_what_a_server_is_sent_is_masked(monkeypatch):
    sent, honest = {}, masking.add_masked

    def curious(uploads, roster):
        sent.update(uploads)
        return honest(uploads, roster)

    monkeypatch.setattr(masking, "add_masked", curious)
    mean, _ = adding_with(PAIRS)(0, ROSTER, SHARES, np.ones((4, SIZE)))
    np.testing.assert_allclose(mean, 1.0, rtol=0, atol=1e-6)
    assert sorted(sent) == sorted(ROSTER.tolist())
    for client, upload in sent.items():
        assert uniform(upload) > 1e-3, client


def test_each_pair_has_a_key_of_its_own_in_either_order():
    def key(one, other):
        return tuple(jax.random.key_data(pair_key(PAIRS, one, other)).tolist())

    pairs = list(itertools.combinations(range(5), 2))
    assert len({key(*pair) for pair in pairs}) == len(pairs)
    assert all(key(one, other) == key(other, one) for one, other in pairs)


def test_masks_of_rounds_and_of_partial_sums_are_apart():
    """No mask is used twice, and no part of the clients' sum is in the clear."""
    first, second = masks(0), masks(1)
    for client in first:
        assert uniform(first[client] - second[client]) > 1e-3
    one, other, third, _ = first.values()
    assert uniform(one + other) > 1e-3 and uniform(one + other + third) > 1e-3
    assert uniform(one - other) > 1e-3
    assert np.all(sum(first.values()) == 0)


def test_a_round_that_is_run_again_has_other_masks(monkeypatch):
    """Under the same masks the difference of two uploads would be in the clear."""
    sent, honest = [], masking.add_masked

    def curious(uploads, roster):
        sent.append(uploads)
        return honest(uploads, roster)

    monkeypatch.setattr(masking, "add_masked", curious)
    add, values = adding_with(PAIRS), np.ones((4, SIZE))
    for factor in (1, 2):
        mean, _ = add(3, ROSTER, SHARES, factor * values)
        np.testing.assert_allclose(mean, factor, rtol=0, atol=1e-6)
    for client in ROSTER.tolist():
        assert uniform(sent[1][client] - sent[0][client]) > 1e-3, client


def test_masks_are_threefrys_whatever_other_keys_are():
    with jax.default_prng_impl("rbg"):
        drawn = draw_system_rng()
    assert jax.random.key_impl(drawn) == "threefry2x32"
    assert np.all(sum(masks(pairs=drawn, size=4).values()) == 0)


def test_keys_are_drawn_anew():
    assert not np.array_equal(
        jax.random.key_data(draw_system_rng()), jax.random.key_data(draw_system_rng())
    )


# --- what is refused --------------------------------------------------------------


def sent():
    return {
        client: mask + to_fixed_point(np.ones(SIZE), 0.25, FRACTION)
        for client, mask in masks().items()
    }


def test_who_drops_out_is_named():
    uploads = sent()
    np.testing.assert_array_equal(
        from_fixed_point(add_masked(uploads, ROSTER), FRACTION), 1.0
    )
    del uploads[7], uploads[4]
    with pytest.raises(MissingUpload, match=r"clients \[4, 7\] of the sum have sent"):
        add_masked(uploads, ROSTER)
    # What it would be otherwise: no sum of the others.
    left = from_fixed_point(sum(uploads.values()), FRACTION)
    assert np.max(np.abs(left - 0.5)) > 1


def test_a_stranger_is_named():
    uploads = sent() | {5: np.zeros(SIZE, np.uint32)}
    with pytest.raises(ValueError, match=r"clients \[5\] are not in the roster"):
        add_masked(uploads, ROSTER)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "only finite numbers can be masked"),
        (np.inf, "only finite numbers can be masked"),
        (130.0, "of size 130 does not fit 32 bits with 24 after the point.*128"),
    ],
)
def test_a_number_that_does_not_fit_is_refused_with_its_client(value, message):
    values = np.zeros((4, 3))
    values[1, 2] = value
    with pytest.raises(ValueError, match=f"round 2, client 7: .*{message}"):
        adding_with(PAIRS)(2, ROSTER, SHARES, values)


@pytest.mark.parametrize("bits", [0, 31, 2.5, True])
def test_bits_after_the_point_are_some_of_32(bits):
    with pytest.raises(ValueError, match="bits after the point, from 1 to 30, got"):
        pairwise_masks(bits)
