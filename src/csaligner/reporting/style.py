"""The style sheet of the report: one column of cards, system fonts, light and dark, wide and narrow."""

from __future__ import annotations

from .palette import DARK, LIGHT, METHOD_COLOURS, variables

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
.wrap{max-width:1120px;margin:0 auto;padding:2.5rem 1.25rem 3rem}
h1{font-size:1.05rem;font-weight:600;color:var(--soft);margin:0 0 .75rem}
.lead{font-size:1.5rem;line-height:1.35;font-weight:600;letter-spacing:-.01em;margin:0 0 .5rem;
 max-width:52rem;text-wrap:pretty}
.more{font-size:1.05rem;max-width:52rem}
.about,.note,figcaption{color:var(--soft);font-size:.875rem}
.about{margin:0}
nav{margin:1.25rem 0 0;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;font-size:.875rem}
a{color:var(--image);text-underline-offset:.2em}
section{margin:2.75rem 0 0}
h2{font-size:1.25rem;margin:0 0 .25rem;letter-spacing:-.01em}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
p{margin:.25rem 0 .75rem;max-width:48rem}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:1rem;margin:1.75rem 0 0}
.tile b{display:block;font-size:1.75rem;line-height:1.2;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{display:block;font-size:.875rem;color:var(--soft)}
.tile .better{color:var(--good);font-weight:600}.tile .worse{color:var(--bad);font-weight:600}
.scroll{overflow-x:auto;padding:0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.55rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule);
 vertical-align:top}
thead th{font-weight:600;font-size:.8rem;color:var(--soft);vertical-align:bottom}
thead abbr{text-decoration:none}
tbody th{text-align:left;white-space:normal;min-width:6.5rem;max-width:11rem;
 font-weight:500;position:sticky;left:0;background:var(--card)}
tbody tr:last-child>*{border-bottom:0}
thead th:first-child{text-align:left;position:sticky;left:0;background:var(--card)}
.main tr.ours>*{background:color-mix(in srgb,var(--good) 9%,var(--card))}
td strong{font-weight:750}
td small{display:block;color:var(--soft);font-size:.75rem}
.unit{display:block;font-weight:400}
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}
.grid.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
figure{margin:0}
figure svg{display:block;width:100%;height:auto;max-width:34rem;margin:0 auto}
figure.wide svg{max-width:56rem}
figcaption{padding:0 0 .5rem}
figcaption b{display:block;color:var(--ink);font-size:1rem}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;padding:0;margin:.5rem 0 .75rem;
 font-size:.875rem}
.legend svg{width:26px;height:12px;vertical-align:-1px;margin-right:.4rem}
.query{margin:0 0 1rem}
.query h4{margin:0 0 .75rem;font-size:1rem;font-weight:600;display:flex;gap:.75rem;align-items:center}
.query h4 img{width:56px;height:56px}
.method{display:grid;grid-template-columns:8rem 1fr;gap:.25rem .75rem;padding:.6rem 0 0;
 border-top:1px solid var(--rule)}
.method+.method{margin-top:.6rem}
.method h5{margin:0;font-size:.875rem;font-weight:600}
.method h5 small{display:block;font-weight:400;color:var(--soft)}
.hits{display:flex;flex-wrap:wrap;gap:.5rem;list-style:none;margin:0;padding:0}
.hit{width:80px;font-size:.7rem;line-height:1.25}
.tilebox{position:relative;width:80px;height:80px;border-radius:8px;border:1px solid var(--rule);
 background:#fff;overflow:hidden;display:flex;align-items:center;justify-content:center}
.tilebox img{max-width:100%;max-height:100%;width:72px;height:72px;object-fit:contain}
.hit.text .tilebox{background:var(--page);color:var(--ink);padding:18px 6px 6px;text-align:center}
.tilebox q{display:-webkit-box;-webkit-line-clamp:3;quotes:none;-webkit-box-orient:vertical;overflow:hidden;
 overflow-wrap:anywhere}
.mixed .hit.image .tilebox{padding-top:14px}
.mixed .tilebox img{width:58px;height:58px}
.badge{position:absolute;top:0;left:0;font-size:.62rem;padding:1px 5px;border-bottom-right-radius:6px;
 color:#fff;background:var(--soft)}
.hit.image .badge{background:#0072b2}.hit.text .badge{background:#b04c00}
.hit.right .tilebox{border:3px solid var(--good)}
.tick{position:absolute;right:0;bottom:0;background:var(--good);color:var(--card);font-weight:700;
 padding:0 5px;border-top-left-radius:6px}
.under{display:block;color:var(--soft);margin-top:2px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.under-table{margin-top:.75rem;max-width:none}
details{margin:1rem 0 0}
summary{cursor:pointer;font-weight:600;font-size:.9rem;padding:.25rem 0}
.kv td,.kv th{white-space:normal;overflow-wrap:anywhere;text-align:left;position:static;padding:.3rem .7rem}
.kv th{width:40%;font-weight:400;color:var(--soft)}
code,.kv td{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.8rem}
footer{margin:3rem 0 0;padding:1rem 0 0;border-top:1px solid var(--rule);color:var(--soft);font-size:.875rem}
@media (max-width:640px){.wrap{padding:1.5rem 1rem 2rem}.lead{font-size:1.2rem}.card{padding:.75rem}
 .scroll{padding:0}.method{grid-template-columns:1fr}.method h5 small{display:inline;margin-left:.5rem}
 .hit,.tilebox{width:74px}.tilebox{height:74px}.tilebox img{width:64px;height:64px}
 .mixed .tilebox img{width:52px;height:52px}tbody th{max-width:7rem}}
@media print{body{background:#fff}.card{break-inside:avoid}nav{display:none}}
"""


def style_sheet() -> str:
    dots = "".join(f".{m}{{color:var(--{m})}}" for m in METHOD_COLOURS)
    return (
        f":root{{color-scheme:light dark;{variables(LIGHT)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}"
        f"{_RULES}{dots}"
    )
