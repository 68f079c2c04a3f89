"""What a page that needs no network is made of: its frame and looks, films inside it, whom to cite."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Iterator
from html import escape
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from dreamer_torchrl.record.console import size as bytes_in_words
from dreamer_torchrl.views.svg_chart import STYLE

ALLOWED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
"""What a browser may load: only what lies inside the page."""

MOST_BYTES = 8_000_000
"""A film that is larger is linked: a page must open on a phone."""

KINDS = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png"}
"""What a page can show, the best first."""

IMAGINED = "-imagined"
"""How the name of a dream ends in which the policy acted without an environment."""

PAPER = """@article{hafner2025mastering,
  title   = {Mastering diverse control tasks through world models},
  author  = {Hafner, Danijar and Pasukonis, Jurgis and Ba, Jimmy and Lillicrap, Timothy},
  journal = {Nature},
  volume  = {640},
  pages   = {647--653},
  year    = {2025},
  doi     = {10.1038/s41586-025-08744-2},
}"""

# Pictures of games are small and sharp: enlarged without a blur.
PAGE_STYLE = """
:root{color-scheme:light dark;--page:#f4f6f8;--card:#fff;--ink:#1a1f26;--quiet:#586270;--edge:#dde2e8;--accent:#0072b2}
@media (prefers-color-scheme:dark){:root{--page:#0e1115;--card:#171b21;--ink:#e7eaee;--quiet:#9da7b3;--edge:#2a3038;
--accent:#56b4e9;--line-0:#56b4e9}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main,footer{max-width:1120px;margin:0 auto;padding:0 16px}
header{padding-top:28px}h1{font-size:clamp(24px,5vw,34px);line-height:1.15;margin:2px 0 4px;overflow-wrap:anywhere}
h2{font-size:19px;margin:34px 0 12px}h3{font-size:14px;margin:0 0 8px}p{margin:0 0 8px}
.quiet,.eyebrow,dt,td+td+td,figcaption,footer{color:var(--quiet)}
.eyebrow{font-size:13px;letter-spacing:.04em;text-transform:uppercase;margin:0}
.card,details{background:var(--card);border:1px solid var(--edge);border-radius:12px;padding:14px;min-width:0}
.chart-card{padding:6px 4px}
.grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr))}
.pair{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));align-items:start}
.watch{display:grid;gap:14px;align-items:start}
@media (min-width:800px){.watch{grid-template-columns:1fr 2fr}.watch figure+figure{grid-column:2}}
.tiles{display:grid;gap:12px;margin:18px 0 0;grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}
.tiles div{background:var(--card);border:1px solid var(--edge);border-radius:12px;padding:12px 14px}
.tiles dt{font-size:13px}.tiles dd{margin:0;font-size:22px;font-weight:600;line-height:1.25;overflow-wrap:anywhere}
.tiles small{display:block;font-size:12.5px;font-weight:400;color:var(--quiet)}
progress{appearance:none;display:block;width:100%;height:8px;border:0;border-radius:4px;overflow:hidden;
margin:14px 0 6px;background:var(--edge)}
progress::-webkit-progress-bar{background:var(--edge)}progress::-webkit-progress-value{background:var(--accent)}
progress::-moz-progress-bar{background:var(--accent)}
table{border-collapse:collapse;width:100%;font-size:14px}td{padding:5px 10px 5px 0;vertical-align:top;
border-top:1px solid var(--edge);overflow-wrap:anywhere}tr:first-child td{border-top:0}
td:first-child{white-space:nowrap;color:var(--quiet)}.folder td:first-child{color:inherit}
.folder td+td{text-align:right;white-space:nowrap}
.folder td+td+td{text-align:left;white-space:normal}
figure{margin:0}figure video,figure img{display:block;margin:0 auto;max-width:100%;border-radius:8px;background:#000;
width:100%;height:auto;max-height:480px;object-fit:contain}figure .game{image-rendering:pixelated}
figcaption{font-size:13.5px;margin-top:8px}figure .drawn{max-height:none;background:#fff}
pre{margin:0;padding:10px 12px;overflow-x:auto;background:var(--page);border:1px solid var(--edge);border-radius:8px;
font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}pre+h3,p+h3{margin-top:16px}
pre.command{white-space:pre-wrap;overflow-wrap:anywhere}.card+p{margin-top:10px}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
summary{cursor:pointer;font-weight:600}details pre{margin-top:12px;max-height:70vh}details{margin-top:14px}
.card details{border:0;padding:0;background:none;margin-top:8px}.card summary{font-size:13.5px;margin-bottom:8px}
a{color:var(--accent)}footer{font-size:13px;padding:28px 16px 36px}.middle,.narrow{display:none}
@media (max-width:920px){.wide{display:none}.middle{display:block}}
@media (max-width:520px){.middle{display:none}.narrow{display:block}.tiles dd{font-size:19px}}
"""


def document(title: str, head: Iterable[str], parts: Iterable[str]) -> str:
    """A whole page around its head and its parts, which are HTML.

    Example:
        >>> page = document("A & B", ["<h1>A</h1>"], ["<p>text</p>"])
        >>> page[:15], "<title>A &amp; B</title>" in page
        ('<!DOCTYPE html>', True)
    """
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{ALLOWED}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>\n<style>{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n<header>",
            *head,
            "</header>\n<main>",
            *parts,
            *citation(),
            f"</main>\n<footer>{footer()}</footer>\n</body>\n</html>\n",
        ]
    )


def film(folder: Path, kind: str, title: str, command: str = "", imagined: bool = False) -> Iterator[str]:
    """The newest picture of a kind, with its still where it has one; else the command for it, if there is one."""
    newest = newest_picture(folder / kind, imagined)
    if newest is None and not command:
        return
    yield f'<figure class="card"><h3>{title}</h3>'
    if newest is None:
        yield f'<p>There is none yet. This makes one:</p><pre class="command">{escape(command)}</pre></figure>'
        return
    look, named, still = "game" if kind == "videos" else "drawn", step_of(newest), newest.with_suffix(".png")
    yield embedded(newest, f"{title} at step {named}", look)
    yield f"<figcaption>Step {escape(named)}, <code>{escape(f'{kind}/{newest.name}')}</code></figcaption>"
    if newest != still and still.is_file():
        yield f"<details><summary>Its moments</summary>{embedded(still, f'{title} at step {named}', look)}</details>"
    yield "</figure>"


def embedded(path: Path, title: str, look: str) -> str:
    """A film or picture inside the page, or a link to one that is too large; ``look`` is its class."""
    count = path.stat().st_size
    if count > MOST_BYTES:
        link = f'<a href="{escape(quote(f"{path.parent.name}/{path.name}"))}">It lies beside the page</a>'
        return f"<p>{link}: with {bytes_in_words(count)} it is too large to lie inside.</p>"
    data = f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    title, look = escape(title), escape(look)
    if path.suffix == ".mp4":
        return f'<video class="{look}" aria-label="{title}" controls loop muted playsinline src="{data}"></video>'
    return f'<img class="{look}" alt="{title}" src="{data}">'


def newest_picture(folder: Path, imagined: bool = False) -> Path | None:
    """By its name, which begins with the step; of several with one name the best kind.

    What was imagined freely is not taken for a dream: it has no truth beside it. It is found by its own word.
    """
    rank = {kind: -place for place, kind in enumerate(KINDS)}
    found = [path for path in folder.glob("[!.]*") if path.suffix in KINDS and path.stat().st_size]
    found = [path for path in found if path.stem.endswith(IMAGINED) == imagined]
    return max(found, key=lambda path: (path.stem, rank[path.suffix]), default=None)


def step_of(path: Path) -> str:
    """The step in the name of a picture."""
    digits = path.stem.partition("-")[0]
    return f"{int(digits):,}" if digits.isdecimal() else path.stem


def citation() -> Iterator[str]:
    """Whose work this is."""
    software = (
        "@software{dreamer_torchrl,\n  title   = {dreamer_torchrl: DreamerV3 for PyTorch, made of TorchRL parts},\n"
        f"  author  = {{The dreamer_torchrl authors}},\n  version = {{{version('dreamer_torchrl')}}},\n}}"
    )
    yield '<h2>Cite</h2>\n<div class="card"><p>The algorithm is that of Hafner, Pasukonis, Ba and Lillicrap, '
    yield "&ldquo;Mastering diverse control tasks through world models&rdquo;, Nature 2025.</p>"
    yield f"<pre>{escape(PAPER)}\n\n{escape(software)}</pre></div>"


def footer() -> str:
    """When and by what the page was written."""
    programs = ", ".join(f"{name} {version(name)}" for name in ("dreamer_torchrl", "torch", "torchrl"))
    return f"Written {time.strftime('%Y-%m-%d %H:%M %Z')} by {escape(programs)}."
