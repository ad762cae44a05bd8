"""Open a page in headless Chromium and fail on a script error, a missing picture or a request to the network.

    python tests/browser/check_report.py runs/digits/report.html [--pictures 5] [--screenshot page.png]

A copy of the page gets a probe as its first script. It listens for errors, waits for the pictures and
leaves what it saw in an attribute of the document, which Chromium's --dump-dom prints. It comes before any
content security policy that the page's head sets, so that it runs under all of them.

Exit status: 0 when all is well, 1 for faults of the page, 2 when it could not be opened.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
)
MARK = "data-page-check"
WIDTH, MOST = 1280, 16_000  # pixels; more height than MOST is cut off in a screenshot

PROBE = """<script>
(() => {
  const seen = {errors: [], missing: [], outside: [], pictures: 0, height: 0};
  const name = (url) => String(url || "no address").slice(0, 200);
  addEventListener("error", (event) => {
    const element = event.target;
    if (event instanceof ErrorEvent) {
      seen.errors.push(`${event.message} (line ${event.lineno})`);
    } else if (element && !(element instanceof HTMLImageElement)) {
      const from = element.src || (element.href && element.href.baseVal) || element.href;
      seen.missing.push(`<${element.tagName.toLowerCase()}> ${name(from)}`);
    }
  }, true);
  addEventListener("unhandledrejection", (event) => {
    seen.errors.push(`unhandled rejection: ${event.reason}`);
  });
  addEventListener("securitypolicyviolation", (event) => {
    const what = `${event.violatedDirective} ${name(event.blockedURI)}`;
    seen.errors.push(`blocked by the page's own policy: ${what}`);
  });
  const after = (delay) => new Promise((done) => setTimeout(done, delay));
  const settled = (image) => image.complete || new Promise((done) => {
    for (const kind of ["load", "error"]) image.addEventListener(kind, done);
  });
  const report = () => {
    seen.height = document.documentElement.scrollHeight;
    document.documentElement.setAttribute("MARK", JSON.stringify(seen));
  };
  const eager = () => {
    for (const image of document.querySelectorAll("img[loading]")) image.loading = "eager";
  };
  document.addEventListener("DOMContentLoaded", eager);
  addEventListener("load", async () => {
    eager();
    await after(200);  // scripts that run on load come first
    const images = [...document.images];
    await Promise.all(images.map(settled));
    for (const image of images) {
      const shown = image.complete && image.naturalWidth > 0;
      if (!shown) seen.missing.push(`<img> ${name(image.currentSrc || image.src)}`);
    }
    seen.pictures = images.length + document.querySelectorAll("body svg, body canvas").length;
    for (const entry of performance.getEntriesByType("resource")) {
      if (/^(https?|wss?):/.test(entry.name)) seen.outside.push(name(entry.name));
    }
    report();
  });
})();
</script>""".replace("MARK", MARK)


class CannotOpen(Exception):
    """The page could not be opened at all."""


@dataclass
class Page:
    """What the browser saw: script errors, things that did not load, requests to the network."""

    errors: list[str]
    missing: list[str]
    outside: list[str]
    pictures: int
    height: int
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.faults = [
            *(f"script error: {text}" for text in self.errors),
            *(f"missing: {text}" for text in self.missing),
            *(f"asks the network for: {text}" for text in self.outside),
        ]


def browser() -> str | None:
    """The first Chromium on the path."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def run(arguments: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """One headless run with a profile of its own, ended with all its children."""
    program = browser()
    if program is None:
        raise CannotOpen(f"none of {', '.join(NAMES)} is installed (Debian: apt install chromium)")
    with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", *arguments]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise CannotOpen(f"{Path(program).name} was not done in {timeout:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def with_probe(text: str, folder: Path) -> str:
    """The page with the probe before all other scripts; relative addresses still mean its own folder."""
    base = "" if re.search(r"<base\s", text, re.IGNORECASE) else f'<base href="{folder.as_uri()}/">'
    insert = base + PROBE
    for tag in ("head", "html"):
        found = re.search(rf"<{tag}(\s[^>]*)?>", text, re.IGNORECASE)
        if found:
            return text[: found.end()] + insert + text[found.end() :]
    found = re.match(r"\s*<!doctype[^>]*>", text, re.IGNORECASE)
    end = found.end() if found else 0
    return text[:end] + insert + text[end:]


def check(page: Path, *, screenshot: Path | None = None, timeout: float = 120) -> Page:
    """Open `page`, wait for its scripts and pictures, and say what went wrong in it."""
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotOpen(f"{page} cannot be read: {error}") from None
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        copy = Path(folder) / "page.html"
        copy.write_text(with_probe(text, page.resolve().parent), encoding="utf-8")
        done = run(["--virtual-time-budget=20000", "--dump-dom", copy.as_uri()], timeout)
        found = re.search(rf'<html[^>]*\s{MARK}="([^"]*)"', done.stdout)
        if not found:
            last = "\n".join(done.stderr.splitlines()[-5:])
            raise CannotOpen(f"{page}: the probe did not report; the browser said:\n{last}")
        seen = Page(**json.loads(html.unescape(found[1])))
        if screenshot is not None:
            take(copy, screenshot, min(max(seen.height, 600), MOST), timeout)
    return seen


def take(page: Path, screenshot: Path, height: int, timeout: float) -> None:
    screenshot.parent.mkdir(parents=True, exist_ok=True)
    size = f"--window-size={WIDTH},{height}"
    target = f"--screenshot={screenshot.resolve()}"
    done = run([size, "--virtual-time-budget=20000", target, page.as_uri()], timeout)
    if not screenshot.is_file():
        raise CannotOpen(f"no screenshot was written; the browser said:\n{done.stderr[-500:]}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--pictures", type=int, default=0, help="at least so many must be in it")
    parser.add_argument("--screenshot", type=Path, help="write the whole page to this PNG")
    options = parser.parse_args(argv)
    try:
        seen = check(options.page, screenshot=options.screenshot)
    except CannotOpen as error:
        print(f"cannot open the page: {error}", file=sys.stderr)
        return 2
    faults = list(seen.faults)
    if seen.pictures < options.pictures:
        faults.append(f"{seen.pictures} pictures, at least {options.pictures} were expected")
    for fault in faults:
        print(f"{options.page}: {fault}", file=sys.stderr)
    if not faults:
        print(
            f"{options.page}: {seen.pictures} pictures, all shown, no script error, no request to the network"
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
