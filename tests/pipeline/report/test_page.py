"""The page in a real Chromium, from disk and without a network."""

import base64
import json
import re
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no Chromium with chromedriver here: apt-get install chromium chromium-driver",
)
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1800",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield driver
    driver.quit()


def visit(browser, path: Path, scheme: str = "light") -> None:
    """Open a page and wait until its plots are drawn."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get_log("browser")
    browser.get(path.as_uri())
    until(lambda: "drawn" in browser.find_element("tag name", "body").get_attribute("class"))
    assert browser.get_log("browser") == [], "the console stays empty"


def until(true, patience_s: float = 60.0) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def report(labelled, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "out"
    shutil.copytree(labelled, out)
    assert main(["stats", str(out)]) == 0
    return out / "report/index.html"


def test_one_file_that_asks_for_nothing_else(report):
    assert [p.name for p in report.parent.iterdir()] == ["index.html"]
    html = report.read_text()
    own = html[: html.index("<script>")] + html[html.rindex("<script>") :]  # but plotly's own text
    assert not re.search(r"(src|href)=\"(?!data:)", own) and "http" not in own
    assert report.stat().st_size < 16 << 20


@needs_chromium
class TestInChromium:
    def test_every_plot_is_drawn_with_titles_and_units(self, browser, report):
        visit(browser, report)
        plots = browser.execute_script(
            "return [...document.querySelectorAll('.plot')].map(p => ({id: p.id, marks: p.querySelectorAll("
            "'.point, .js-line, .hm image, .heatmaplayer image').length, x: p._fullLayout.xaxis.title.text, "
            "y: p._fullLayout.yaxis.title.text, title: p.parentNode.querySelector('h3').textContent}))"
        )
        assert len(plots) >= 16
        for plot in plots:
            assert plot["marks"] and plot["x"] and plot["y"] and plot["title"], plot
        assert {"Code use", "CQT mean by pitch", "Loudness against silence", "Throughput by stage"} <= {
            plot["title"] for plot in plots
        }

    def test_pictures_are_there_and_differ(self, browser, report):
        visit(browser, report)
        pictures = browser.execute_script(
            "return [...document.images].map(i => [i.className, i.complete && i.naturalWidth, "
            "i.naturalHeight, i.src])"
        )
        rows = browser.execute_script("return document.querySelectorAll('#listen tbody tr').length")
        for kind in ("wave", "cqt", "codes"):
            own = [p for p in pictures if p[0] == kind]
            assert len(own) == rows and all(width >= 100 and height >= 3 for _, width, height, _ in own)
            assert len({src for *_, src in own}) > rows // 2

    def test_the_players_sound_decodes_to_the_segment(self, browser, report):
        visit(browser, report)
        found = browser.execute_async_script("""
            const done = arguments[0], row = document.querySelector('#listen tbody tr');
            fetch(row.querySelector('audio').src).then(r => r.arrayBuffer())
              .then(b => new OfflineAudioContext(1, 1, 24000).decodeAudioData(b))
              .then(a => { const x = a.getChannelData(0);
                done([a.duration, Math.max(...x.slice(0, 100000)), row.cells[1].textContent]); })
              .catch(e => done(String(e)))""")
        assert isinstance(found, list), found
        duration_s, peak, cell = found
        assert (
            duration_s == pytest.approx(float(re.search(r"([\d.]+) s$", cell.strip()).group(1)), abs=0.2)
            and peak > 0.01
        )

    def test_it_plays(self, browser, report):
        from selenium.webdriver import ActionChains

        visit(browser, report)
        player = browser.find_element("css selector", "audio")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", player)
        ActionChains(browser).move_to_element_with_offset(
            player, 20 - player.size["width"] // 2, 0
        ).click().perform()
        until(
            lambda: browser.execute_script(
                "const a = document.querySelector('audio'); return a.currentTime > 0.1 && !a.error"
            )
        )

    def test_a_click_on_a_head_sorts_by_number_and_another_turns_it(self, browser, report):
        visit(browser, report)
        head = next(h for h in browser.find_elements("css selector", "#listen th") if h.text == "LUFS")

        def shown() -> list[float]:
            at = browser.execute_script("return arguments[0].cellIndex", head)
            return [
                float(v)
                for v in browser.execute_script(
                    "return [...document.querySelectorAll('#listen tbody tr')].map("
                    "r => r.cells[arguments[0]].dataset.sort)",
                    at,
                )
            ]

        before = shown()
        head.click()
        assert shown() == sorted(before) and len(set(before)) > 2
        head.click()
        assert shown() == sorted(before, reverse=True)

    def test_a_table_is_sorted_by_the_value_and_not_by_its_text(self, browser, report):
        """1,000 KiB are fewer bytes than 1 MiB, and a name of digits is no number."""
        visit(browser, report)
        head, values, order = browser.execute_script(
            "const table = document.querySelector('table'), heads = [...table.rows[0].cells]; "
            "const at = heads.findIndex(head => head.textContent === 'size'); "
            "const cells = () => [...table.tBodies[0].rows].map(row => row.cells[at].dataset.sort); "
            "const values = cells(); heads[at].click(); "
            "return [heads[at].className, values, cells()]"
        )
        sizes = [sum(p.stat().st_size for p in (report.parents[1] / "columns").glob(f"{kind}*/*.tar"))
                 for kind in ("audio", "codes", "cqt")]  # fmt: skip
        assert head == "number" and list(map(int, values)) == sizes
        assert list(map(int, order)) == sorted(sizes) != sizes
        names = ["444e84", "5e1", "60", "7"]
        found = browser.execute_script(
            "const body = document.querySelector('table').tBodies[0], rows = [...body.rows]; "
            "for (const name of arguments[0]) { const row = rows[0].cloneNode(true); "
            "row.cells[0].dataset.sort = name; body.append(row); } rows.forEach(row => row.remove()); "
            "document.querySelector('table th').click(); "
            "return [...body.rows].map(row => row.cells[0].dataset.sort)",
            names[::-1],
        )
        assert found == names

    def test_light_and_dark_can_be_read(self, browser, report):
        contrasts = {}
        for scheme in ("light", "dark"):
            visit(browser, report, scheme)
            ink, paper, plot = browser.execute_script(
                "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor, "
                "getComputedStyle(document.querySelector('.plot .xtick text')).fill]"
            )
            contrasts[scheme] = (luminance(ink), luminance(paper), luminance(plot))
            assert (
                abs(luminance(ink) - luminance(paper)) > 150 and abs(luminance(plot) - luminance(paper)) > 150
            )
        assert contrasts["light"][1] > 200 > 60 > contrasts["dark"][1]
        picture = base64.b64decode(browser.get_screenshot_as_base64())
        assert len(picture) > 20_000, "something is on the screen"

    def test_a_training_runs_page(self, browser, tmp_path):
        from tests.pipeline.report.test_training import write

        run = write(tmp_path / "run", 100, restarts=(50, 80))
        assert main(["stats", str(run)]) == 0
        visit(browser, run / "report/index.html")
        marks = browser.execute_script(
            "return document.querySelector('.plot').querySelectorAll('.shapelayer path').length"
        )
        lines = browser.execute_script("return document.querySelectorAll('.plot .js-line').length")
        assert marks == 2 and lines > 10


NAME = "</script><!--<script>alert(1)&amp;<b>.flac"


def test_no_name_ends_the_embedded_figures(report, tmp_path):
    """All that is between the tags is JSON without < > &, whatever the files are called."""
    out = renamed_files(report.parents[1], tmp_path)
    text = re.search(
        r'id="figures">(.*?)</script>', (out / "report/index.html").read_text(), re.DOTALL
    ).group(1)
    assert not set("<>&") & set(text) and "\\u003c!--\\u003cscript" in text
    assert any(NAME.split("/")[-1] in name for name in json.loads(text)[0]["data"][0]["text"])


def renamed_files(labelled: Path, tmp_path: Path) -> Path:
    """A copy whose place and recordings have a name that would end a script element."""
    out = tmp_path / "a<" / "script>"
    shutil.copytree(labelled, out)
    plan = pq.read_table(out / "plan.parquet")
    paths = pa.array([f"/music/{number}{NAME}" for number in range(plan.num_rows)])
    pq.write_table(plan.set_column(plan.column_names.index("path"), "path", paths), out / "plan.parquet")
    assert main(["stats", str(out)]) == 0
    return out


@needs_chromium
class TestNamesThatLookLikeMarkup:
    def test_of_recordings(self, browser, report, tmp_path):
        out = renamed_files(report.parents[1], tmp_path)
        visit(browser, out / "report/index.html")
        heading, files = browser.execute_script(
            "return [document.querySelector('h1').textContent, "
            "[...document.querySelectorAll('#listen td.file')].map(c => c.title)]"
        )
        assert heading == str(out) and files and all(name.endswith(NAME) for name in files)

    def test_of_a_run(self, browser, tmp_path):
        from tests.pipeline.report.test_training import write

        run = write(tmp_path / "</script><script>document.title = 1" / "run", 20)
        assert main(["stats", str(run)]) == 0
        visit(browser, run / "report/index.html")
        assert browser.title == f"overtone training: {run}"
        name = browser.execute_script("return document.querySelector('.plot').data[0].name")
        assert name == str(run), "the legend's text is the whole path"


def luminance(colour: str) -> float:
    red, green, blue = map(float, re.findall(r"[\d.]+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
