"""Draw what needs what: ``python docs/course_map.py`` writes docs/course-map.svg.

Pages that notebooks/ does not have are dashed.
"""

from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_name("course-map.svg")

# Number: (words, column, row, what it needs).
PAGES = {
    "00": ("start here", 0, 4, []),
    "01": ("what is pooling", 1, 4, ["00"]),
    "02": ("the landscape", 2, 4, ["01"]),
    "03": ("SimPool", 3, 4, ["02"]),
    "04": ("tournament", 3, 0, ["00", "02"]),
    "05": ("where the query starts", 4, 1, ["03"]),
    "06": ("LayerNorm", 4, 2, ["03"]),
    "07": ("exponent", 4, 3, ["03"]),
    "08": ("heads, similarity, attention", 4, 4, ["03"]),
    "09": ("costs", 4, 5, ["03"]),
    "10": ("attention maps", 4, 6, ["03"]),
    "11": ("localisation, background", 5, 6, ["10"]),
    "12": ("real photographs", 4, 7, ["03"]),
    "13": ("explorer", 4, 8, ["03"]),
    "14": ("attentive probing", 4, 0, ["04"]),
    "15": ("without labels", 4, 9, ["03"]),
    "A1": ("counting FLOPs", 2, 6, ["02"]),
}
FIRST_LECTURE = {"00", "01", "03"}  # the route of 90 minutes, filled
WIDE, HIGH, BESIDE, BELOW, MARGIN = 162, 44, 198, 56, 10

STYLE = """
text { font: 13px system-ui, "Segoe UI", "Noto Sans", sans-serif; fill: #1e2327; }
.number { font-weight: 700; font-size: 15px; }
rect { fill: #ffffff; stroke: #606a73; stroke-width: 1.3; }
.first { fill: #dcebf9; stroke: #0b62a8; }
.waits { stroke-dasharray: 5 4; }
path { fill: none; stroke: #606a73; stroke-width: 1.3; }
.tip { fill: #606a73; stroke: none; }
.aside { stroke-dasharray: 2 4; }
@media (prefers-color-scheme: dark) {
  text { fill: #e3e6e8; }
  rect { fill: #1c2024; stroke: #98a2ab; }
  .first { fill: #15324b; stroke: #7cb8f2; }
  path { stroke: #98a2ab; }
  .tip { fill: #98a2ab; stroke: none; }
}"""


def course_map() -> str:
    """The picture, as SVG that follows the reader's light or dark."""
    there = {path.stem[:2] for path in (ROOT / "notebooks").glob("*.ipynb")}
    width = 2 * MARGIN + 5 * BESIDE + WIDE
    height = 2 * MARGIN + 9 * BELOW + HIGH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="what">',
        f'<title id="what">{escape(in_words())}</title>',
        f"<style>{STYLE}\n</style>",
    ]
    for number, (_, column, row, needs) in PAGES.items():
        x, y = MARGIN + column * BESIDE, MARGIN + row * BELOW + HIGH / 2
        for need in needs:
            _, before, above, _ = PAGES[need]
            x0, y0 = MARGIN + before * BESIDE + WIDE, MARGIN + above * BELOW + HIGH / 2
            kind = ' class="aside"' if number == "A1" else ""
            if before == column:  # below
                x0, y0, middle = x0 - WIDE / 2, y0 + HIGH / 2, x + WIDE / 2
                parts.append(f'<path{kind} d="M{x0} {y0} V{y - HIGH / 2 - 7}"/>')
                parts.append(f'<path class="tip" d="M{middle - 4} {y - HIGH / 2 - 8} h8 l-4 8 z"/>')
                continue
            turn = x - (BESIDE - WIDE) / 2
            parts.append(f'<path{kind} d="M{x0} {y0} H{turn - 8} Q{turn} {y0} {turn} {(y0 + y) / 2} T{x - 7} {y}"/>')
            parts.append(f'<path class="tip" d="M{x - 8} {y - 4} v8 l8 -4 z"/>')
    for number, (words, column, row, _) in PAGES.items():
        x, y = MARGIN + column * BESIDE, MARGIN + row * BELOW
        kind = " ".join([*(["first"] if number in FIRST_LECTURE else []), *([] if number in there else ["waits"])])
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" rx="8"/>')
        parts.append(f'<text class="number" x="{x + 10}" y="{y + HIGH / 2 + 5}">{number}</text>')
        lines = [words] if len(words) < 18 else words.rsplit(" ", 1) if words.count(" ") == 1 else _halves(words)
        for line, text in enumerate(lines):
            down = HIGH / 2 + 5 + 16 * (line - (len(lines) - 1) / 2)
            parts.append(f'<text x="{x + 38}" y="{y + down}">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _halves(words: str) -> list[str]:
    """Two lines of about the same length."""
    cuts = [place for place, letter in enumerate(words) if letter == " "]
    cut = min(cuts, key=lambda place: abs(place - len(words) / 2))
    return [words[:cut], words[cut + 1 :]]


def in_words() -> str:
    """What the picture says, for who does not see it."""
    return "What needs what. " + " ".join(
        f"{number}, {words}, needs {' and '.join(needs)}." if needs else f"{number}, {words}, comes first."
        for number, (words, _, _, needs) in PAGES.items()
    )


if __name__ == "__main__":
    PICTURE.write_text(course_map(), encoding="utf-8", newline="\n")
    print(PICTURE)
