"""The ledger's load hint balances, and a leak in it cannot stop anything."""

import pytest

from fortifai_ray.engines import pool
from fortifai_ray.engines.pool import Ledger


def test_claims_go_to_the_least_loaded_engine() -> None:
    """Protects throughput: two engines share the calls."""
    ledger = Ledger(3)
    assert [ledger.claim(call) for call in "abcd"] == [0, 1, 2, 0]
    ledger.release("b")
    assert ledger.claim("e") == 1


def test_a_leaked_claim_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects against an engine that stays idle because clients of it died."""
    now = 1000.0
    monkeypatch.setattr(pool.time, "time", lambda: now)
    ledger = Ledger(2)
    ledger.claim("died with its client")
    now += pool.CLAIM_SECONDS + 1
    assert ledger.claim("next") == 0


def test_releasing_twice_or_unknown_is_harmless() -> None:
    """Protects retries: a task that runs twice releases twice."""
    ledger = Ledger(1)
    ledger.claim("a")
    ledger.release("a")
    ledger.release("a")
    assert ledger.claims == {}


def test_starts_and_failures_are_kept() -> None:
    """Protects the count of engine starts in a sweep's summary."""
    ledger = Ledger(2)
    ledger.report(0, "starting")
    ledger.started(2.5)
    ledger.report(0, "ready")
    ledger.report(1, "starting")
    ledger.report(1, "not started", failure="no such folder")
    state = ledger.state()
    assert (state.starts, state.start_seconds, state.failure) == (2, [2.5], "no such folder")
    assert [engine.name for engine in state.engines] == ["ready", "not started"]
