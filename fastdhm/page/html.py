"""A page of HTML that needs nothing beside itself: its style, its sections, its tables. All text in it is escaped."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1b1f24;--soft:#5b6570;--rule:#d9dee3;--heat:#0b4f9e;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b3559a;--c4:#8a6d00;--c5:#555}
@media(prefers-color-scheme:dark){:root{--back:#14171a;--text:#e6e9ec;--soft:#a0a9b2;--rule:#343b42;--heat:#7cc0ff;
--c0:#56b4e9;--c1:#ff9a4d;--c2:#35d0a0;--c3:#e69fd0;--c4:#e5cf3f;--c5:#bbb}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1rem;background:var(--back);color:var(--text);
font:16px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.1rem;margin:1.6rem 0 .5rem}h3{font-size:1rem;margin:0 0 .2rem}
p{margin:.3rem 0;color:var(--soft)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
.figures>:only-child{max-width:34rem}
figure{margin:0;min-width:0}svg{width:100%;height:auto;display:block}
figcaption{font-size:.85rem;color:var(--soft);display:flex;flex-wrap:wrap;gap:.1rem .8rem}
.key{display:inline-block;width:1rem;height:0;border-top:3px solid;vertical-align:middle;margin-right:.3rem}
.key.thin{border-top-width:1px}
svg text{font-size:12px;fill:var(--soft)}.end{text-anchor:end}.mid{text-anchor:middle}
.grid{stroke:var(--rule);fill:none}.line{fill:none;stroke:currentColor;stroke-width:2}.line.thin{stroke-width:1;opacity:.7}
.dot{fill:currentColor}.cell{fill:var(--heat)}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
.wide th,.wide td{overflow-wrap:normal}.wide th{white-space:nowrap}
th,td{padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
th{font-weight:600}th:first-child,td:first-child,.facts td{text-align:left}
summary{cursor:pointer}img{max-width:100%;height:auto}
.shots{display:grid;grid-template-columns:repeat(auto-fill,minmax(7.5rem,1fr));gap:.8rem}
.shots img{width:100%;aspect-ratio:1;object-fit:contain;background:var(--rule);display:block}
.shots img[src*="/png"]{image-rendering:pixelated}.shots figcaption{display:block;line-height:1.25;margin-top:.2rem}
.right{color:var(--c2)}.wrong{color:var(--c1)}
.right.cell{fill:var(--c2)}.wrong.cell{fill:var(--c1)}svg .count{font-size:9px;fill:var(--text)}
"""


def page(title: str, about: Sequence[str], sections: Mapping[str, str], *, refresh_s: int | None = None) -> str:
    """A whole page. ``sections``: heading -> HTML; one without content is left out. ``about``: lines below the title.

    ``refresh_s``: a browser that shows it loads it again after so many seconds.
    """
    again = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    shown = "".join(f"<section><h2>{escape(head)}</h2>{body}</section>\n" for head, body in sections.items() if body)
    lines = "".join(f"<p>{escape(line)}</p>" for line in about)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{again}'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>{lines}\n{shown}</body></html>\n"
    )


def figures(*parts: str) -> str:
    """Figures beside each other where there is room; the empty ones are left out."""
    found = "".join(parts)
    return f'<div class="figures">{found}</div>' if found else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways where the page is narrow."""
    if not rows:
        return ""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(values: Mapping[str, str]) -> str:
    """A table of names and values."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in values.items())
    return f'<div class="wide"><table class="facts">{rows}</table></div>'


def folded(summary: str, body: str) -> str:
    """Content that a click unfolds."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


class Shot(NamedTuple):
    """An image as a ``data:`` address, empty if there is none, and lines below it: ``right``, ``wrong`` or neither."""

    image: str
    lines: Sequence[tuple[str, str]]


def shots(found: Sequence[Shot]) -> str:
    """Small images beside each other."""
    parts = []
    for image, lines in found:
        whole = re.fullmatch("data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", image)
        below = "<br>".join(f'<span class="{kind}">{escape(text)}</span>' for text, kind in lines)
        shown = f'<img alt="" src="{image}">' if whole else "no image"
        parts.append(f"<figure>{shown}<figcaption>{below}</figcaption></figure>")
    return f'<div class="shots">{"".join(parts)}</div>' if parts else ""


def note(text: str) -> str:
    """A sentence."""
    return f"<p>{escape(text)}</p>"
