"""The study's page: what it says, that text from records is only text, and, in a real browser, that it works."""

import json
import re
import runpy
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from test_captions import run
from test_claims import CLAIMS, offline, timed
from test_plots import curve

from wsjax.errors import RunError
from wsjax.results import page, plots
from wsjax.results.claims import parts_of, verdicts
from wsjax.results.page import Shown
from wsjax.results.sheets import Sheet

ROOT = Path(__file__).resolve().parent.parent
NASTY = "<script>alert(1)</script>\x1b[31m\n\u202e"
GAP = {"optimizer": "sgd", "augment": False, "weight_decay": 0.0, "stem_pool": True}


def study():
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [0, 1])
    runs = [
        offline((0.60, 0.61, 0.59), (0.50, 0.51, 0.49), **GAP),
        run(timed(curve(NASTY, [0.5])), methods={NASTY: {"reinit": NASTY}}, experiment=NASTY),
    ]
    runs[1] = runs[1]._replace(folder=Path(NASTY))
    figures = [
        Shown("figure1", ["Figure 1: what.", NASTY], plots.png(figure, 160)),
        Shown("figure12", ["More."], plots.png(figure, 160)),
        Shown("table1", ["Table 1."], None, Sheet(["model", NASTY], [["MLP", "38.2"]])),
        Shown("board", ["Board."], plots.png(figure, 160), Sheet(["Method", "- RI"], [["SP", "+1.0"]])),
    ]
    return page.render(verdicts(CLAIMS, runs), figures, runs)


HTML = study()


