"""Bytes that the ranks of drivers have sent, asked for around a call that they may not survive."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain, zip_longest

from hybridiff_compile.errors import WorkerError
from hybridiff_compile.runtime.driver import Driver
from hybridiff_compile.runtime.report import Traffic

logger = logging.getLogger(__name__)


def before(drivers: Sequence[Driver | None]) -> Traffic:
    """Traffic before a call; a worker that ended since the last one is let go of."""
    return _sum([_before(driver) for driver in drivers])


def after(drivers: Sequence[Driver | None]) -> Traffic | None:
    """Traffic after a call; None if a worker ended since its last step: the picture is there."""
    found = [_after(driver) for driver in drivers]
    known = [traffic for traffic in found if traffic is not None]
    return _sum(known) if len(known) == len(found) else None


def _sum(parts: Sequence[Traffic]) -> Traffic:
    """Of all denoisers; the steps of each rank in order."""
    steps = zip_longest(*(part.steps for part in parts), fillvalue=())
    by_rank = (sorted(chain(*of), key=lambda step: step.begin) for of in steps)
    sent, rss = sum(p.sent_bytes for p in parts), sum(p.rss_mb for p in parts)
    return Traffic(sent, rss, tuple(map(tuple, by_rank)))


def _now(driver: Driver | None) -> Traffic:
    return driver.traffic() if driver is not None and driver.fleet.is_open else Traffic()


def _before(driver: Driver | None) -> Traffic:
    try:
        return _now(driver)
    except WorkerError:
        how = None if driver is None else driver.fleet.end
        if how is None:
            raise
        logger.warning("the worker %s while idle; another is started", how)
        return Traffic()


def _after(driver: Driver | None) -> Traffic | None:
    try:
        return _now(driver)
    except WorkerError:
        if driver is not None and driver.late:
            raise  # values of its last step may never have come
        how = (driver and driver.fleet.end) or "was ended by the driver"
        what = "the picture is made, but the bytes sent for it are not known: the worker %s"
        logger.warning(what, how)
        return None
