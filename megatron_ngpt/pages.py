"""HTML pages that stand alone: one style for light and dark, tables, pictures and lines of verdict. A page asks the network for nothing.

Functions take text and escape it; what is HTML already is of the type `Html`, which is what they return.
"""

import base64
import html
from collections.abc import Iterable, Sequence

COLOURS = ("#1f6feb", "#d1570d", "#1a8a4a", "#8250df", "#bf3989", "#0b7f8a", "#8a6a00", "#5d6670")  # --c0, --c1, ... in light
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #5d6670; --paper: #ffffff; --card: #f6f8fa; --line: #d5dae0;
  --good: #1a7f37; --warn: #8a5a00; --bad: #c31e2b; COLOURS }
@media (prefers-color-scheme: dark) { :root { --ink: #e2e8ee; --faint: #96a1ad; --paper: #0e1217; --card: #171c23; --line: #313943;
  --good: #4ac26b; --warn: #e0a83a; --bad: #ff7b72; --c0: #6cb0ff; --c1: #ffa05c; --c2: #5fd08a; --c3: #bf9bff; --c4: #ff8cc6;
  --c5: #54d0dc; --c6: #d9b443; --c7: #96a1ad; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 60rem; } .faint { color: var(--faint); } a { color: var(--c0); }
code, pre { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; overflow-x: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th { text-align: left; color: var(--faint); font-weight: 600; } th, td { padding: .28rem .9rem .28rem 0; vertical-align: top; }
thead th { border-bottom: 1px solid var(--line); } tbody tr + tr td { border-top: 1px solid var(--line); } td.number { text-align: right; }
figure { margin: .8rem 0 1.4rem; } figcaption { color: var(--faint); font-size: .9rem; margin-top: .3rem; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
.verdicts { list-style: none; margin: .6rem 0; padding: 0; } .verdicts li { padding: .35rem 0 .35rem 1.6rem; position: relative; }
.verdicts li::before { position: absolute; left: 0; font-weight: 700; }
.good::before { content: "\\2713"; color: var(--good); } .warn::before { content: "!"; color: var(--warn); left: .3rem !important; }
.bad::before { content: "\\2717"; color: var(--bad); }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
""".replace("COLOURS", " ".join(f"--c{number}: {colour};" for number, colour in enumerate(COLOURS)))


class Html(str):
    """Text that is HTML already."""


def escaped(value: object) -> Html:
    """A value as HTML: `Html` as it is, anything else as text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def element(name: str, *inside: object, **attributes: str) -> Html:
    """`<name attribute="...">inside</name>`; `class_` stands for class."""
    said = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{said}>{''.join(map(escaped, inside))}</{name}>")


def page(title: str, parts: Iterable[object], style: str = "", script: str = "") -> str:
    """The whole page: `parts` one below the other, with more `style`, and a `script` at the end, where there are any."""
    body = "\n".join(map(escaped, parts)) + (f"\n<script>\n{script}\n</script>" if script else "")
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n{element("title", title)}'
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table; cells that are numbers, or text that is one, stand on the right."""
    lines = [element("tr", *(element("td", cell, **({"class_": "number"} if _is_number(cell) else {})) for cell in row)) for row in rows]
    heads = element("thead", element("tr", *(element("th", name) for name in head)))
    return element("div", element("table", heads, element("tbody", *lines)), class_="wide")


def picture(png: bytes, caption: str) -> Html:
    """A PNG within the page, and what it shows."""
    data = base64.b64encode(png).decode()
    return element("figure", Html(f'<img src="data:image/png;base64,{data}" alt="{html.escape(caption)}">'), element("figcaption", caption))


def verdicts(found: Iterable[tuple[str, str]]) -> Html:
    """A list of (good, warn or bad; what is so)."""
    return element("ul", *(element("li", line, class_=kind) for kind, line in found), class_="verdicts")


def colour(number: int) -> str:
    """What tells things that are counted apart, as CSS has it."""
    return f"var(--c{number % len(COLOURS)})"


def dot(colour: str) -> Html:
    """A round mark in a colour, before a name."""
    return element("span", class_="dot", style=f"background:{colour}")


def _is_number(cell: object) -> bool:
    if isinstance(cell, int | float):
        return True
    try:
        float(str(cell).replace(",", "").rstrip("%"))
    except ValueError:
        return False
    return True
