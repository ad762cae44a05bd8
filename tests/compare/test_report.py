"""The report of a comparison: files, verdicts, tables, and a page that holds everything and runs nothing."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from genkit.compare.numbers import conditional
from genkit.compare.report import (
    headline,
    main_rows,
    markdown,
    perplexity_rows,
    print_evaluation,
    print_table,
    protocol_rows,
    shape,
    unmasker_rows,
    write_report,
)
from genkit.errors import GenkitError
from tests.compare.test_figures import (
    image_report,
    plane_report,
    save_samples,
    save_sounds,
    sound_report,
    text_report,
)

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page's tags with their attributes, its text, and whether its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw = text
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Report, folder and page of images, of points on the plane (three seeds), text and sound: each written once."""
    made = {}
    reports = {
        "image": image_report(1),
        "plane": plane_report(3),
        "text": text_report(),
        "sound": sound_report(),
    }
    for kind, report in reports.items():
        out = tmp_path_factory.mktemp(kind)
        if kind == "sound":
            save_sounds(report, out)
        elif kind != "text":
            save_samples(report, out)
        made[kind] = report, out, Page(write_report(report, out).read_text(encoding="utf-8"))
    return made


@pytest.fixture
def unillustrated(monkeypatch):
    """Reports without figures, which take most of the time."""
    monkeypatch.setattr("genkit.compare.report.save_figures", lambda report, out: {})


# --- files --------------------------------------------------------------------------------------------


ALL = ["image", "plane", "text", "sound"]
DRAWN = {
    "image": {"samples"},
    "plane": {"density", "trajectories"},
    "text": {"perplexity", "unmasking"},
    "sound": set(),
}


@pytest.mark.parametrize("which", ALL)
def test_files_are_written_and_json_reads_back(written, which):
    report, out, _ = written[which]
    assert json.loads((out / "report.json").read_text()) == report
    assert (out / "table.md").read_text() == markdown(report)
    kind = DRAWN[which]
    assert {p.name for p in (out / "figures").iterdir()} == {
        f"{name}.png" for name in kind | {"quality", "curves", "bits_per_dim"}
    }
    assert not list(out.rglob("*.tmp"))


def test_numbers_that_json_lacks_become_null(tmp_path, unillustrated):
    report = image_report()
    report["arms"]["fm-ot"]["runs"][0]["points"][0]["frechet"] = math.nan
    write_report(report, tmp_path)
    held = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert held["arms"]["fm-ot"]["runs"][0]["points"][0]["frechet"] is None


def test_report_without_sample_files_still_comes(tmp_path):
    page = Page(write_report(image_report(), tmp_path).read_text())
    assert len(page.all("img")) == 3
    assert "Samples" not in page.text.split("Likelihood")[0]


