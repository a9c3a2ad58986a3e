"""A page as a real headless Chromium shows it, asked over a pair of pipes (DevTools protocol)."""

import base64
import fcntl
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-headless-shell", "google-chrome", "google-chrome-stable")
PATIENCE = 60  # seconds for any answer, on a machine that is busy
EVENTS = {
    "Runtime.exceptionThrown": lambda p: p["exceptionDetails"]["text"],
    "Runtime.consoleAPICalled": lambda p: str(p["args"]),
    "Log.entryAdded": lambda p: p["entry"]["text"],
}


def find() -> str:
    """The browser; the test that asks for one is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"needs one of {', '.join(NAMES)} on the PATH (apt-get install chromium)")
    return found


@dataclass
class Page:
    """What was seen of a page."""

    screenshot: "object"  # PIL.Image
    values: list  # of the expressions
    complaints: list[str] = field(default_factory=list)  # console messages, uncaught errors
    requests: list[str] = field(default_factory=list)  # everything asked for, the page first


class _Browser:
    def __init__(self, folder: Path) -> None:
        def above_4(fd):  # the child's are 3 and 4 by the browser's rule
            high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
            os.close(fd)
            return high

        (child_in, self.out), (self.input, child_out) = (map(above_4, os.pipe()) for _ in "io")

        def adopt():
            os.dup2(child_in, 3)
            os.dup2(child_out, 4)

        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={folder}")  # fmt: skip
        self.process = subprocess.Popen(
            [find(), *options], preexec_fn=adopt, pass_fds=(3, 4), stderr=subprocess.DEVNULL
        )
        os.close(child_in)
        os.close(child_out)
        self.numbers = itertools.count(1)
        self.read = b""
        self.events: list[dict] = []

    def message(self) -> dict:
        """The next message, each of which ends with a zero."""
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self.read:
            ready, _, _ = select.select([self.input], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self.input, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError("the browser does not answer")
            self.read += part
        text, self.read = self.read.split(b"\0", 1)
        return json.loads(text)

    def call(self, method: str, session: str | None = None, **parameters):
        number = next(self.numbers)
        call = {"id": number, "method": method, "params": parameters}
        text = json.dumps(call if session is None else {**call, "sessionId": session})
        os.write(self.out, text.encode() + b"\0")
        while (answer := self.message()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait_for(self, event: str) -> None:
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self.message())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.input)


def look(path: Path, folder: Path, expressions: tuple[str, ...] = (), width: int = 1240,
         dark: bool = False) -> Page:  # fmt: skip
    """Loads the file, evaluates JavaScript expressions in turn, and takes a picture of all of it."""
    from PIL import Image

    browser = _Browser(folder)
    try:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            browser.call(f"{domain}.enable", session)
        browser.call("Emulation.setDeviceMetricsOverride", session, width=width, height=900,
                     deviceScaleFactor=1, mobile=False)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.call("Emulation.setEmulatedMedia", session, features=[scheme])
        browser.call("Page.navigate", session, url=path.as_uri())
        browser.wait_for("Page.loadEventFired")
        values = []
        for expression in expressions:
            answer = browser.call("Runtime.evaluate", session, expression=expression,
                                  returnByValue=True)  # fmt: skip
            values.append(answer["result"].get("value"))
        picture = browser.call("Page.captureScreenshot", session, captureBeyondViewport=True)
    finally:
        browser.close()
    page = Page(Image.open(io.BytesIO(base64.b64decode(picture["data"]))).convert("RGB"), values)
    for event in browser.events:
        parameters = event.get("params", {})
        if event.get("method") in EVENTS:
            page.complaints.append(EVENTS[event["method"]](parameters))
        elif event.get("method") == "Network.requestWillBeSent":
            page.requests.append(parameters["request"]["url"])
    return page
