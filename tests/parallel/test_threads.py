"""Work that is done side by side: once each, in order, with the caller's settings."""

import functools
import threading
import time

import jax
import pytest

from kljax.parallel.threads import Once, beside, side_by_side


def test_what_is_being_made_is_waited_for():
    made, begun, allowed = [], threading.Event(), threading.Event()

    def make():
        begun.set()
        allowed.wait(10)
        made.append(1)
        return len(made)

    once, results = Once(most=2), []

    def ask():
        results.append(once.get("key", make))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    allowed.set()
    for thread in threads:
        thread.join()
    assert sorted(results) == [(1, False), (1, False), (1, True)]


def test_the_one_asked_for_longest_ago_goes_first():
    once = Once(most=2)
    for key in ("a", "b", "a", "c"):
        once.get(key, lambda key=key: key)
    assert [once.get(key, lambda: "again")[1] for key in ("a", "c", "b")] == [
        False,
        False,
        True,
    ]


def test_what_could_not_be_made_is_tried_again():
    def fail():
        raise ValueError("no")

    once = Once(most=2)
    with pytest.raises(ValueError, match="no"):
        once.get("key", fail)
    assert once.get("key", lambda: 1) == (1, True)


def test_a_maker_that_fails_leaves_alone_what_another_makes_anew():
    once = Once(most=1)

    def fail():
        once.get("other", lambda: 0)  # evicts what is being made here
        assert once.get("key", lambda: "anew") == ("anew", True)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        once.get("key", fail)
    assert once.get("key", lambda: "again") == ("anew", False)


def test_what_is_held_is_evicted_at_the_end():
    once = Once(most=1)

    def new(*keys):
        return [once.get(key, object)[1] for key in keys]

    with once.hold():
        assert new("a", "b", "c") == [True, True, True]
        with once.hold():
            pass
        assert new("a", "b", "c") == [False, False, False]
    assert new("c", "b") == [False, True]
    with pytest.raises(ValueError, match="no"), once.hold():
        raise ValueError("no")
    assert new("a", "b") == [True, True]


def test_calls_come_in_order_under_the_callers_precision():
    def precision():
        return jax.config.jax_default_matmul_precision

    with jax.default_matmul_precision("highest"):
        found = list(side_by_side([precision, lambda: 1, precision]))
    assert found == ["highest", 1, "highest"]
    assert list(side_by_side([])) == []


def test_a_call_that_fails_stops_those_that_have_not_begun(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    later = []

    def fail():
        raise ValueError("no")

    # The failure is known long before the third has ended.
    waits = functools.partial(time.sleep, 2)
    calls = side_by_side([lambda: 1, fail, waits, lambda: later.append(1)])
    assert next(calls) == 1
    with pytest.raises(ValueError, match="no"):
        next(calls)
    assert later == []


def test_what_is_forgotten_is_made_anew_but_not_within_hold():
    once = Once(most=2)
    assert once.get("key", object)[1]
    with once.hold():
        once.clear()
        assert not once.get("key", object)[1]
    once.clear()
    assert once.get("key", object)[1]


def test_a_call_is_made_beside_what_the_context_does():
    allowed = threading.Event()

    def call():
        assert allowed.wait(10)
        return jax.config.jax_default_matmul_precision, threading.current_thread()

    with jax.default_matmul_precision("highest"):
        entered = beside(call)
        with entered as wait, jax.default_matmul_precision("default"):
            allowed.set()
            precision, thread = wait()
    assert precision == "highest" and thread is not threading.current_thread()


def test_what_a_call_beside_raises_is_raised_where_it_is_waited_for():
    ended = []

    def fail():
        time.sleep(0.1)
        ended.append(1)
        raise ValueError("no")

    with beside(fail) as wait, pytest.raises(ValueError, match="no"):
        wait()
    # Another error goes first, and the call is waited for all the same.
    with pytest.raises(KeyError), beside(fail):
        raise KeyError
    assert ended == [1, 1]