class Elements(HTMLParser):
    """The tags with their attributes, and the text outside of scripts."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.inside = [], [], []
        self.feed(HTML)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text.append(data)


def test_the_page_is_one_file_that_needs_no_network():
    elements = Elements()
    for tag, attributes in elements.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    assert "@import" not in HTML
    assert "url(" not in HTML


def test_text_from_records_is_only_text():
    elements = Elements()
    assert [tag for tag, _ in elements.tags].count("script") == 1  # the page's own
    text = " ".join(elements.text)
    assert "<script>alert(1)</script>" in text
    assert "\x1b" not in HTML
    assert "\u202e" not in HTML


def test_every_picture_says_what_it_shows():
    pictures = [attributes for tag, attributes in Elements().tags if tag == "img"]
    assert len(pictures) == 3
    assert pictures[0]["alt"].startswith("Figure 1: what.")
    assert pictures[1]["alt"] == "Board."


def test_the_board_has_a_section_of_its_own():
    section = HTML[HTML.index('<h2 id="methods">') : HTML.index('<h2 id="figures">')]
    assert section.count("<figure") == 1
    assert '<figure id="board">' in section
    assert "+1.0" in section
    assert '<h2 id="methods">' not in page.render(verdicts(CLAIMS, []), [], [])


def test_the_same_runs_give_the_same_bytes():
    assert study() == HTML


def test_the_head_and_the_rows_say_what_the_verdicts_are():
    text = " ".join(" ".join(Elements().text).split())
    own = sum(claim["published"] == page.OWN for claim in CLAIMS)
    counts = (
        f"Of {len(CLAIMS) - own} claims of the report: 1 reproduced, {len(CLAIMS) - own - 1} not run; of {own} of our"
    )
    assert f"{counts} own: {own} not run. Each verdict holds at the scale" in text
    assert "below random initialisation, by SGD in rounds of a fixed length: yes. RI - WS = +10.0 points" in text
    assert "CIFAR-10, width 64, 50,000 images, 3 epochs, 3 seeds" in text


def test_the_numbers_as_csv():
    lines = page.numbers(verdicts(CLAIMS, [offline((0.6, 0.7), (0.5, 0.6), **GAP)])).splitlines()
    assert lines[0] == "claim,what,mean,low,high,seeds,unit,verdict,scale"
    assert lines[1].startswith("gap,RI - WS,10.0,10.0,10.0,")  # in points, as everywhere on the page
    assert lines[1].endswith('2,points,reproduced,"CIFAR-10, width 64, 50,000 images, 3 epochs, 2 seeds"')
    assert len(lines) == 2


def test_the_script_draws_what_is_there_and_says_what_cannot_be(tmp_path):
    source = ROOT / "figures" / "results" / "cifar10-resnet18-width8-5000"
    shutil.copytree(source, tmp_path / "offline" / "figure5")
    empty = tmp_path / "offline" / "figure9"
    empty.mkdir()
    shutil.copy(source / "config.json", empty)
    figures = {"figure5": ["offline/figure5", "offline/missing"], "figure1": ["offline/figure9"]}
    (tmp_path / "study.json").write_text(json.dumps(figures))
    write = runpy.run_path(str(ROOT / "figures" / "report.py"))["write"]
    text = write([tmp_path], tmp_path / "page.html").read_text()
    assert text.count("data:image/png") == 1
    assert "Not drawn: there are no epochs to draw yet" in text
    assert len(text) < 5e6
    with pytest.raises(RunError, match=r"there is no run in .*nothing: experiments/reproduce.py makes some"):
        write([tmp_path / "nothing"], tmp_path / "page.html")


def test_two_studies_with_the_same_figure_are_both_shown(tmp_path):
    source = ROOT / "figures" / "results" / "cifar10-resnet18-width8-5000"
    for study in ("one", "two"):
        shutil.copytree(source, tmp_path / study / "run")
        (tmp_path / study / "study.json").write_text(json.dumps({"figure5": ["run"], "board": ["run"]}))
    (tmp_path / "two" / "study.json").write_text(json.dumps({"figure1": ["run"], "figure5": ["run"], "board": ["run"]}))
    write = runpy.run_path(str(ROOT / "figures" / "report.py"))["write"]
    text = write([tmp_path / "one", tmp_path / "two"], tmp_path / "page.html").read_text()
    titles = re.findall('<figure id="(.*?)">\n<h3>(.*?)</h3>', text)
    assert sorted(titles) == [
        ("board-one", "Board (one)"), ("board-two", "Board (two)"), ("figure1", "Figure 1"),
        ("figure5-one", "Figure 5 (one)"), ("figure5-two", "Figure 5 (two)"),
    ]  # fmt: skip
    assert {link for link in re.findall('href="#(figure.*?)"', text)} <= {name for name, _ in titles}
    text = write([tmp_path, tmp_path / "one"], tmp_path / "page.html").read_text()  # one lies in the other
    assert len(re.findall("<figure id", text)) == 5


# --- In a browser ---

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """
<script>
const found = {errors: []}; addEventListener("error", event => found.errors.push(event.message));
</script>
"""
ACTIONS = """
<script>
const shown = () => claims().filter(claim => !claim.hidden).map(claim => claim.id);
const choose = value => { const list = document.getElementById("filter"); list.value = value;
  list.dispatchEvent(new Event("change")); };
