"""HTML pages that stand alone: pictures are inside, nothing is loaded, and there is no script.

They suit light and dark, wide and narrow screens. Functions take plain text, which they escape, and return markup. The
two have different types, so that a type checker notices when one is mistaken for the other.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from typing import NewType

Markup = NewType("Markup", str)
"""HTML that is safe to put into a page."""

SHARPNESS = 2  # pixels of a picture for each pixel of the page, so that pictures are sharp on a phone

_LONG = 40  # rows; longer tables scroll vertically, too
_FOOTER = (
    "θ are snapshots of the parameters, d_t = θ_t − θ_0 displacements, u_t = θ_t − θ_{t−1} updates. The measures are "
    "those of Singh, He, Hofmann and Schölkopf, The Directionality of Optimization Trajectories in Neural Networks, "
    "ICLR 2025 (arXiv:2403.07379). Made by lightning_traj."
)
_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --dim: #59636e; --line: #d5dae0; --card: #f6f8fa;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --text: #e4e8ec; --dim: #9aa4af; --line: #353c45; --card: #1d2228; --accent: #6cb8ea; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p, li { max-width: 48rem; overflow-wrap: anywhere; }
.lead { color: var(--dim); margin: 0 0 1rem; }
.said { border-left: 4px solid var(--accent); padding: .3rem 0 .3rem .9rem; font-size: 1.08rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.cards dt, .cards dd.what { color: var(--dim); font-size: .85rem; line-height: 1.35; }
.cards dd { margin: 0; }
.cards dd.value { font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.cards dd.error { font-size: .9rem; font-variant-numeric: tabular-nums; }
dl.facts { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.2rem; margin: 0; }
dl.facts dt { color: var(--dim); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; margin: .75rem 0; }
.tall { max-height: 42rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
th { white-space: nowrap; font-weight: 600; }
thead th { position: sticky; top: 0; background: var(--card); z-index: 2; }
thead th, thead th.number { white-space: normal; }
tbody th { position: sticky; left: 0; background: var(--back); z-index: 1; }
thead th:first-child { left: 0; z-index: 3; }
.number { text-align: right; white-space: nowrap; }
.text:last-child { min-width: 16rem; }
.grid { display: grid; gap: 1rem; align-items: start; margin: 1rem 0; }
.grid2 { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.grid3 { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; overflow-x: auto; background: #fff;
  border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { color: #59636e; font-size: .85rem; padding: .3rem .3rem 0; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 3rem; color: var(--dim); font-size: .85rem; }
@media (max-width: 40rem) {
  dl.facts { grid-template-columns: 1fr; gap: 0; }
  dl.facts dd { margin-bottom: .5rem; }
  tbody th { white-space: normal; min-width: 8.5rem; max-width: 50vw; overflow-wrap: anywhere; }
}
@media (prefers-color-scheme: dark) { figure { background: #e9ebed; } figure img { mix-blend-mode: multiply; } }
@media print { .scroll { max-height: none; overflow: visible; } figure, tr { break-inside: avoid; } }
"""


def page(title: str, *parts: Markup) -> str:
    """Return a whole document. Browsers load nothing for it and run nothing in it, whatever its texts say."""
    style = b64encode(sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="referrer" content="no-referrer">',
            '<link rel="icon" href="data:,">',  # without it a browser would ask the server for an icon
            f"<title>{text(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body><main>",
            *parts,
            "</main></body></html>",
            "",
        ]
    )


def text(value: object) -> Markup:
    """Escape plain text. Bytes of file names that are not valid Unicode are replaced."""
    return Markup(escape(str(value).encode("utf-8", "replace").decode()))


def header(title: str, lead: str) -> Markup:
    """Return the heading of the page, with a line below that describes the page."""
    return Markup(f'<header><h1>{text(title)}</h1>\n<p class="lead">{text(lead)}</p></header>')


def section(heading: str, *parts: Markup) -> Markup:
    """Return a section of the page with its heading."""
    return Markup("\n".join(["<section>", f"<h2>{text(heading)}</h2>", *parts, "</section>"]))


def paragraph(words: str, kind: str = "") -> Markup:
    """Return a paragraph. The kind ``"said"`` stands out."""
    return Markup(f'<p class="{text(kind)}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>")


def bullets(items: Iterable[str]) -> Markup:
    """Return a bulleted list."""
    return Markup("<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>")


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Return a list of names with their values, one line each."""
    lines = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)
    return Markup(f'<dl class="facts">{lines}</dl>')


def cards(items: Iterable[tuple[str, str, str]]) -> Markup:
    """Return numbers that stand out: name, value with its standard error after ``±``, and meaning of each."""
    boxes = []
    for name, value, meaning in items:
        number, sign, error = value.partition(" ±")
        lines = [("value", number), *([("error", f"±{error}")] if sign else []), ("what", meaning)]
        words = "".join(f'<dd class="{kind}">{text(line)}</dd>' for kind, line in lines)
        boxes.append(f"<div><dt>{text(name)}</dt>{words}</div>")
    return Markup(f'<dl class="cards">{"".join(boxes)}</dl>')


def table(label: str, columns: Sequence[str], rows: Iterable[Sequence[object]], words: Sequence[str] = ()) -> Markup:
    """Return a table. If it is wider than the page, it scrolls on its own, and its first column stays in place.

    Args:
        label: Description of the table for screen readers.
        columns: Headings of the columns.
        rows: Cells of each row, beginning with the heading of the row.
        words: Headings of columns that hold words, which are aligned to the left; the other columns hold numbers.
    """
    kinds = ['class="text"' if column in words else 'class="number"' for column in columns]
    head = f'<th scope="col">{text(columns[0])}</th>' + "".join(
        f'<th scope="col" {kind}>{text(column)}</th>' for column, kind in zip(columns[1:], kinds[1:], strict=True)
    )
    rows = list(rows)
    body = "\n".join(
        f'<tr><th scope="row">{text(first)}</th>'
        + "".join(f"<td {kind}>{text(cell)}</td>" for cell, kind in zip(cells, kinds[1:], strict=True))
        + "</tr>"
        for first, *cells in rows
    )
    kind = "scroll tall" if len(rows) > _LONG else "scroll"
    return Markup(
        f'<div class="{kind}" role="region" aria-label="{text(label)}" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def picture(png: bytes, alt: str, caption: str = "") -> Markup:
    """Return a picture inside the page. A PNG file has ``SHARPNESS`` pixels for each pixel of the page."""
    width, height = (
        int.from_bytes(png[start : start + 4], "big") // SHARPNESS for start in (16, 20)
    )  # in the header of the PNG file
    words = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    data = b64encode(png).decode()
    return Markup(
        f'<figure><img src="data:image/png;base64,{data}" alt="{text(alt)}" '
        f'width="{width}" height="{height}">{words}</figure>'
    )


def grid(parts: Iterable[Markup], across: int = 3) -> Markup:
    """Return pictures side by side, at most `across` in a row, and fewer on narrow screens."""
    return Markup(f'<div class="grid grid{across}">\n' + "\n".join(parts) + "\n</div>")


def folded(label: str, *parts: Markup) -> Markup:
    """Return parts that are hidden until the reader opens them."""
    return Markup("\n".join([f"<details><summary>{text(label)}</summary>", *parts, "</details>"]))


def footer() -> Markup:
    """Return the last words of every page: the notation, and the paper."""
    return Markup(f"<footer><p>{text(_FOOTER)}</p></footer>")
