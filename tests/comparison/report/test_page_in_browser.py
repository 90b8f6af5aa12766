"""The HTML report in a real browser: search, sorting, keys, themes, and hostile text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rwkvbatch
from rwkvbatch.comparison import compare
from rwkvbatch.comparison.report.html import as_html
from tests.comparison.hostile import hostile_run
from tests.comparison.make_run import make_run

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

MINUS = "\u2212"

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def change(row: dict[str, Any], rng: object) -> None:
        del rng
        if row["cell"] == "t=2" and row["conversation"] == "talk-3":
            row["reply"] = "Only this one speaks of a zebra."
            row["checks"][0].update(passed=False, score=0.0)

    folder = tmp_path_factory.mktemp("report")
    path = make_run(folder / "a", cells=("t=1", "t=2", "t=3"), change=change, conversations=14)
    page = folder / "report.html"
    page.write_text(as_html(compare([str(path)], fail_if=["tokens < 9999"])), encoding="utf-8")
    return page


@pytest.fixture
def page(browser: webdriver.Chrome, report: Path) -> webdriver.Chrome:
    browser.set_window_size(1280, 900)
    # Loading the same page again may leave the old document for a moment; loading another one first does not.
    browser.get("about:blank")
    browser.get(report.as_uri())
    WebDriverWait(browser, 60).until(lambda shown: shown.find_elements(By.CSS_SELECTOR, "#talk .turn"))
    return browser


def names(page: webdriver.Chrome) -> list[str]:
    return [cell.text for cell in page.find_elements(By.CSS_SELECTOR, "#talk-list td.name")]


def column(page: webdriver.Chrome, number: int) -> list[str]:
    """The texts of a column of the visible comparisons, read by one script."""
    rows = "document.querySelectorAll('#comparisons tbody tr:not([hidden])')"
    return page.execute_script(f"return [...{rows}].map(row => row.cells[{number}].innerText)")


def test_the_page_loads_from_disk_without_console_messages(page: webdriver.Chrome) -> None:
    assert page.get_log("browser") == []
    assert page.find_element(By.TAG_NAME, "h1").text.startswith("a: 2 variants")
    assert page.find_elements(By.CSS_SELECTOR, "#talk .turn")


def test_search_filters_conversations_by_their_texts(page: webdriver.Chrome) -> None:
    assert len(names(page)) == 14
    page.find_element(By.ID, "search").send_keys("ZEBRA")
    assert names(page) == ["talk-3"]
    assert page.find_element(By.ID, "count").text == "1 of 14"


def test_a_score_near_1_is_not_shown_as_1(browser: webdriver.Chrome, tmp_path: Path) -> None:
    def change(row: dict[str, Any], _: object) -> None:
        row["checks"][0].update(passed=False, score=0.9996)

    path = make_run(tmp_path / "run", conversations=1, repeats=1, turns=1, change=change)
    page = tmp_path / "report.html"
    page.write_text(as_html(compare([str(path)])), encoding="utf-8")
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(lambda shown: shown.find_elements(By.CSS_SELECTOR, "#talk .turn"))
    shown = [item.text for item in browser.find_elements(By.CSS_SELECTOR, "#talk .figures dd, #talk-list td.num")]
    assert shown.count("0.9996") == 2
    assert "1.00" not in shown


def test_the_filter_shows_worse_conversations_only(page: webdriver.Chrome) -> None:
    Select(page.find_element(By.ID, "which")).select_by_value("worse")
    scores = [
        row.find_elements(By.TAG_NAME, "td")[1].text for row in page.find_elements(By.CSS_SELECTOR, "#talk-list tr")
    ]
    assert scores
    assert all(score.startswith(MINUS) for score in scores)


def test_the_list_is_sorted_by_name_in_both_directions(page: webdriver.Chrome) -> None:
    button = page.find_element(By.CSS_SELECTOR, "button[data-key=name]")
    button.click()
    ascending = names(page)
    assert ascending == [f"talk-{number}" for number in range(14)]
    button.click()
    assert names(page) == ascending[::-1]


def open_others(page: webdriver.Chrome) -> None:
    page.find_element(By.CSS_SELECTOR, "#table summary").click()


def test_the_verdicts_are_the_first_table_and_other_metrics_are_collapsed(page: webdriver.Chrome) -> None:
    tables = page.find_elements(By.TAG_NAME, "table")
    assert tables[0].get_attribute("id") == "verdicts"
    assert [row.text.split()[0] for row in tables[0].find_elements(By.CSS_SELECTOR, "tbody tr")] == ["t=2", "t=3"]
    others = page.find_element(By.ID, "comparisons")
    assert not others.is_displayed()
    open_others(page)
    assert others.is_displayed()


def test_the_table_shows_one_metric_or_all(page: webdriver.Chrome) -> None:
    open_others(page)
    assert len({text.split()[0] for text in column(page, 1)}) == 1
    Select(page.find_element(By.ID, "metric-filter")).select_by_value("")
    assert len({text.split()[0] for text in column(page, 1)}) > 5
    assert "score" not in {text.split()[0] for text in column(page, 1)}


def test_the_table_is_sorted_by_number(page: webdriver.Chrome) -> None:
    open_others(page)
    Select(page.find_element(By.ID, "metric-filter")).select_by_value("")
    page.find_element(By.XPATH, "//table[@id='comparisons']//button[text()='difference']").click()
    values = [float(text.replace(MINUS, "-")) for text in column(page, 4)]
    assert values == sorted(values)


def test_a_system_message_is_above_its_dialogue(browser: webdriver.Chrome, tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    messages = [{"role": "system", "content": "Speak <b>plainly</b>."}, {"role": "user", "content": "Hi"}]
    script.write_text(json.dumps({"id": "a", "messages": messages}), encoding="utf-8")
    result = rwkvbatch.run(script, max_tokens=3)
    report = tmp_path / "system.html"
    report.write_text(as_html(compare([result])), encoding="utf-8")
    browser.get(report.as_uri())
    assert browser.find_element(By.CSS_SELECTOR, "#talk .system").text == "system\nSpeak <b>plainly</b>."


def test_a_probe_is_marked_with_the_turn_after_which_it_was_asked(browser: webdriver.Chrome, tmp_path: Path) -> None:
    script = tmp_path / "probes.jsonl"
    turns = [{"role": "user", "content": "My name is Ada."}, {"role": "user", "content": "Hi."}]
    probes = [{"content": "Who am I?", "expect": {"contains": "Ada"}}]
    script.write_text(json.dumps({"id": "a", "messages": turns, "probes": probes}), encoding="utf-8")
    report = tmp_path / "probes.html"
    report.write_text(as_html(compare([rwkvbatch.run(script, max_tokens=3)])), encoding="utf-8")
    browser.get(report.as_uri())
    shown = [item.text for item in browser.find_elements(By.CSS_SELECTOR, "#talk .asked small")]
    assert shown == ["turn 0", "turn 1", "probe after turn 0", "probe after turn 1"]


def test_a_dialogue_shows_its_word_diff(page: webdriver.Chrome) -> None:
    page.find_element(By.CSS_SELECTOR, '#talk-list tr[data-name="talk-3"]').click()
    talk = page.find_element(By.ID, "talk")
    assert talk.find_element(By.TAG_NAME, "h3").text == "talk-3"
    assert "zebra" in " ".join(item.text for item in talk.find_elements(By.TAG_NAME, "ins"))
    assert talk.find_elements(By.TAG_NAME, "del")
    assert "reference nll" in talk.text


def test_the_pieces_of_a_diff_join_to_both_replies(page: webdriver.Chrome) -> None:
    same = page.execute_script(
        """
        const data = JSON.parse(document.getElementById("data").textContent);
        const rows = data.conversations[document.querySelector("#talk h3").textContent].rows;
        const shown = [...document.querySelectorAll("#talk .turn")].map(
          (turn) => [...turn.querySelectorAll(".reply")].map((reply) => reply.textContent));
        const repeat = Number(document.getElementById("repeat").value);
        const of = (variant) => rows[variant].filter((row) => row.repeat === repeat).map((row) => row.reply);
        const [before, after] = [of(data.pairs[0].baseline), of(data.pairs[0].variant)];
        return shown.every((sides, turn) => sides[0] === before[turn] && sides[1] === after[turn]);
        """
    )
    assert same is True


def test_numbers_that_round_to_zero_have_no_sign(browser: webdriver.Chrome, tmp_path: Path) -> None:
    def tiny(row: dict[str, Any], rng: object) -> None:
        del rng
        row["logprob"]["mean"] = -0.001

    report = tmp_path / "zero.html"
    report.write_text(as_html(compare([str(make_run(tmp_path / "a", change=tiny))])), encoding="utf-8")
    browser.get(report.as_uri())
    shown = browser.find_element(By.ID, "talk").text
    assert "0.00" in shown
    assert f"{MINUS}0.00" not in shown
    assert "-0.00" not in shown


def test_the_figure_changes_with_the_metric(page: webdriver.Chrome) -> None:
    Select(page.find_element(By.ID, "sweep-figure-metric")).select_by_value("nll")
    shown = [f for f in page.find_elements(By.CSS_SELECTOR, "figure.sweep-figure") if f.is_displayed()]
    assert [figure.get_attribute("data-name") for figure in shown] == ["nll"]


def test_keys_select_conversations_and_focus_the_search(page: webdriver.Chrome) -> None:
    body = page.find_element(By.TAG_NAME, "body")
    order = names(page)
    body.send_keys("j")
    assert page.find_element(By.CSS_SELECTOR, "#talk h3").text == order[1]
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert page.find_element(By.CSS_SELECTOR, "#talk h3").text == order[2]
    body.send_keys("k")
    assert page.find_element(By.CSS_SELECTOR, "#talk h3").text == order[1]
    body.send_keys("/")
    assert page.switch_to.active_element.get_attribute("id") == "search"


def test_the_button_switches_the_theme(page: webdriver.Chrome) -> None:
    def background() -> str:
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    before = background()
    page.find_element(By.ID, "theme").click()
    assert background() != before
    page.find_element(By.ID, "theme").click()
    assert background() == before


def test_the_page_fits_the_width_of_a_phone(browser: webdriver.Chrome, tmp_path: Path) -> None:
    cells = [f"temperature={t},frequency={f},a-rather-long-setting=true" for t in (0.3, 1.0) for f in (0.0, 1.0)]

    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0]["score"] = 0.9 - 0.2 * cells.index(row["cell"]) + rng.normal(0, 0.01)
        row["conversation"] = f"{row['conversation']}-of-the-longest-name-that-anybody-ever-gave"
        row["reference"]["nll"] *= 1e6 ** (cells.index(row["cell"]) > 0)

    report = tmp_path / "long.html"
    run = make_run(tmp_path / "a", cells=cells, change=change)
    report.write_text(as_html(compare([str(run)])), encoding="utf-8")
    page = browser
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    page.get(report.as_uri())
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= phone["width"]
        scroll = "document.querySelector('.verdict .scroll')"
        content_width, visible_width = page.execute_script(f"return [{scroll}.scrollWidth, {scroll}.clientWidth]")
        assert content_width <= visible_width, "the verdicts need no sideways scrolling"
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_hostile_text_is_shown_and_runs_no_script(browser: webdriver.Chrome, tmp_path: Path) -> None:
    report = tmp_path / "hostile.html"
    report.write_text(as_html(compare([str(hostile_run(tmp_path / "a"))])), encoding="utf-8")
    browser.get(report.as_uri())
    for row in browser.find_elements(By.CSS_SELECTOR, "#talk-list tr"):
        title = browser.execute_script("return arguments[0].querySelector('.name').title", row)
        assert r"\x1b]0;owned\x07\x1b[2J\u202eevil\u2028\x00\x0d" in title
        assert not set(title) & set("\x1b\x07\x00\u202e\u2028\r")
        row.click()
        talk = browser.execute_script("return document.getElementById('talk').textContent")
        assert "<img src=x" in talk
        assert talk.count(r"\x1b]0;owned\x07\x1b[2J\u202eevil\u2028\x00\x0d") >= 6
        assert not set(talk) & set("\x1b\x07\x00\u202e\u2028\r")
    assert browser.execute_script("return window.pwned") is None
    assert browser.find_elements(By.CSS_SELECTOR, "img, #talk script, #talk svg") == []
    assert browser.get_log("browser") == []


def test_text_from_right_to_left_begins_at_the_right(browser: webdriver.Chrome, tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["prompt"], row["reply"] = "שלום, Ada.", "مرحبا 1"

    report = tmp_path / "bidi.html"
    report.write_text(as_html(compare([str(make_run(tmp_path / "a", change=change))])), encoding="utf-8")
    browser.get(report.as_uri())
    first_letter = """
        const element = document.querySelector(arguments[0]), range = document.createRange();
        const text = document.createTreeWalker(element, NodeFilter.SHOW_TEXT, (node) =>
          node.parentElement === element ? NodeFilter.FILTER_ACCEPT : NodeFilter.FILTER_SKIP).nextNode();
        range.setStart(text, 0);
        range.setEnd(text, 1);
        return [range.getBoundingClientRect().right, element.getBoundingClientRect().right];
    """
    for selector in ("#talk .asked", "#talk .reply"):
        letter, box = browser.execute_script(first_letter, selector)
        assert letter == pytest.approx(box, abs=2)


def test_the_policy_blocks_injected_scripts(page: webdriver.Chrome) -> None:
    page.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned=1\">');"
        "const script = document.createElement('script'); script.textContent = 'window.pwned=2';"
        "document.body.append(script);"
    )
    assert page.execute_script("return window.pwned") is None
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_the_printed_page_has_the_settings_and_the_gates_option(page: webdriver.Chrome) -> None:
    page.execute_script("""
        window.printed = [];
        const note = () => window.printed.push(document.querySelector("#manifest details").open);
        window.addEventListener("beforeprint", note);
        window.addEventListener("afterprint", note);
    """)
    assert len(page.print_page()) > 1000
    assert page.execute_script("return window.printed") == [True, False]
    gate = page.find_element(By.CSS_SELECTOR, ".gates code")
    assert gate.text == "fail-if tokens < 9999"


def test_the_style_of_print_leaves_closed_sections_out(page: webdriver.Chrome) -> None:
    closed = page.find_element(By.CSS_SELECTOR, "#table details")
    assert closed.is_displayed()
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not closed.is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
