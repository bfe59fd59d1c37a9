"""Bytes that the ranks of a driver have sent, asked for around a call that they may not survive."""

from __future__ import annotations

import logging

from hybridiff_compile.errors import WorkerError
from hybridiff_compile.runtime.driver import Driver
from hybridiff_compile.runtime.report import Traffic

logger = logging.getLogger(__name__)


def _now(driver: Driver | None) -> Traffic:
    return driver.traffic() if driver is not None and driver.fleet.is_open else Traffic()


def before(driver: Driver | None) -> Traffic:
    """Traffic before a call; a worker that ended since the last one is let go of."""
    try:
        return _now(driver)
    except WorkerError:
        how = None if driver is None else driver.fleet.end
        if how is None:
            raise
        logger.warning("the worker %s while idle; another is started", how)
        return Traffic()


def after(driver: Driver | None) -> Traffic | None:
    """Traffic after a call; None if the worker ended since its last step: the picture is there."""
    try:
        return _now(driver)
    except WorkerError:
        if driver is not None and driver.late:
            raise  # values of its last step may never have come
        how = (driver and driver.fleet.end) or "was ended by the driver"
        what = "the picture is made, but the bytes sent for it are not known: the worker %s"
        logger.warning(what, how)
        return None