found.all = shown().length;
choose("reproduced"); found.reproduced = shown(); choose("");
const button = table.tHead.querySelectorAll("button")[0];
button.click(); found.up = claims().map(claim => claim.rows[0].cells[0].textContent.trim()); 
found.sort = button.parentElement.getAttribute("aria-sort");
button.click(); found.down = claims().map(claim => claim.rows[0].cells[0].textContent.trim());
found.pictures = [...document.images].map(image => image.complete && image.naturalWidth > 0);
found.wide = document.documentElement.scrollWidth - innerWidth;
found.keys = [...document.querySelectorAll("button, select, summary")].every(part => part.tabIndex >= 0);
document.getElementById("csv").click();
document.title = JSON.stringify(found);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium here, to open the page in")
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_works_in_a_browser(tmp_path, width, dark):
    file = tmp_path / "page.html"
    file.write_text(HTML.replace("<head>", "<head>" + PROBE).replace("</body>", ACTIONS + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
             f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom"]  # fmt: skip
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([str(BROWSER), *flags, file.as_uri()], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    found = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["errors"] == []
    assert found["all"] == len(CLAIMS)
    assert found["reproduced"] == ["claim-gap"]
    assert found["up"] == sorted(found["up"], key=str.lower)
    assert found["up"] == found["down"][::-1]
    assert found["sort"] == "ascending"
    assert found["pictures"] == [True, True, True]
    assert found["wide"] <= 0  # nothing to scroll sideways for
    assert found["keys"]


def test_the_table_of_verdicts():
    runs = [offline((0.60, 0.61, 0.59), (0.50, 0.52, 0.49), **GAP)]
    sheet = page.verdict_table(verdicts(CLAIMS, runs))
    assert len(sheet.rows) == len(CLAIMS)
    first, second = sheet.rows[:2]
    assert first[:2] == [CLAIMS[0]["short"], "reproduced"]
    assert first[2].startswith("RI - WS = +9.7 points (")
    assert first[3] == CLAIMS[0]["published"]
    assert "3 seeds" in first[4]
    assert (second[1:3], second[4]) == (["not run", ""], "")
    (part,) = parts_of(CLAIMS[0])
    contradicted = {**CLAIMS[0], "parts": [part, {**part, "lies_in": [None, 0]}]}
    (row,) = page.verdict_table(verdicts([contradicted], runs)).rows
    assert re.fullmatch(r"(RI - WS = \+9\.7 points \(\S+ to \S+\)(; |$)){2}", row[2])
    assert row[1] == "not reproduced"
    more = {**CLAIMS[0], "parts": [part] * 5 + [{**part, "runs": [{**part["runs"][0], "dataset": "none"}]}]}
    (row,) = page.verdict_table(verdicts([more], runs)).rows
    assert row[2] == "5 parts, +9.7 to +9.7 points, +9.7 in the mean: 5 reproduced; 1 more not run"
    (row,) = page.verdict_table(verdicts([{**more, "together": True}], runs)).rows
    assert row[2] == "5 parts, +9.7 to +9.7 points, +9.7 in the mean: 5 within the range, 0 outside; 1 more not run"


def test_what_a_wider_network_leaves_open_stands_below_what_a_narrower_one_decides():
    wide = offline((0.6, 0.7), (0.5, 0.7), **GAP)
    narrow = offline((0.60, 0.61, 0.59), (0.50, 0.51, 0.49), **GAP, width=16)
    found = verdicts(CLAIMS[:1], [wide, narrow])
    (first, second) = page.verdict_table(found).rows
    assert (first[1], second[:2]) == ("reproduced", ["The same, wider", "undecided"])
    assert ("width 16" in first[4], "width 64" in second[4]) == (True, True)
    assert [line.partition(",")[0] for line in page.numbers(found).splitlines()] == ["claim", "gap", "gap-wider"]
    elements = page.render(found, [], [wide, narrow])
    assert elements.count("The same, wider") == 1


def test_the_interval_that_is_told_is_the_one_that_decides():
    parts = [offline((0.6, 0.63), (0.5, 0.51), **GAP), offline((0.6, 0.63), (0.5, 0.51), **GAP)]
    parts[1].config["config"]["seeds"] = [2, 3]
    parts[1].rows[:] = [row | {"seed": row["seed"] + 2} for row in parts[1].rows]
    (gap, *_) = verdicts(CLAIMS, parts)
    assert gap.scale.endswith("4 seeds in 2 looks")
    (estimate,) = gap.estimates
    low, high = estimate.interval
    assert low < estimate.low < estimate.high < high
    assert page.measured(estimate).endswith(f"({100 * low:+.1f} to {100 * high:+.1f})")
    small = estimate._replace(mean=0.0004, low=0.0001, high=0.0007)
    assert page.measured(small._replace(looks=1)) == "RI - WS = +0.04 points (+0.01 to +0.07)"
    assert f",{100 * low:.10g}"[:8] in page.numbers([gap])
