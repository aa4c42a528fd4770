"""A headless Chromium to be asked and acted on, through its own protocol over two pipes.

No package is needed for it: a message is JSON with a zero byte after it.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# Nothing that Chromium does on its own account is to reach the network.
_FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --disable-extensions --mute-audio
--disable-default-apps --hide-scrollbars --remote-debugging-pipe""".split()
_KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Escape": 27, "PageUp": 33}
_KEYS |= {"PageDown": 34, "Tab": 9, "Enter": 13, " ": 32, "ArrowUp": 38, "ArrowDown": 40}


def _high(fd: int) -> int:
    """The same under a number that is neither 3 nor 4."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return copy


class Browser:
    """One page in a Chromium of its own.

    `requests` are the addresses that the page asked for beside itself and `data:`; `complaints` are
    console messages, uncaught errors and what the content security policy refused.
    """

    def __init__(self, profile: Path) -> None:
        ends = [_high(fd) for fd in (*os.pipe(), *os.pipe())]
        to_it, self._to, self._from, from_it = ends
        # Chromium reads its descriptor 3 and writes its 4, which a shell arranges.
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        wired = f'exec "$@" 3<&{to_it} 4>&{from_it}'
        self._process = subprocess.Popen(
            ["bash", "-c", wired, "bash", *map(str, command)],
            pass_fds=(to_it, from_it),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_it)
        os.close(from_it)
        self._ids = itertools.count(1)
        self._buffer = b""
        self._session: str | None = None
        self._scripts = True
        self.requests: list[str] = []
        self.complaints: list[str] = []
        pages = self.send("Target.getTargets")["targetInfos"]
        page = next(info["targetId"] for info in pages if info["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        self._session = None
        self.send("Browser.close")
        os.close(self._to)
        os.close(self._from)
        self._process.wait(timeout=30)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Give a command and wait for its answer; what happens meanwhile is noted."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self, timeout: float = 60) -> dict[str, Any]:
        end = time.monotonic() + timeout
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            chunk = os.read(self._from, 1 << 16)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "file:")):
                self.requests.append(url)
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def open(
        self,
        path: Path,
        width: int = 900,
        height: int = 900,
        scheme: str = "light",
        scripts: bool = True,
    ) -> Browser:
        """Open a file, in a window of that size, and wait until it is drawn."""
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.requests.clear()
        self.complaints.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=width < 500)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])
        self._loaded = False
        self.send("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._read()
        self._scripts = scripts
        self.settle()
        return self

    def settle(self) -> None:
        """Until two frames were drawn."""
        if self._scripts:
            self.ask("new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def box(self, expression: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element in the window, scrolled into view."""
        return tuple(
            self.ask(
                f"(() => {{ const e = {expression}; e.scrollIntoView({{block: 'center'}});"
                " const b = e.getBoundingClientRect();"
                " return [b.left, b.top, b.width, b.height]; })()"
            )
        )

    def mouse(self, kind: str, x: float, y: float, held: bool = False) -> None:
        """kind: Moved, Pressed or Released."""
        button = "none" if kind == "Moved" and not held else "left"
        self.send(
            "Input.dispatchMouseEvent",
            type=f"mouse{kind}",
            x=x,
            y=y,
            button=button,
            buttons=int(held or kind == "Pressed"),
            clickCount=int(kind != "Moved"),
        )

    def click(self, x: float, y: float) -> None:
        for kind in ("Moved", "Pressed", "Released"):
            self.mouse(kind, x, y)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("Moved", *start)
        self.mouse("Pressed", *start)
        for share in (0.3, 0.7, 1.0):
            x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
            self.mouse("Moved", x, y, held=True)
        self.mouse("Released", *end)

    def touch(self, *places: tuple[float, float]) -> None:
        """A finger that goes down at the first place, over the others, and up."""
        kinds = ["touchStart", *["touchMove"] * (len(places) - 1)]
        for kind, (x, y) in zip(kinds, places, strict=True):
            self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
            self.settle()
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def key(self, name: str) -> None:
        """Press and release a key."""
        code = _KEYS.get(name, ord(name[0]))
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code=name,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def screenshot(self, file: Path) -> Path:
        """The whole page as PNG."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))
        return file
