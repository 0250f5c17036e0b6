"""A short search for schedules that break the protocol of versions; ``python -m tests.protocol`` is the long one."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests import protocol
from tests.protocol import PLANTED, SCENARIOS, WEAK, Found, search


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", protocol._DISTURBANCES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_schedule_breaks_the_protocol(scenario: str, kind: str) -> None:
    found = Found()
    search(scenario, kind, pairs=8, seed=1, found=found, every=29 if kind == WEAK else 11)
    assert not found.violations, found.plans
    assert len(found.orders) > 30


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault: str) -> None:
    found = Found()
    scenario, kind, plant = PLANTED[fault]
    with plant():
        search(scenario, kind, pairs=0, seed=1, found=found, stop_at_first=True)
    assert found.violations


def test_a_run_does_not_wait_for_its_own_ticket() -> None:
    """One that it could not remove, since the store did not answer when its turn was over."""
    plan = {("run C", 2): "lost", ("run C", 33): "outage"}
    assert protocol.play(SCENARIOS["pruning"], plan, WEAK)[1] is None
