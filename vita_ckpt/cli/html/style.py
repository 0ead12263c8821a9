"""The style of a page: light and dark, on paper, and 320 pixels wide."""

from __future__ import annotations

from typing import Final

_LIGHT: Final = """
--bg: #fff; --fg: #1b1f24; --soft: #57606a; --line: #c4ccd4; --panel: #f5f7f9; --link: #0a4a9e;
--error: #8e0b1a; --error-bg: #ffe3e0; --warning: #6b4a00; --warning-bg: #fff1cc;
--note: #0b3d82; --note-bg: #e3efff; --good: #0f5323; --good-bg: #dff5e3;
--p0: #cfe3ff; --p1: #ffd9b0; --p2: #c9efd4; --p3: #e6d6ff;
--p4: #ffd3e2; --p5: #fff0a8; --p6: #c8f0f2; --p7: #e1e4e8;
--h1: #8fb8ea; --h2: #6098dd; --h3: #3877c6; --h4: #1c58a3; --h5: #0d3b78; --h6: #7a0f2b;
"""
_DARK: Final = """
--bg: #0f1419; --fg: #e6e8eb; --soft: #a3adb8; --line: #3a424c; --panel: #171d24; --link: #8cc2ff;
--error: #ffc9c4; --error-bg: #4d151b; --warning: #ffe2a0; --warning-bg: #473400;
--note: #c5dcff; --note-bg: #15315c; --good: #bff0c9; --good-bg: #123a1d;
--p0: #1f3a63; --p1: #633d12; --p2: #1d4a2c; --p3: #43306b;
--p4: #6b2743; --p5: #574a08; --p6: #14494d; --p7: #3a414a;
--h1: #2f5f96; --h2: #3f7dc0; --h3: #5b9be0; --h4: #86b8ee; --h5: #b5d5f8; --h6: #ff9db0;
"""
# The colours of parts (p), also as keys of tables (k), and the steps of a heat map (h).
_COLOURS: Final = "\n".join(
    (
        *(f".p{n} {{ fill: var(--p{n}) }} .k{n} {{ background: var(--p{n}) }}" for n in range(8)),
        *(f".h{n} {{ fill: var(--h{n}) }}" for n in range(1, 7)),
        *(
            f".{word} {{ color: var(--{word}); background: var(--{word}-bg) }}"
            for word in ("error", "warning", "note", "good")
        ),
    )
)
_RULES: Final = """
* { box-sizing: border-box }
body { margin: 0; background: var(--bg); color: var(--fg); font: 1rem/1.5 system-ui, sans-serif }
header, main, footer { max-width: 70rem; margin: 0 auto; padding: 0 1rem }
header { padding-top: 1.5rem }
footer { padding: 1rem; color: var(--soft); font-size: .875rem }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; overflow-wrap: anywhere }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem }
p, li { margin: .4rem 0; overflow-wrap: anywhere }
a { color: var(--link) }
code, .name { font-family: ui-monospace, monospace; font-size: .875em; overflow-wrap: anywhere }
.soft { color: var(--soft) }
.skip { position: absolute; left: -99rem }
.skip:focus { left: 1rem; top: .25rem; background: var(--bg) }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; margin: .75rem 0;
  list-style: none }
ul.plain { padding-left: 1.1rem; margin: .4rem 0 }
.scroll { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: 6px;
  margin: .5rem 0 }
.fit { width: fit-content; padding: .6rem }
table { border-collapse: collapse; width: 100%; font-size: .875rem }
caption { text-align: left; padding: .5rem .6rem; color: var(--soft) }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; font-weight: 400;
  border-top: 1px solid var(--line) }
thead th { font-weight: 600; background: var(--panel); white-space: nowrap }
td.r, th.r { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
th.name, td.name { min-width: 13rem; max-width: 34rem }
th.first { min-width: 19rem }
td.text { min-width: 14rem }
th[scope=row]:not(.name) { white-space: nowrap }
.badge { display: inline-block; padding: 0 .5em; border-radius: 1em; font-size: .8125rem;
  font-weight: 600; white-space: nowrap }
.key { display: inline-block; width: .9em; height: .9em; border: 1px solid var(--soft);
  border-radius: 2px; margin-right: .4em; vertical-align: -.1em }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: 0 .75rem }
details[open] { padding-bottom: .5rem }
summary { padding: .5rem 0; cursor: pointer; overflow-wrap: anywhere }
figure { margin: .5rem 0 }
figcaption { color: var(--soft); font-size: .875rem }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1rem;
  margin: .5rem 0 }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
svg { display: block; height: auto; min-width: 34rem; width: 100% }
svg.narrow { width: 36rem }
svg.map { width: auto; min-width: 0 }
svg text { fill: var(--fg); font: 13px system-ui, sans-serif }
svg .small { font-size: 11px }
svg .soft { fill: var(--soft) }
svg .strong { font-weight: 600 }
.area { stroke: var(--bg); stroke-width: 2 }
.box { fill: var(--panel); stroke: var(--soft) }
.done { fill: var(--note-bg); stroke: var(--note) }
.rule { stroke: var(--line) }
.edge { stroke: var(--soft); fill: none; stroke-width: 1.5 }
.tip { fill: var(--soft) }
.bar { fill: var(--h3) }
.cell { fill: none; stroke: var(--line) }
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0 }
  dd { margin-bottom: .4rem }
  th.name, td.name, th.first { min-width: 9.5rem }
}
"""
# Paper has no colour scheme, nothing to unfold and nothing to scroll.
_PAPER: Final = """
body { font-size: 10pt }
nav, .skip { display: none }
.scroll { overflow: visible; border: 0 }
svg, svg.map, svg.narrow { min-width: 0; max-width: 100% }
table { font-size: 8pt }
th, td, thead th, td.r, th.r, th[scope=row]:not(.name) { white-space: normal; padding: .2rem .3rem;
  overflow-wrap: anywhere }
th.name, td.name, th.first, td.text { min-width: 0 }
details::details-content { content-visibility: visible; block-size: auto }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact }
tr, figure { break-inside: avoid }
h2, h3 { break-after: avoid }
"""

STYLE: Final = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
{_RULES}
{_COLOURS}
@media print {{
:root {{ {_LIGHT} }}
{_PAPER} }}
"""
