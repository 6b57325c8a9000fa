"""Markdown with formulas as HTML that needs no script and no network.

nbconvert leaves TeX to MathJax, which its pages load from the internet. Every current browser renders
MathML by itself, so formulas are converted once, here.
"""

import html
import re
from xml.etree import ElementTree

from bs4 import BeautifulSoup
from latex2mathml.converter import convert_to_element
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

# What latex2mathml does not know, in words that it does.
_REWRITES = [
    (r"(?<!\\)((?:\\\\)*)\\\n", r"\1\\ "),  # a space at the end of a line
    (r"\\(begin|end)\{aligned\}", r"\\\1{split}"),
    (r"\\(begin|end)\{(gather\*?|gathered)\}", r"\\\1{matrix}"),
    (r"\\operatorname\*", r"\\operatorname"),
    (r"\\operatorname\{arg\\[,;: ]?(max|min)\}", r"\\arg\1"),
    (r"\\arg\s*\\(max|min)(?![a-zA-Z])", r"\\arg\1"),
    (r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}"),
    (r"\\(mathbf|mathbb|mathcal|mathrm|mathsf|boldsymbol|bm)\s*([A-Za-z0-9])(?![A-Za-z0-9])", r"\\\1{\2}"),
    (r"\\(nonumber|notag)\b|\\label\{[^}]*\}", ""),
]
_BARS = {"|", "‖", "∥", "∣"}
_SCRIPTS = {"msub", "msup", "msubsup", "munder", "mover", "munderover"}
_LIMITS = {"max", "min", "sup", "inf", "lim", "arg\u2009max", "arg\u2009min", "∑", "∏"}


def to_mathml(tex: str, *, block: bool) -> str:
    """Return a formula as MathML, or as its source in ``<code>`` if the converter cannot read it."""
    rewritten = tex.strip()
    for pattern, replacement in _REWRITES:
        rewritten = re.sub(pattern, replacement, rewritten)
    try:
        math = convert_to_element(rewritten, display="block" if block else "inline")
    except Exception:  # the converter's errors have no common class but Exception
        math = None
    # The converter passes on commands that it does not know as if they were letters.
    if math is None or any("\\" in (node.text or "") for node in math.iter()):
        return f'<code class="tex">{html.escape(tex.strip(), quote=False)}</code>'
    math.attrib.pop("xmlns")  # HTML needs none, and nbconvert would make prefixes of it in headings
    for node in math.iter():
        node.text = html.unescape(node.text or "") or None  # it writes signs as entities
    _space_words(math)
    _place_limits(math)
    return ElementTree.tostring(math, encoding="unicode")


def _place_limits(math: ElementTree.Element) -> None:
    """Set what belongs below a sum or a maximum there, where a formula has a line of its own."""
    for node in math.iter():
        if node.tag in ("msub", "msubsup") and node[0].text in _LIMITS:
            node.tag = "munder" if node.tag == "msub" else "munderover"
            node[0].set("movablelimits", "true")  # within a line the browser puts it to the side
        elif node.tag == "mo" and node.text in _BARS and "stretchy" not in node.attrib:
            node.set("stretchy", "false")  # a bar has the height of its line unless after \left or \right


def _space_words(math: ElementTree.Element) -> None:
    """Set the space around the names of functions as TeX does: a thin one, none before a bracket."""
    for row in math.iter():
        if row.tag in _SCRIPTS:
            continue
        for before, child, after in zip([None, *row], row, [*row[1:], None], strict=False):
            word = child[0] if child.tag in _SCRIPTS else child
            name = (word.text or "").replace("\u2009", "")
            if word.tag in ("mi", "mo") and len(name) > 1 and name.isalpha():
                word.tag = "mo"
                opening = after is None or next(after.itertext(), "") in ("(", "[")
                word.set("lspace", "0" if before is None or before.tag == "mo" else "0.167em")
                word.set("rspace", "0" if opening else "0.167em")


class MathMLRenderer(IPythonRenderer):
    """nbconvert's renderer of markdown cells, with formulas as MathML."""

    def block_math(self, body: str) -> str:
        return f'<span class="formula">{to_mathml(body, block=True)}</span>'

    def inline_math(self, body: str) -> str:
        return to_mathml(body, block=False)

    def latex_environment(self, name: str, body: str) -> str:
        # align and equation number their lines, which nothing refers to on these pages
        starred = name if name.endswith("*") or name not in ("align", "equation") else f"{name}*"
        return self.block_math(rf"\begin{{{starred}}}{body}\end{{{starred}}}")


def markdown_to_html(source: str, attachments: dict | None = None, *, anchors: bool = False) -> str:
    """Return markdown as HTML; with ``anchors`` each heading gets a link to itself."""
    renderer = MathMLRenderer(
        escape=False, attachments=attachments, exclude_anchor_links=not anchors, anchor_link_text="#"
    )
    return MarkdownWithMath(renderer=renderer).render(source)


def text_of_markdown(source: str) -> str:
    """Return what markdown says, without its marks, on one line."""
    return " ".join(BeautifulSoup(markdown_to_html(source), "html.parser").get_text().split())
