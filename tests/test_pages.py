"""Pages that stand alone."""

import base64
import re

from megatron_ngpt.pages import Html, element, page, picture, table, verdicts

PNG = b"\x89PNG\r\n\x1a\n"


def test_text_is_escaped_and_html_is_not():
    assert element("p", "a < b & \"c\"", Html("<b>x</b>"), class_="x\"y") == '<p class="x&quot;y">a &lt; b &amp; &quot;c&quot;<b>x</b></p>'
    assert verdicts([("bad", "<script>")]) == '<ul class="verdicts"><li class="bad">&lt;script&gt;</li></ul>'


def test_numbers_stand_on_the_right():
    found = table(["name", "n"], [["x", 1.5], ["y", "1,234"], ["z", "12%"], [Html("<b>w</b>"), "n/a"]])
    assert re.findall(r'<td class="number">(.*?)</td>', found) == ["1.5", "1,234", "12%"]
    assert "<td><b>w</b></td>" in found


def test_a_page_asks_for_nothing():
    """Everything is inside: no address anywhere but data."""
    whole = page("a & b", ["text <", picture(PNG, "what it shows")], style=".x { }", script="let x = 1 < 2;")
    assert "<title>a &amp; b</title>" in whole and "text &lt;" in whole and "let x = 1 < 2;" in whole
    assert base64.b64encode(PNG).decode() in whole
    assert not re.search(r"(https?:)?//[a-z]", whole.replace("data:image", "")) and set(re.findall(r'src="(\w+):', whole)) == {"data"}
