"""Headless Chromium, and what the tests of the page ask of it."""

import os
import shutil

import pytest

from nc_callbacks.report import write_report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a folder's page, offline; at the end nothing may have been said on the console or asked of the network."""
    said, asked, contexts, own = [], [], [], set()

    def open_page(folder, width=1280, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        path = write_report(folder)
        page.goto(path.as_uri())
        wait_until(page, "Boolean(window.Plotly)")
        own.add(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if url.split("#")[0] not in own and not url.startswith(("data:", "blob:"))] == []


def wait_until(page, expression):
    """Playwright's own way of waiting evaluates strings in the page, which its content security policy forbids."""
    for _ in range(400):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise TimeoutError(expression)


def figure(page, title):
    """The figure of that title, drawn."""
    found = page.locator("figure", has=page.get_by_role("heading", name=title, exact=True))
    found.scroll_into_view_if_needed()
    found.locator(".main-svg").first.wait_for()
    return found


def plotted(page, title, path):
    """A value of the plot of a figure, once its charts have been drawn."""
    wait_until(page, "waiting.size === 0")
    return figure(page, title).locator(".plot").evaluate(f"plot => plot.{path}")


def see_all(page):
    """Scroll through the page, so that every chart is drawn."""
    for chart in page.locator("figure").all():
        if chart.is_visible():
            chart.scroll_into_view_if_needed()
            chart.locator(".main-svg").first.wait_for()
