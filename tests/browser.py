"""A headless Chromium, which shows pages in frames and says what is to be seen."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--no-first-run", "--disable-background-networking"),
    *("--enable-logging=stderr", "--allow-file-access-from-files"),
    *("--virtual-time-budget=60000", "--dump-dom"),
)
LOOK = """<!DOCTYPE html><body><pre></pre><script>(async () => {
  const found = [];
  for (const [page, width] of PAGES) {
    const frame = document.createElement("iframe");
    Object.assign(frame, {src: page, width, height: 900, frameBorder: 0});
    document.body.append(frame);
    await new Promise(loaded => frame.onload = loaded);
    const shown = frame.contentDocument, view = frame.contentWindow;
    const fits = () => shown.scrollingElement.scrollWidth <= view.innerWidth;
    const all = selector => [...shown.querySelectorAll(selector)];
    const fits_closed = fits();
    all("details").forEach(each => each.open = true);
    const inner = shown.querySelector("iframe")?.contentDocument ?? shown;
    found.push({
      fits: fits_closed && fits(),
      pictures: all("img").every(i => i.complete && i.naturalWidth && i.alt),
      links: all("nav a").every(a => shown.querySelector(a.hash)),
      sections: inner.querySelectorAll("section").length,
      requests: view.performance.getEntriesByType("resource").map(each => each.name),
    });
    frame.remove();
  }
  document.querySelector("pre").textContent = JSON.stringify(found);
})()</script>"""


def look(folder: Path, pages: list[tuple[Path, int]]) -> tuple[list[dict], list[str]]:
    """Return what Chromium shows of pages, each in a width, and what its console says.

    ``fits``: nothing is wider than the window, also with all details open.
    """
    addresses = [(page.as_uri(), width) for page, width in pages]
    file = folder / "look.html"
    file.write_text(LOOK.replace("PAGES", json.dumps(addresses)), "utf-8")
    done = subprocess.run(
        [CHROMIUM, *OPTIONS, f"--user-data-dir={folder / 'profile'}", file.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    shown = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1]
    return json.loads(html.unescape(shown)), re.findall("CONSOLE.*", done.stderr)
