"""A headless Chromium for tests, driven by chromedriver over HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium")
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--hide-scrollbars"),
)


class Browser:
    """A session of chromedriver."""

    def __init__(self, address: str) -> None:
        self.session = ""
        self.address = address
        self.http = requests.Session()
        options = {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": QUIET},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        found = self._post("session", {"capabilities": {"alwaysMatch": options}})
        self.session = f"session/{found['sessionId']}"

    def _post(self, command: str, body: dict[str, Any]) -> Any:
        url = f"{self.address}/{self.session}/{command}".replace(
            "//session", "/session"
        )
        answer = self.http.post(url, json=body, timeout=120).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["message"])
        return answer

    def cdp(self, command: str, **params: Any) -> Any:
        body = {"cmd": command, "params": params}
        return self._post("goog/cdp/execute", body)

    def script(self, code: str) -> Any:
        return self._post("execute/sync", {"script": code, "args": []})

    def open(self, url: str, width: int, *, scheme: str = "light") -> None:
        """Show a page in a window of some width, in CSS pixels."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.cdp("Emulation.setEmulatedMedia", features=[feature])
        self._post("url", {"url": url})

    def console(self) -> list[str]:
        """Return what the browser logged since it was last asked."""
        return [entry["message"] for entry in self._post("se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Return the URLs of all requests since it was last asked."""
        entries = self._post("se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]

    def screenshot(self, file: Path) -> None:
        """Write a PNG of the whole page."""
        shot = self.cdp(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True
        )
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.http.delete(f"{self.address}/{self.session}", timeout=30)
        self.http.close()


@contextlib.contextmanager
def run_browser() -> Iterator[Browser]:
    """Start chromedriver and a Chromium, and end both."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [str(DRIVER), "--port=0"], stdout=log, stderr=subprocess.STDOUT
        ) as driver,
    ):
        try:
            browser = Browser(f"http://127.0.0.1:{_port(log, driver)}")
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()


def _port(log: Any, driver: subprocess.Popen) -> int:
    """Wait until chromedriver says at which port it listens."""
    said = ""
    while driver.poll() is None:
        log.seek(0)
        said = log.read()
        _, found, rest = said.partition("started successfully on port ")
        if found and "." in rest:
            return int(rest.partition(".")[0])
        time.sleep(0.05)
    raise RuntimeError(f"chromedriver ended: {said}")