def test_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(GenkitError, match="cannot write .*file/out"):
        write_report(image_report(), tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "kept"


def test_second_report_takes_the_place_of_the_first(tmp_path, unillustrated):
    write_report(image_report(), tmp_path)
    report = image_report() | {"name": "second"}
    assert "second" in write_report(report, tmp_path).read_text()


# --- what the numbers say -----------------------------------------------------------------------------


def test_headline_names_the_best_at_each_number_of_evaluations():
    best = "Lowest Fréchet distance: fm-distilled at 1 and 2 network evaluations; "
    assert headline(image_report()) == f"{best}fm-ot at 4, 8, 16 and 32."
    level = "fm-ot at 4, 8 and 16; fm-ot or fm-independent at 32."
    assert headline(image_report(3)) == best + level


def test_one_seed_does_not_decide_small_differences():
    report = image_report()
    report["arms"]["fm-independent"]["runs"][0]["points"][0]["frechet"] = 57.0
    assert "fm-distilled or fm-independent at 1 network evaluation; " in headline(report)
    quality, _ = main_rows(report)
    assert quality.arms["fm-distilled"][0].best
    assert quality.arms["fm-independent"][0].best
    assert not quality.arms["fm-ot"][0].best


def test_one_arm_has_no_headline(tmp_path, unillustrated):
    report = image_report()
    report["arms"] = {"nf": report["arms"]["nf"]}
    assert headline(report).startswith("No two arms")
    assert "No two arms" in Page(write_report(report, tmp_path).read_text()).text


# --- tables -------------------------------------------------------------------------------------------


def test_main_table_holds_quality_likelihood_and_cost():
    quality, rest = main_rows(image_report())
    assert quality.heads == ["1", "2", "4", "8", "16", "32", "64"]
    assert rest.heads == ["bits/dim (kind)", "train tokens", "train s", "curvature"]
    cells = [str(cell) for cell in quality.arms["fm-distilled"] + rest.arms["fm-distilled"]]
    assert cells == ["55.0", "53.0", "42.0", "37.0", "36.0", "35.6", "–", "–", "6.14 M", "186", "0.021"]
    assert str(rest.arms["nf"][0]) == "1.930 ± 0.020 (bound)"
    assert [cell.best for cell in quality.arms["fm-ot"]] == [False] * 2 + [True] * 4 + [False]


def test_likelihoods_of_conditional_arms_say_so():
    """p(x|y) and p(x) stand in one column, and in the protocol."""
    report = image_report()
    report["arms"]["nf"]["runs"][0]["bits_per_dim"]["given"] = "y"
    report["arms"]["nf"]["conditional"], report["arms"]["fm-ot"]["conditional"] = True, False
    _, rest = main_rows(report)
    assert str(rest.arms["nf"][0]) == "1.930 ± 0.020 (bound, given y)"
    assert str(rest.arms["fm-ot"][0]) == "1.900 ± 0.020 (estimate)"
    protocol = protocol_rows(report)
    place = protocol.heads.index("given")
    assert [protocol.arms[name][place].text for name in ("nf", "fm-ot")] == ["y", "–"]


def test_level_arms_are_both_bold():
    quality, _ = main_rows(image_report(3))
    assert quality.arms["fm-ot"][5].best
    assert quality.arms["fm-independent"][5].best
    assert not quality.arms["fm-independent"][0].best
    assert str(quality.arms["fm-ot"][0]) == "371 ± 20"


def test_markdown_is_a_table_of_equal_rows():
    report = image_report(3)
    report["arms"]["a|b*<i>"] = report["arms"]["fm-ot"]
    lines = [line for line in markdown(report).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(report["arms"])
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "a\\|b\\*&lt;i&gt;" in lines[-1]


def test_printed_table_says_where_the_report_is(capsys):
    report = image_report()
    report["arms"]["[red]x"] = report["arms"]["nf"]
    console = Console(file=io.StringIO(), width=80)
    print_table(report, "runs/digits/report.html", console=console)
    text = console.file.getvalue()
    assert "report: runs/digits/report.html" in text
    assert "[red]x" in text
    for cell in ("2,023", "55.0", "6.14 M", "1.930 ± 0.020"):
        assert cell in text
    assert "fm-distilled at 1 and 2 network evaluations" in " ".join(text.split())
    print_table(report)
    assert "fm-distilled" in capsys.readouterr().out


def test_evaluation_of_one_run_is_printed():
    result = image_report()["arms"]["fm-ot"]["runs"][0]
    console = Console(file=io.StringIO(), width=80)
    print_evaluation("[b]fm-ot", result, console=console)
    text = console.file.getvalue()
    for part in (
        "Samples of [b]fm-ot",
        "network evaluations",
        "sliced wasserstein",
        "370",
        "12.6",
        "bits/dim 1.900 ± 0.020 (estimate)",
        "curvature 0.110",
    ):
        assert part in text
    del result["points"][1:], result["bits_per_dim"]
    result["points"][0] = {"nfe": 64, "steps": None, "seconds": 1.0, "tokens": 16.0}
    print_evaluation("nf", result | {"curvature": None}, console=console)
    assert console.file.getvalue().count("bits/dim") == 1


def test_tables_are_whole_at_80_characters():
    """Columns that do not fit stand below; no cell is cut or folded."""
    report = image_report(3)
    report["arms"]["fm-independent"]["runs"][0]["points"][0]["seconds"] = 12345.678
    console = Console(file=io.StringIO(), width=80)
    print_table(report, console=console)
    print_evaluation("fm-ot", report["arms"]["fm-ot"]["runs"][0], console=console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for rows in main_rows(report):
        for cells in rows.arms.values():
            assert all(str(cell) in text for cell in cells)


def test_verdicts_stand_on_the_page_escaped(tmp_path, unillustrated):
    """Of each entry the paper's figure, ours, what was measured and the verdict; of a miss its cause."""
    assert 'id="paper"' not in write_report(image_report(), tmp_path).read_text()
    entries = [
        {"name": "<b>few</b>", "metric": "frechet", "arm": "fm-ot", "steps": 8, "paper": 6.41, "ours": 1.5,
         "tolerance": 0.25, "seeds": 2, "protocol": "<i>360</i> samples", "verdict": "holds",
         "measured": [{"mean": 1.625, "spread": 0.125, "seeds": 2}]},
        {"name": "order", "metric": "curvature", "claim": "fm-ot < <u>nf</u>", "ours": "does not hold", "seeds": 1,
         "paper": "0.0181 < 0.0289", "note": "<script>x()</script>", "verdict": "does not hold",
         "measured": [{"mean": 0.25, "spread": None, "seeds": 1}, {"mean": 0.125, "spread": None, "seeds": 1}]},
    ]  # fmt: skip
    paper = {"title": "<em>Pairs</em>", "link": "https://example.org/<p>", "claim": "one <s>step</s>"}
    page = Page(write_report(image_report() | {"paper": paper, "expected": entries}, tmp_path).read_text())
    for text in (
        "<em>Pairs</em> https://example.org/<p> one <s>step</s>",
        "<b>few</b> holds 1.62 ± 0.12 1.50 ± 0.250 6.41",
        "order does not hold 0.250, 0.125 fm-ot < <u>nf</u>here does not hold 0.0181 < 0.0289",
        "order<script>x()</script>",
        "Fréchet distance of fm-ot at 8 steps; <i>360</i> samples; 2 seeds",
        "Curvature; 1 seed",
    ):
        assert text in page.text, text
    assert not {"script", "em", "s", "u"} & {tag for tag, _ in page.tags}


# --- the page -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ALL)
def test_page_asks_for_nothing_and_runs_nothing(written, which):
    page = written[which][2]
    assert not page.all("script")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            if name in attributes:
                assert attributes[name].startswith("data:" if tag in ("img", "link", "audio") else "#")


@pytest.mark.parametrize("which", ALL)
def test_pictures_are_inlined_with_words_for_them(written, which):
    _, out, page = written[which]
    pictures = page.all("img")
    assert len(pictures) == len(list((out / "figures").iterdir()))
    for picture in pictures:
        content = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"))
        image = Image.open(io.BytesIO(content))
        assert (image.width // 2, image.height // 2) == (int(picture["width"]), int(picture["height"]))
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10  # not blank
        assert len(picture["alt"]) > 20


@pytest.mark.parametrize("which", ALL)
def test_links_lead_somewhere(written, which):
    page = written[which][2]
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {link["href"][1:] for link in page.all("a")} <= targets


def test_page_says_the_protocol_and_the_costs(written):
    report, _, page = written["image"]
    for text in (
        headline(report),
        report["data"]["hash"],
        report["evaluation"]["extractor_hash"],
        "670,080",
        "x86_64, 2 threads, torch 2.13.0",
        "same discrete test data",
        "bound",
        "estimate",
        "transport cost",
        "test set",
        "1,437",
    ):
        assert text in page.text, text


def test_plane_has_densities_and_no_frechet(written):
    page = written["plane"][2]
    assert "Fréchet" not in page.text
    assert "densities of the same real-valued test data" in page.text
    assert "discrete" not in page.text
    assert "points in 2 dimensions" in page.text


def test_text_is_shown_as_it_is_beside_real_text(written):
    page = written["text"][2]
    assert "bits/dim" not in page.text
    assert "text in rows of 128 characters, 96 different ones" in page.text
    assert "autoregressive <i>& co" in page.text
    assert page.raw.count("<pre>\n") == 3 * (
        1 + 1 + 3 + 3
    )  # real text, one shot, three numbers of steps twice
    assert "<pre>\nThe real\n  text.</pre>" in page.raw
    assert page.text.index("The real") < page.text.index("masked <i>& co")


def test_perplexity_is_shown_beside_entropy_only(written):
    report, out, page = written["text"]
    rows = perplexity_rows(report)
    cells = [cell for row in [*rows.arms.values(), rows.real] for cell in row if cell.text != "–"]
    assert len(cells) == 1 + 3 + 3 + 3
    assert all(cell.note.startswith("entropy ") for cell in cells)
    assert [str(cell) for cell in rows.real] == ["5.90 entropy 2.81"] * 3
    for text in ("Generative perplexity, scored by autoregressive", "5.90", "entropy 2.81"):
        assert text in page.text
        assert text in (out / "table.md").read_text()
    assert "ppl 13.2, entropy 1.27" in unmasker_rows(report)["masked"].arms["ancestral"][0].note
    assert not [m for m in page.all("h3") if "Sample entropy" in m]
    console = Console(file=io.StringIO(), width=80)
    print_table(report, console=console)
    assert "5.90 entropy 2.81" in console.file.getvalue()


def test_a_headline_of_text_says_who_gives_it_the_highest_likelihood():
    report = text_report()
    assert headline(report).endswith(" Lowest bits/char: autoregressive at 2.30.")
    report["arms"]["masked"]["runs"][0]["bits_per_dim"]["value"] = 2.38
    assert headline(report).endswith(" Lowest bits/char: autoregressive or masked at 2.30.")
    report["arms"]["masked"]["runs"][0]["bits_per_dim"]["given"] = "y"
    assert "bits/char" not in headline(report)


def test_unmaskers_are_printed_for_one_run():
    console = Console(file=io.StringIO(), width=100)
    report = text_report()
    result = report["arms"]["masked"]["runs"][0] | {"floor": report["floor"]}
    print_evaluation("masked", result, console=console)
    text = console.file.getvalue()
    for words in ("Samples of masked by entropy", "bound 0.2", "bits/char 2.500 ± 0.020 (estimate)"):
        assert words in text
    assert text.count("real data") == 3
    assert len(re.findall(r"generative perplexity.* 5\.90 *\n", text)) == 3


def test_sounds_have_players(written):
    page = written["sound"][2]
    players = page.all("audio")
    assert len(players) == 3 * (1 + 1 + 3 * 3)  # real, one shot, first, middle and last of three arms
    assert all("controls" in player for player in players)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "media-src data:" in policy
    content = base64.b64decode(players[-1]["src"].removeprefix("data:audio/wav;base64,"))
    with wave.open(io.BytesIO(content)) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (4000, 64)
        levels = np.frombuffer(sound.readframes(64), "<i2") / 2**15
    assert np.abs(levels - 0.5 * np.sin(np.arange(128, 192) / 3)).max() < 1e-4
    assert "sounds of 0.016 s at 4 kHz, 2 classes" in page.text
    assert page.text.count("C D C") == len(players) / 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"shape": [64], "levels": 256, "text": "bytes"}, "text in rows of 64 bytes, 256 different ones"),
        (
            {"shape": [64], "levels": 5000, "text": "subwords", "characters": 3.14},
            "text in rows of 64 subwords, 5,000 different ones, of 3.14 characters each",
        ),
        ({"shape": [5120], "levels": None, "rate": 8000}, "sounds of 0.640 s at 8 kHz"),
        ({"shape": [256], "levels": 256, "rate": 4000}, "sounds of 0.064 s at 4 kHz, of 256 levels"),
        ({"shape": [3, 32, 32], "levels": 256}, "32 × 32 images in 3 channels of 256 levels"),
    ],
)
def test_data_in_words(data, words):
    assert shape(data) == words


