"""How our pages look."""

from html import escape

STYLE = """
:root { --ink: #22303c; --faint: #6b7a87; --line: #e3e8ec; --blue: #2b6ca3; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 40px 64px; background: white; min-height: 100vh; }
h1 { font-size: 26px; margin: 0; line-height: 1.25; }
h2 { font-size: 19px; margin: 48px 0 12px; padding-top: 20px; border-top: 1px solid var(--line); }
.note { color: var(--faint); font-size: 14px; overflow-wrap: anywhere; }
.warning { background: #fdf5e6; border-left: 4px solid #e69f00; padding: 10px 16px; margin: 12px 0; font-size: 15px; }
.warning ul { margin: 4px 0; padding-left: 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin: 24px 0; }
.tiles div { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.tiles b { display: block; font-size: 22px; font-weight: 600; color: var(--blue); }
.tiles span { color: var(--faint); font-size: 13px; line-height: 1.3; display: block; }
figure { margin: 20px 0 32px; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--faint); font-size: 14px; max-width: 760px; margin-top: 6px; }
pre, code { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: #f5f7f9; border-radius: 8px; padding: 14px 16px; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--line); line-height: 1.25; }
th, td { padding: 5px 12px; text-align: right; font-variant-numeric: tabular-nums; }
td { border-bottom: 1px solid var(--line); }
table.names td { text-align: left; overflow-wrap: anywhere; }
table.names td:first-child { color: var(--faint); white-space: nowrap; }
table.report td { vertical-align: top; white-space: nowrap; }
table.report td:first-child, table.report th:first-child { text-align: left; }
table.report small { color: var(--faint); }
h3 { font-size: 16px; margin: 32px 0 8px; }
summary { cursor: pointer; color: var(--blue); margin: 12px 0; }
@media print { body { background: white; } main { padding: 0; } figure { break-inside: avoid; } }
"""


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Tells the browser, too, that a page needs no other file."""


def whole_page(title: str, body: str) -> str:
    """Return a page that needs no other file, under its title."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n<h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )
