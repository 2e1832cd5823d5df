"""The report's style sheet."""

STYLE = """\
:root {
  --ground: #fbfbfd; --sheet: #ffffff; --ink: #1a2030; --dim: #5a6478; --line: #dfe3ec; --stripe: #f5f7fb; --accent: #2456c4;
  --warn-ground: #fff4d6; --warn-ink: #6b4a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #11151d; --sheet: #181d28; --ink: #e4e8f1; --dim: #98a2b8; --line: #2c3444; --stripe: #1d2330; --accent: #8fb3ff;
    --warn-ground: #3a2f10; --warn-ink: #ffdf94;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1280px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
.kind { margin: 0; color: var(--dim); letter-spacing: .08em; text-transform: uppercase; font-size: .75rem; }
h1 { margin: 0 0 1rem; font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.75rem 0 .75rem; font-size: 1.2rem; border-bottom: 1px solid var(--line); padding-bottom: .35rem; }
h3 { margin: 1.5rem 0 .4rem; font-size: 1rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: .6rem 1.5rem; margin: 0; }
dt { color: var(--dim); font-size: .78rem; }
dd { margin: 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: 1.5rem 0 0; padding: .6rem 0; border-block: 1px solid var(--line); }
a { color: var(--accent); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
.warning { background: var(--warn-ground); color: var(--warn-ink); padding: .6rem .9rem; border-radius: 6px; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; background: var(--sheet); margin: 1rem 0 .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
.wide table { width: 100%; }
caption { text-align: left; font-weight: 600; padding: .55rem .7rem; }
th, td { padding: .32rem .7rem; text-align: right; white-space: nowrap; vertical-align: top; }
thead th { color: var(--dim); font-weight: 500; vertical-align: bottom; border-bottom: 1px solid var(--line); }
tbody th, .left { text-align: left; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--sheet); }
.wide thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--sheet); }
.wide tbody tr:nth-child(even) > * { background: var(--stripe); }
.long { white-space: pre-wrap; min-width: 22rem; overflow-wrap: anywhere; }
.maps { display: flex; flex-wrap: wrap; gap: 1rem; }
.map {
  background: var(--sheet); border: 1px solid var(--line); border-radius: 8px;
  border-collapse: separate; border-spacing: 2px; padding: .2rem .4rem .5rem;
}
.map caption { padding: .2rem; max-width: 24rem; overflow-wrap: anywhere; }
.map th, .map td { padding: .22rem .5rem; border: 0; }
.map tbody th { background: none; font-weight: 500; color: var(--dim); position: static; text-align: right; }
.map td { border-radius: 3px; min-width: 2.6rem; text-align: center; }
.map .none { color: var(--dim); }
.legend { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; color: var(--dim); font-size: .82rem; margin: .2rem 0 .7rem; }
.ramp { display: inline-block; width: 11rem; height: .7rem; border-radius: 3px; }
.notes { color: var(--dim); font-size: .84rem; margin: .2rem 0 1rem; padding-left: 1.1rem; }
section > ul { padding-left: 1.2rem; }
pre {
  background: var(--sheet); border: 1px solid var(--line); border-radius: 8px; padding: .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
summary { cursor: pointer; color: var(--accent); }
figure { margin: 1rem 0; background: var(--sheet); border: 1px solid var(--line); border-radius: 8px; padding: .6rem; }
figure svg { display: block; width: 100%; height: auto; max-width: 900px; margin: auto; }
figcaption { color: var(--dim); font-size: .84rem; text-align: center; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .dim { fill: var(--dim); }
svg .grid { stroke: var(--line); }
svg .dot { fill: var(--accent); fill-opacity: .55; }
svg .best { fill: var(--accent); fill-opacity: 1; }
svg .front { stroke: var(--accent); fill: none; stroke-dasharray: 4 4; }
@media print { nav, summary { display: none; } .wide { overflow: visible; } main { max-width: none; } }
"""