def test_whatever_comes_from_outside_is_escaped(tmp_path):
    evil = "<script>alert('\"x\"')</script>&${body}"
    report = image_report()
    arms = {f"{evil}{i}": copy.deepcopy(arm) for i, arm in enumerate(report["arms"].values())}
    for arm in arms.values():
        arm |= {"objective": evil, "coupling": evil, "teacher": evil}
        for run in arm["runs"]:
            run["bits_per_dim"] = {"value": 1.0, "stderr": None, "kind": evil}
            run["points"][0][evil] = 1.0
    report |= {"name": evil, "arms": arms, "machine": {"device": evil, "threads": evil, "torch": evil}}
    report["data"] |= {"name": evil, "hash": evil, "class_names": [evil] * 10}
    report["evaluation"] |= {
        "solver": evil,
        "guidance": {evil: evil},
        "extractor": evil,
        "extractor_hash": evil,
    }
    save_samples(report, tmp_path)
    text = write_report(report, tmp_path).read_text()
    assert "<script" not in text
    page = Page(text)
    assert not page.all("script")
    assert page.text.count("<script>alert(") > 20
    assert "<script" not in (tmp_path / "table.md").read_text()


def test_names_of_classes_and_texts_of_samples_are_escaped(tmp_path, unillustrated):
    evil = "</pre></label><script>alert('\"x\"')</script><img src=x onerror=alert(1)>"
    sounds, text = sound_report(), text_report()
    sounds["data"]["class_names"] = [evil, evil]
    save_sounds(sounds, tmp_path)
    for arm in text["arms"].values():
        for run in arm["runs"]:
            run["texts"] = {key: [evil] * len(texts) for key, texts in run["texts"].items()}
    text["data"]["texts"] = [evil]
    for report in (sounds, text):
        page = Page(write_report(report, tmp_path).read_text())
        assert not page.all("script")
        assert not page.all("img")
        assert page.text.count("</label><script>alert(") > 5


def test_columns_are_classes_of_conditional_arms_only():
    report = image_report()
    assert conditional(report)
    report["arms"]["fm-ot"]["conditional"] = False
    assert not conditional(report)
    assert not conditional(plane_report())
    report = image_report()
    report["data"]["in_turn"] = False  # some class is rare
    assert not conditional(report)


def test_guidance_with_options_and_missing_words_do_not_break_the_page(tmp_path, unillustrated):
    report = image_report()
    report["evaluation"] |= {"guidance": {"name": "classifier_free", "scale": 1.5}}
    report["data"] |= {"class_names": [], "classes": None}
    report["floor"] = {}
    text = Page(write_report(report, tmp_path).read_text()).text
    assert "classifier_free" in text
    assert "10.2" not in text
