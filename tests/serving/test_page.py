"""The page at `/`, in a real browser where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.conftest import Server

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser is here")


@pytest.fixture
def page(server: Server) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(server.url)
        yield page
        browser.close()


def test_a_picture_grows_step_by_step(page: Any) -> None:
    shown: list[str] = []
    page.expose_function("shown", lambda source: shown.append(source))
    page.evaluate(
        "new MutationObserver(() => window.shown(document.getElementById('picture').src))"
        ".observe(document.getElementById('picture'), {attributes: true})"
    )
    page.fill("#prompt", "a red circle above a blue square on a dark green background")
    page.click("#make")
    page.wait_for_function("document.getElementById('said').textContent.startsWith('Done')")
    assert len(set(shown)) > 10
    assert page.eval_on_selector("#picture", "picture => picture.naturalWidth") == 64
    phases = page.eval_on_selector_all("#steps span", "all => all.map(one => one.className)")
    assert len(phases) == 28
    assert set(phases) == {"serial", "forecast"}
    computed, extrapolated = phases.count("serial"), phases.count("forecast")
    said = page.inner_text("#said")
    assert f"28 steps on 2 ranks: {computed} computed, {extrapolated} extrapolated" in said
    assert page.is_enabled("#make")


def test_stop_stops_and_the_next_one_is_made(page: Any) -> None:
    page.click("#make")
    page.wait_for_selector("#steps span")
    page.click("#stop")
    page.wait_for_function("document.getElementById('said').textContent === 'Stopped.'")
    page.click("#make")
    page.wait_for_function("document.getElementById('said').textContent.startsWith('Done')")


def test_what_is_refused_is_said(page: Any) -> None:
    page.fill("#prompt", "x" * 4001)
    page.click("#make")
    page.wait_for_function("document.getElementById('said').textContent.startsWith('prompt: ')")
