"""The page of `ngpt report` in a real browser: it draws, answers to clicks, and asks the network for nothing."""

import pytest

from megatron_ngpt.monitor.report import write_report
from tests.browser import browser, needs_browser
from tests.monitor.test_report import END, WELL, line, make_run, start

pytestmark = [pytest.mark.heavy, needs_browser]


def paths(driver, chart):
    """The curves of one picture, as the path of each."""
    return [path.get_attribute("d") for path in driver.find_elements("css selector", f'[data-chart="{chart}"] path.line')]


def test_the_page_is_drawn_and_answers(tmp_path):
    one = make_run(tmp_path / "one", WELL, [start(), ("stop", 9, {"asked": "SIGTERM"}), start(9), END])
    two = make_run(tmp_path / "two", [line(step, tokens=step * 300, loss=6 - step / 20) for step in range(1, 41)], [start(), END])
    page = tmp_path / "page.html"
    write_report([one, two], page)
    with browser() as driver:
        driver.get(page.as_uri())
        assert driver.get_log("browser") == [], "the page complains"
        assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0, "the page fetches"
        drawn = driver.find_elements("css selector", ".chart svg")
        assert len(drawn) == len(driver.find_elements("css selector", ".chart")) > 5
        assert all(one.size["width"] > 300 for one in drawn)
        titles = [heading.text.partition("\n")[0].split(" ")[0] for heading in driver.find_elements("css selector", ".chart h4")]
        loss = titles.index("loss")
        by_step = paths(driver, loss)
        assert len(by_step) == 3 and len(driver.find_elements("css selector", f'[data-chart="{loss}"] line.event')) == 2
        driver.find_element("css selector", "input[value=tokens]").click()
        by_tokens = paths(driver, loss)
        assert by_tokens[2] == by_step[2] and by_tokens[0] != by_step[0], "the run with three times the tokens ends on the right"
        driver.find_element("css selector", f'[data-chart="{loss}"] [data-name="two"]').click()
        assert len(paths(driver, loss)) == 2
        driver.find_element("css selector", f'[data-chart="{loss}"] .log').click()
        assert len(paths(driver, loss)) == 2 and paths(driver, loss)[0] != by_tokens[0]
        newest = driver.find_element("css selector", f'[data-chart="{loss}"] [data-name="one"] b').text
        assert newest == "3"
        assert driver.get_log("browser") == []
