"""The report of an analysis: one HTML page that holds everything it shows."""

from collections.abc import Iterator

import numpy as np

from megatron_ngpt.analysis.figures import over_median
from megatron_ngpt.analysis.results import Result
from megatron_ngpt.pages import Html, colour, dot, element, page, picture, table

FAITHFUL, WORN = 10, 1000  # condition numbers of a head: every direction counts; one is lost
CAPTIONS = {
    "condition": "Condition number of every matrix by layer, on one scale. Of attention's: a line through the heads' median, a band from "
    "the best head to the worst.",
    "spectra": "Singular values over the largest, of whole matrices: a line a layer, faint the first, strong the last. A spectrum that "
    "falls slowly uses all its directions; a cliff at its end means fewer directions than its size.",
    "jacobians": "Extreme singular values of each block's Jacobian, and the condition number of all blocks together.",
    "embeddings": "Norms, eigenvalues of the second moments over their median, and cosines of pairs of entries.",
    "scales": "nGPT's learned scales as they act. α says which part of its way a block moves a state; s_qk how sharp a head may look; "
    "s_z how sure a token may be predicted.",
}


def report(results: list[Result], figures: dict[str, bytes], tolerance: float) -> str:
    """The page's HTML; `figures` are PNG by name."""
    shown = {name: picture(png, CAPTIONS[name]) for name, png in figures.items()}
    parts = [
        element("h1", f"Analysis of {_listed([result.label for result in results])}"),
        table(["model", "what it is"], [[_name(results, number), result.described] for number, result in enumerate(results)]),
        element("h2", "In short"),
        element("ul", *(element("li", line) for line in _short(results))),
        element("h2", "Condition numbers"),
        element("p", "Largest over smallest singular value: 1 is a rotation, and a million a matrix that has all but lost a direction. Of "
                     f"attention's matrices each head's part; full rank counts singular values above {tolerance:g} of the largest."),
        _matrices(results, tolerance), shown["condition"], _every_head(results),
        element("h2", "Singular values"), shown["spectra"],
        element("h2", "The network's function"), *_function(results, shown.get("jacobians")),
        element("h2", "Embeddings"), _embeddings(results), shown["embeddings"],
    ]
    if "scales" in shown:
        parts += [element("h2", "Learned scales"), _scales(results), shown["scales"]]
    parts.append(element("p", "Every number of this page is in the CSV files beside it.", class_="faint"))
    return page(f"Analysis of {_listed([result.label for result in results])}", parts)


def _short(results: list[Result]) -> Iterator[str]:
    """A line for each thing that a reader wants first."""
    for result in results:
        conditions = [s.condition for s in result.parts("q")]
        worst = max(result.parts("q"), key=lambda s: s.condition)
        verdict = "every direction of every head counts" if worst.condition < FAITHFUL else (
            "no direction is lost" if worst.condition < WORN else "some heads have lost directions")
        where = f"{number(worst.condition)} in layer {worst.layer}, head {worst.head}"
        yield f"{result.label}: condition of the heads' W_q {number(np.median(conditions))} (median), at worst {where}: {verdict}."
    for result in results:
        if result.jacobians:
            whole = result.jacobians[-1]
            bound = "" if whole.converged else "at least "
            yield (f"{result.label}: a small move of the input embeddings comes out of the last block between {number(whole.smallest)} and "
                   f"{number(whole.largest)} times as large, a condition number of {bound}{number(whole.condition)}.")
    for result in results:
        if result.scales is not None:
            means = {part: values.mean(1) for part, values in result.scales.alpha.items()}
            low, high = min(m.min() for m in means.values()), max(m.max() for m in means.values())
            yield f"{result.label}: mean α of its layers from {number(low)} to {number(high)}."


