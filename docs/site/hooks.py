"""What the site does to the pages beside mkdocs: formulas become MathML, links that leave docs/ become text.

The pages are read in the repository first, where formulas are TeX and `../README.md` is a link. On the site there is no
file at the other end of such a link, unless `repo_url` is set.
"""

from __future__ import annotations

import html
import posixpath
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Points links that leave docs/ at the repository; where the site knows none, leaves their text."""

    def replace(found: re.Match[str]) -> str:
        text, target = found.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{path})" if config.repo_url else text

    return OUTSIDE.sub(replace, markdown)


def on_page_content(content: str, *, page: Any, config: Any, files: Any) -> str:
    """Turns TeX into MathML, which needs no script and no font from anywhere."""

    def replace(found: re.Match[str]) -> str:
        tag, bracket, tex = found.groups()
        formula = convert(html.unescape(tex).strip(), display="block" if bracket == "[" else "inline")
        return f'<div class="formula">{formula}</div>' if tag == "div" else formula

    return FORMULA.sub(replace, content)
