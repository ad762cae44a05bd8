"""The browser check itself: it passes a good page and catches each fault it is there for."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import check_report

needs_browser = pytest.mark.skipif(check_report.browser() is None, reason="Chromium is not installed")


def png(colour: str = "teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def inline(data: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}" alt="">'


def write(folder: Path, body: str, head: str = "") -> Path:
    page = folder / "report.html"
    page.write_text(
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'>{head}</head><body>{body}</body></html>"
    )
    return page


@needs_browser
@pytest.mark.browser
def test_good_page(tmp_path, capsys):
    """Pictures inline, beside the page, below the fold and folded away; a script; a chart; no fault."""
    (tmp_path / "beside.png").write_bytes(png())
    body = f"""
        <h1>α = 1 &amp; "all well"</h1>{inline(png())}<img src="beside.png">
        <details><summary>more</summary>{inline(png("red"))}</details>
        <svg width="10" height="10"><circle r="3"/></svg>
        <div style="height: 3000px"></div><img src="beside.png?late" loading="lazy">
        <script>document.querySelector("h1").title = [1, 2].map((x) => x * 2).join("<");</script>
    """
    page = write(tmp_path, body)
    before = page.read_bytes()
    shot = tmp_path / "shots" / "page.png"
    assert check_report.main([str(page), "--pictures", "5", "--screenshot", str(shot)]) == 0
    assert "5 pictures, all shown" in capsys.readouterr().out
    assert page.read_bytes() == before
    width, height = Image.open(shot).size
    assert width == check_report.WIDTH
    assert height > 3000


@needs_browser
@pytest.mark.browser
def test_faults_of_scripts_and_pictures(tmp_path):
    """Each of them on one page, each in its own words; pictures that are there are not blamed."""
    (tmp_path / "broken.png").write_bytes(png()[:20])
    (tmp_path / "fine.png").write_bytes(png())
    page = write(
        tmp_path,
        f"""
        <script>undefined_function();</script>
        <script>let = broken syntax</script>
        <script>setTimeout(() => {{ throw new Error("late error"); }}, 50);</script>
        <script>Promise.reject(new Error("nobody listens"));</script>
        <script src="gone.js"></script>
        <img src="gone.png"><img src="broken.png"><img src="fine.png">{inline(b"no picture")}
        """,
        head='<link rel="stylesheet" href="gone.css">',
    )
    seen = check_report.check(page)
    faults = "\n".join(seen.faults)
    for part in ("undefined_function", "SyntaxError", "late error", "nobody listens"):
        assert f"{part}" in faults
    for part in ("gone.png", "broken.png", "gone.js", "gone.css", "<img> data:image/png"):
        assert any(fault.startswith("missing:") and part in fault for fault in seen.faults)
    assert "fine.png" not in faults
    assert len(seen.errors) == 4
    assert len(seen.missing) == 5


@needs_browser
@pytest.mark.browser
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<script>nothing.here()</script>", "script error: Uncaught ReferenceError: nothing is not defined"),
        ("<img src='gone.png'>", "missing: <img> file:"),
        ("<img src='http://localhost:9/x.png'>", "asks the network for: http://localhost:9/x.png"),
        ("<p>no pictures</p>", "0 pictures, at least 1 were expected"),
    ],
)
def test_one_fault_is_enough(tmp_path, capsys, body, words):
    assert check_report.main([str(write(tmp_path, body)), "--pictures", str(int("no pic" in body))]) == 1
    assert words in capsys.readouterr().err


@needs_browser
@pytest.mark.browser
def test_page_with_a_policy_of_its_own(tmp_path):
    """A page may forbid all scripts: the probe runs even so, and a script of the page is a fault."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    big = io.BytesIO()
    Image.effect_noise((900, 700), 80).save(big, "PNG")
    body = "".join(inline(big.getvalue()) + "<p>text</p>" * 50 for _ in range(4))
    seen = check_report.check(write(tmp_path, body, head))
    assert not seen.faults
    assert seen.pictures == 4
    faults = "\n".join(
        check_report.check(write(tmp_path, "<script>1</script><img src='x.png'>", head)).faults
    )
    assert "blocked by the page's own policy: script-src" in faults
    assert "missing: <img> x.png" in faults


@needs_browser
@pytest.mark.browser
def test_page_that_forbids_the_probe_is_not_called_good(tmp_path, capsys):
    policy = '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'">'
    page = tmp_path / "report.html"
    page.write_text(f"<html>{policy}<head></head></html>")
    assert check_report.main([str(page)]) == 2
    assert "the probe did not report" in capsys.readouterr().err


def test_missing_page(tmp_path, capsys):
    assert check_report.main([str(tmp_path / "none.html")]) == 2
    assert "none.html cannot be read" in capsys.readouterr().err


def test_missing_browser(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check_report, "NAMES", ("no-such-browser",))
    assert check_report.main([str(write(tmp_path, ""))]) == 2
    assert "none of no-such-browser is installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("<!doctype html><html><head><title>x", "<!doctype html><html><head><base "),
        ("<html lang='en'><body><header>x", "<html lang='en'><base "),
        ("<!DOCTYPE html>\n<p>x", "<!DOCTYPE html><base "),
        ("<p>x", "<base "),
        ("<head><base href='/x/'></head>", "<head><script>"),
    ],
)
def test_probe_comes_first(tmp_path, text, start):
    found = check_report.with_probe(text, tmp_path)
    assert found.startswith(start)
    assert found.index("<script>") <= len(start) + len(tmp_path.as_uri()) + 20