def _matrices(results: list[Result], tolerance: float) -> Html:
    rows = []
    for matrix in dict.fromkeys(s.matrix for s in results[0].spectra):
        for place, result in enumerate(results):
            parts = result.parts(matrix)
            conditions = [s.condition for s in parts]
            full = sum(s.rank(tolerance) == len(s.values) for s in parts)
            least = min(s.rank(tolerance) / len(s.values) for s in parts)
            name = f"W_{matrix}" + (", heads" if matrix in "qkvo" else "")
            values = [number(f(conditions)) for f in (min, np.median, max)]
            rows.append([name if place == 0 else "", _name(results, place), *values, f"{full} of {len(parts)}", f"{least:.0%}"])
    return table(["matrix", "model", "best", "median", "worst", "full rank", "lowest rank"], rows)


def _every_head(results: list[Result]) -> Html:
    tables = []
    for result in results:
        for matrix in dict.fromkeys(s.matrix for s in result.spectra if s.head is not None):
            heads = [s.head for s in result.parts(matrix, 0)]
            rows = [[layer, *(number(s.condition) for s in result.parts(matrix, layer))] for layer in range(result.layers)]
            tables += [element("h3", f"{result.label}: W_{matrix}"), table(["layer", *(f"head {head}" for head in heads)], rows)]
    return element("details", element("summary", "Every head of every layer"), *tables)


def _function(results: list[Result], figure: Html | None) -> list[Html]:
    if figure is None:
        return [element("p", "Not looked at: it needs the hidden states of real text, which --data gives.")]
    said = (
        "How far an output moves for a small move of its input: the singular values of the Jacobian at the hidden states of a text, whose "
        "tokens all move. nGPT's are taken between the tangent spaces of the sphere. They are found by products with the Jacobian alone; "
        "≥ and ≤ mark values that more --steps might still move outwards."
    )
    rows = []
    for place, result in enumerate(results):
        for e in result.jacobians:
            values = [("" if known else mark) + number(value) for known, mark, value in (
                (e.largest_known, "≥ ", e.largest), (e.smallest_known, "≤ ", e.smallest), (e.converged, "≥ ", e.condition))]
            rows.append([_name(results, place), "all blocks" if e.block is None else f"block {e.block}", *values, e.steps])
    texts = {result.text for result in results if result.text}
    at = "; ".join(f"{tokens} tokens of {name}" for name, tokens in sorted(texts))
    without = [result.label for result in results if not result.jacobians]
    parts = [element("p", said), element("p", f"Text: {at}.", class_="faint"), figure]
    if without:
        parts.append(element("p", f"Without text, and so not looked at: {_listed(without)} (--data gives it)."))
    whole = [row for row in rows if row[1] == "all blocks"]
    head = ["model", "map", "largest", "smallest", "condition", "steps"]
    each = element("details", element("summary", "Every block"), table(head, [row for row in rows if row not in whole]))
    return [*parts, table(head, whole), each]


def _embeddings(results: list[Result]) -> Html:
    rows = []
    for place, result in enumerate(results):
        for e in result.embeddings:
            norms = f"{number(e.norms.min())} to {number(e.norms.max())}"
            low, high = np.percentile(e.cosines, [1, 99]) if len(e.cosines) else (0.0, 0.0)
            mean = e.cosines.mean() if len(e.cosines) else 0.0
            rows.append([_name(results, place), e.end, norms, number(over_median(e)[0]), f"{mean:.3f}", f"{low:.2f} to {high:.2f}"])
    return table(["model", "end", "norms", "largest eigenvalue / median", "mean cosine", "cosines, 1% to 99%"], rows)


def _scales(results: list[Result]) -> Html:
    rows = []
    for place, result in enumerate(results):
        if result.scales is None:
            continue
        found = {"α, attention": result.scales.alpha["attention"], "α, feed-forward": result.scales.alpha["mlp"],
                 "s_qk": result.scales.qk, "s_u": result.scales.units["up"], "s_g": result.scales.units["gate"], "s_z": result.scales.logit}
        for name, values in found.items():
            low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
            rows.append([_name(results, place), name, number(low), number(middle), number(high)])
    return table(["model", "scale", "10%", "median", "90%"], rows)


def _name(results: list[Result], place: int) -> Html:
    """A model's label with the dot of its colour."""
    return element("span", dot(colour(place)), results[place].label)


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def number(value: float) -> str:
    """Three digits: 0.0123, 4.56, 1,230, 7.9e+06."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"
    return f"{value:.2g}"
