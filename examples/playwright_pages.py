"""Pages rendered by Chromium: each worker owns a browser, which may be used on its thread only.

    pip install playwright
    python examples/playwright_pages.py /usr/bin/chromium

Without an argument it takes the chromium on the PATH, or else the browser of "playwright install chromium".
"""
# pyright: basic, reportMissingImports=false, reportMissingTypeStubs=false

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from contextlib import suppress

from playwright.sync_api import Error, TimeoutError, sync_playwright  # type: ignore[import-not-found,unused-ignore]
from typing_extensions import override

from tasker_executor import ResourceExecutor, ResourceFactory, TaskTimeout, Verdict, current_task


class Chromium:
    """A browser, the driver that it needs, and the number of its process."""

    def __init__(self, path: str | None) -> None:
        self.driver = sync_playwright().start()
        try:
            self.browser = self.driver.chromium.launch(executable_path=path)
            processes = self.browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
            self.pid = int(next(process["id"] for process in processes if process["type"] == "browser"))
        except BaseException:
            self.driver.stop()
            raise

    def close(self) -> None:
        self.browser.close()
        self.driver.stop()


class Browsers(ResourceFactory[Chromium]):
    def __init__(self, path: str | None) -> None:
        self.path = path

    @override
    def create(self) -> Chromium:
        return Chromium(self.path)

    @override
    def destroy(self, resource: Chromium) -> None:
        resource.close()

    @override
    def judge(self, error: Exception, resource: Chromium) -> Verdict:
        """A page that crashed, or was not found in time, is the task's. A browser that is gone is not."""
        gone = isinstance(error, Error) and not resource.browser.is_connected()
        return Verdict.BROKEN if gone else Verdict.OWN

    @override
    def check(self, resource: Chromium) -> bool:
        return bool(resource.browser.is_connected())

    @override
    def reset(self, resource: Chromium) -> None:
        for context in resource.browser.contexts:  # with its pages, cookies and storage
            context.close()

    @override
    def abort(self, resource: Chromium) -> None:
        """Another thread must not call Playwright. It may end the browser, and then the call that hangs raises."""
        with suppress(ProcessLookupError):  # gone by now
            os.kill(resource.pid, signal.SIGKILL)


def heading(chromium: Chromium, html: str) -> str:
    page = chromium.browser.new_page()
    page.set_default_timeout(1000)  # milliseconds, for each call
    page.set_content(html)
    return str(page.inner_text("h1"))


def crash_once(chromium: Chromium) -> str:
    if current_task().attempt == 1:
        os.kill(chromium.pid, signal.SIGKILL)
    return heading(chromium, "<h1>by another browser</h1>")


def run_for_ever(chromium: Chromium) -> None:
    chromium.browser.new_page().evaluate("new Promise(() => {})")


def main(path: str | None) -> None:
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)  # it warns of each browser that it replaces
    with ResourceExecutor(2, resource=Browsers(path), run_within=60, max_uses=500, create_timeout=60, name="pages") as pool:
        print("headings:", list(pool.map(heading, [f"<h1>page {number}</h1>" for number in range(3)])))
        print("no heading:", isinstance(pool.submit(heading, "<p>nothing</p>").exception(), TimeoutError))
        print("the browser crashes:", pool.submit(crash_once).result())
        try:
            pool.with_options(run_within=2).submit(run_for_ever).result()
        except TaskTimeout as error:
            print("a script that never ends:", type(error).__name__, "from", type(error.__cause__).__name__)
        print("the next page:", pool.submit(heading, "<h1>works</h1>").result())
    stats = pool.stats()
    print(stats.resources_created - stats.resources_destroyed, "browsers left open")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else shutil.which("chromium"))
