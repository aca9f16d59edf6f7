"""A page in headless Chromium: what it shows at each width, what it asks the network for, what its console says."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE_S = 60

# looks at the page through frames as wide as screens, and writes down what it sees
LOOK = """<!doctype html><meta charset=utf-8><link rel=icon href="data:,"><body><script>
const seen = [], widths = WIDTHS;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const cells = [...page.querySelectorAll("td")].map(td => ({
      table: [...page.querySelectorAll("table")].indexOf(td.closest("table")), row: td.parentElement.rowIndex,
      column: td.dataset.column, value: td.dataset.value ?? null, text: td.textContent }));
    seen.push({width, inner: root.clientWidth, needs: root.scrollWidth, cells, text: page.body.innerText,
      broken: [...page.images].filter(i => !i.complete || !i.naturalWidth).length,
      source: [...page.images].map(i => i.currentSrc.slice(-200))});
    if (seen.length == widths.length) {
      const out = document.createElement("pre");
      out.id = "seen"; out.textContent = JSON.stringify(seen); document.body.append(out);
    }
  };
  frame.src = "/page"; document.body.append(frame);
}
</script>"""


@dataclass(frozen=True)
class Look:
    seen: dict[int, dict[str, Any]]  # by width in pixels
    asked: list[str]  # paths that this machine's own server was asked for, but for the looking glass
    elsewhere: list[str]  # addresses of all other requests
    console: list[str]


def browser() -> str:
    """Its path; skips where there is none, and fails in CI."""
    found = os.environ.get("BATON_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium: apt-get install chromium")
        pytest.skip("no chromium: apt-get install chromium, or BATON_TEST_CHROMIUM=path")
    return found


def asked_by_page(event: str, address: str) -> list[str]:
    """The address of a request elsewhere, if this line of Chromium's log is of one that a page of ours made.

    Chromium asks for things of its own accord too, such as updates of itself; these have no initiator.
    """
    if f'"initiator":"{address}"' not in event:
        return []
    return [url for url in re.findall(r'"url":"([^"]+)"', event) if not url.startswith((address, "data:"))]


def look(page: bytes, widths: Sequence[int], *, dark: bool = False) -> Look:
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            glass = LOOK.replace("WIDTHS", json.dumps(list(widths))).encode()
            body = {"/": glass, "/page": page}.get(self.path)
            if self.path != "/":
                asked.append(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    with tempfile.TemporaryDirectory() as folder:
        net = Path(folder) / "net.json"
        options = [f"--user-data-dir={folder}/profile", f"--log-net-log={net}", "--enable-logging=stderr", "--dump-dom"]
        if dark:
            options.append("--blink-settings=preferredColorScheme=0")
        done = subprocess.run(
            [browser(), *FLAGS, *options, "--virtual-time-budget=20000", "--window-size=1400,1000", address + "/"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        events = net.read_text().splitlines()
    server.shutdown()
    server.server_close()
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return Look(
        seen={one["width"]: one for one in json.loads(html.unescape(found[1]))},
        asked=asked,
        elsewhere=sorted({url for event in events for url in asked_by_page(event, address)}),
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
    )
