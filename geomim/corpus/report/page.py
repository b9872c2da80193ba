"""Plain HTML pages: one file, no script, nothing fetched, readable by day and by night."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from string import Template


def html_page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: Plain text.
        sections: Heading as plain text, and content as HTML; sections without content are left out. Where there are
            more than three a list of contents stands above them.
    """
    held = [(head, text) for head, text in sections if text]
    body = "\n".join(
        f'<section id="s{n}"><h2>{html.escape(head)}</h2>{text}</section>' for n, (head, text) in enumerate(held)
    )
    links = "".join(f'<li><a href="#s{n}">{html.escape(head)}</a></li>' for n, (head, _) in enumerate(held))
    contents = f"<nav><ol>{links}</ol></nav>\n" if len(held) > 3 else ""
    return _PAGE.substitute(title=html.escape(title), body=contents + body)


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text; without a head where it is empty."""
    titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{titles}</tr>' if head else ''}{body}</table>"


def html_figure(caption: str, image: str = "") -> str:
    """A picture, where there is one, and its caption as plain text; a picture of the folder links to its full size."""
    text = html.escape(caption)
    shown = f'<img src="{image}" alt="{text}">' if image else ""
    shown = f'<a href="{image}">{shown}</a>' if image and not image.startswith("data:") else shown
    return f"<figure>{shown}<figcaption>{text}</figcaption></figure>"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6b7a; --line: #d9dfe5; --paper: #fbfcfd; --card: #fff;
  --kept: #2e86c1; --out: #cb6d51; --all: #93a1ad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9fb0bf; --line: #33414d; --paper: #12181e; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 0 auto; padding: 1rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
table { border-collapse: collapse; font-size: .92rem; max-width: 100%; }
section { overflow-x: auto; } section:first-of-type p { color: var(--ink); font-size: 1rem; } a { color: inherit; }
nav ol { columns: 2 14rem; font-size: .92rem; padding-left: 1.4rem; }
td, th { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; }
td:last-child { overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; } td.n { text-align: right; white-space: nowrap; } td.w { width: 24rem; }
.bar { height: 1rem; min-width: 1px; margin-top: .25rem; border-radius: 2px; background: var(--all); }
.bar.kept { background: var(--kept); } .bar.out { background: var(--out); }
.card { background: var(--card); padding: .6rem; border: 1px solid var(--line); border-radius: 4px; margin: .6rem 0; }
img { max-width: 100%; display: block; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure.strip img { height: auto; } figure.strip { margin: .6rem 0; }
figure img { height: 8rem; max-width: 100%; }
figcaption, p { color: var(--soft); font-size: .88rem; overflow-wrap: anywhere; }
figcaption { margin-top: .2rem; }
.wide { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
.wide img { width: 100%; }
.legend span { display: inline-block; margin-right: 1rem; } code { overflow-wrap: anywhere; }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .35em; print-color-adjust: exact; }
@media print { body { max-width: none; font-size: 11pt; } figure, tr { break-inside: avoid; } h2 { break-after: avoid; }
  .wide { grid-template-columns: repeat(3, 1fr); } .bar { print-color-adjust: exact; } }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")
