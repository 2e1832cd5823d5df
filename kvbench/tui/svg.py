"""Making Textual's SVG robust: some viewers drop the spaces around a text, so that columns would slip.

Each text is moved to where its first visible character stands and loses the spaces around it. Runs of
braille are cut in pieces, since a viewer that takes them from another font gives them another width.
"""

from __future__ import annotations

import re

CELL = 12.2
"""Width of a cell in the SVG that Rich writes, in its units."""
PIECE = 8
"""Cells of braille in one text."""
_SPACE = "&#160;"
_BRAILLE = re.compile(r"[\u2800-\u28ff]")
_CHARACTER = re.compile(r"&#?\w+;|.")
_TEXT = re.compile(rf'<text ([^>]*?)x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)"([^>]*)>((?:{_SPACE})*)(.*?)((?:{_SPACE})*)</text>')


def tidy(svg: str) -> str:
    """The same picture without leading and trailing spaces in its texts."""
    return _TEXT.sub(_trimmed, svg)


def _trimmed(match: re.Match[str]) -> str:
    head, x, y, length, tail, before, text, after = match.groups()
    left, right = len(before) // len(_SPACE), len(after) // len(_SPACE)
    start, width = float(x) + left * CELL, float(length) - (left + right) * CELL
    if not _BRAILLE.search(text):
        return f'<text {head}x="{start:g}" y="{y}" textLength="{width:g}"{tail}>{text}</text>'
    characters = _CHARACTER.findall(text)
    pieces = []
    for i in range(0, len(characters), PIECE):
        piece = characters[i : i + PIECE]
        pieces.append(f'<text {head}x="{start + i * CELL:g}" y="{y}" textLength="{len(piece) * CELL:g}"{tail}>{"".join(piece)}</text>')
    return "".join(pieces)
