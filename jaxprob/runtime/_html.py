"""The page of a report: one HTML file that needs no network and no JavaScript, on a screen and on paper."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_CSS = """
:root { --ink: #20303c; --soft: #5b6a75; --line: #dde4e9; --paper: #fff; --wash: #f5f8fa; --accent: #2b6a99;
  --good: #1d7f5c; --warn: #b97309; --bad: #b8252f; }
* { box-sizing: border-box; }
html { background: var(--wash); }
body { margin: 0 auto; max-width: 1080px; padding: 28px 40px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }
h1 { font-size: 27px; line-height: 1.25; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 20px 0 4px; }
p { margin: 6px 0 10px; max-width: 78ch; }
.lead { color: var(--soft); margin: 4px 0 18px; }
nav { margin: 18px 0 0; font-size: 13.5px; }
nav a { color: var(--accent); text-decoration: none; margin-right: 16px; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
.verdict { border-left: 7px solid var(--tone); background: color-mix(in srgb, var(--tone) 7%, white);
  padding: 14px 20px 12px; border-radius: 4px; }
.verdict strong { font-size: 18px; color: var(--tone); }
.verdict p { margin: 4px 0; max-width: 96ch; }
.verdict ol { margin: 10px 0 4px; padding-left: 22px; }
.verdict li { margin: 0 0 10px; }
.verdict li p { color: var(--soft); font-size: 13.5px; max-width: 108ch; margin: 1px 0; }
.green { --tone: var(--good); } .amber { --tone: var(--warn); } .red { --tone: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; margin: 8px 0 12px; }
th, td { padding: 4px 12px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 2px; }
tbody tr:hover { background: var(--wash); }
td.warn { color: var(--warn); font-weight: 650; } td.bad { color: var(--bad); font-weight: 650; }
tr.rest td { color: var(--soft); font-style: italic; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; padding-right: 26px; }
.beside { display: flex; flex-wrap: wrap; gap: 0 64px; }
figure { margin: 10px 0 18px; }
img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: 13.5px; max-width: 88ch; margin-bottom: 8px; }
details { margin: 6px 0 12px; } summary { cursor: pointer; color: var(--accent); font-size: 14px; }
code { font: 0.92em ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace; background: var(--wash);
  padding: 1px 4px; border-radius: 3px; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: 13px; margin-top: 48px; border-top: 1px solid var(--line); padding-top: 12px; }
@media (max-width: 700px) { body { padding: 18px 16px 40px; } }
@media print { html { background: #fff; } body { padding: 0; max-width: none; font-size: 11pt; } nav { display: none; }
  h2, h3, figcaption { break-after: avoid; } figure, .verdict, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  th, td { padding: 2px 7px; font-size: 8.5pt; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


class Section:
    """A part of the page with a heading that the list of contents links to."""

    def __init__(self, title: str, *parts: str) -> None:
        self.title = title
        self.anchor = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
        self.parts = list(parts)


def page(title: str, lead: str, top: str, sections: Sequence[Section], foot: str) -> str:
    """The whole document.

    Args:
      title: plain text.
      lead: plain text under the title.
      top: HTML that comes before everything else: the verdict.
      sections: what follows, in order; one without parts is left out.
      foot: plain text.
    """
    sections = [section for section in sections if section.parts]
    contents = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    body = "\n".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>\n' + "\n".join(s.parts) + "\n</section>" for s in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p></header>\n{top}\n'
        f"<nav>{contents}</nav>\n<main>\n{body}\n</main>\n<footer>{escape(foot)}</footer>\n</body>\n</html>\n"
    )


def verdict(tone: str, headline: str, lead: Iterable[str], findings: Iterable[tuple[str, str, str]]) -> str:
    """The coloured box at the top.

    Args:
      tone: green, amber or red.
      headline: plain text, as is all the rest.
      lead: paragraphs under the headline.
      findings: of each its title, what was found, and what it means.
    """
    top = "".join(paragraph(text) for text in lead if text)
    items = "".join(
        f"<li><b>{escape(title)}.</b> {escape(what)}{paragraph(meaning)}</li>" for title, what, meaning in findings
    )
    items = f"<ol>{items}</ol>" if items else ""
    return f'<div class="verdict {tone}"><strong>{escape(headline)}</strong>{top}{items}</div>'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of text. A cell is text, or (text, class); a row of one cell spans the table."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = []
    for row in rows:
        if len(row) == 1:
            body.append(f'<tr class="rest"><td colspan="{len(columns)}">{escape(str(row[0]))}</td></tr>')
            continue
        cells = [cell if isinstance(cell, tuple) else (cell, "") for cell in row]
        body.append(
            "<tr>"
            + "".join(
                f'<td class="{kind}">{escape(str(text))}</td>' if kind else f"<td>{escape(str(text))}</td>"
                for text, kind in cells
            )
            + "</tr>"
        )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def facts(title: str, pairs: Mapping[str, Any]) -> str:
    """A heading, and a table of two columns: what, and its value. Nothing at all for nothing."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in pairs.items())
    return f'<div>{heading(title)}<table class="facts"><tbody>{rows}</tbody></table></div>' if rows else ""


def side_by_side(parts: Iterable[str]) -> str:
    """Parts beside each other as long as there is room."""
    return f'<div class="beside">{"".join(parts)}</div>'


def details(summary: str, content: str) -> str:
    """Something that is folded away until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def image(figure: Any, caption: str, alt: str) -> str:
    """A matplotlib figure as a picture inside the page, under its caption; one 10 inches wide fills the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return picture(buffer.getvalue(), caption, alt, figure.get_figwidth() / 10)


def picture(png: bytes, caption: str = "", alt: str = "", width: float = 1.0) -> str:
    """A PNG file inside the page, under its caption. `width`: share of the page's width."""
    data = base64.b64encode(png).decode("ascii")
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    style = f"width: {min(width, 1.0):.0%}"
    return f'<figure>{text}<img alt="{escape(alt)}" style="{style}" src="data:image/png;base64,{data}"></figure>'
