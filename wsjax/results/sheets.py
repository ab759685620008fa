"""A table as a file: Markdown, and LaTeX that needs no package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsjax.errors import printable
from wsjax.results.captions import Caption
from wsjax.storage.files import write_whole

MARK = "†"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", MARK: r"$^\dagger$", "<": "$<$", ">": "$>$",
    "|": "$|$",
}  # fmt: skip


class Sheet(NamedTuple):
    """A table: its columns' names, its rows of texts, and how many columns on the left are names, not numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1

    @property
    def markdown(self) -> str:
        """As Markdown has it."""
        rule = [":--" if i < self.names else "--:" for i in range(len(self.columns))]
        lines = [list(map(_markdown, self.columns)), rule, *(list(map(_markdown, row)) for row in self.rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    @property
    def latex(self) -> str:
        """As LaTeX has it, a plain tabular."""
        align = "l" * self.names + "r" * (len(self.columns) - self.names)
        head, *body = (" & ".join(map(_latex, row)) + r" \\" for row in (self.columns, *self.rows))
        lines = [rf"\begin{{tabular}}{{{align}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}"]
        return "\n".join(lines) + "\n"


def save_captioned(sheet: Sheet, caption: Caption, stem: Path) -> None:
    """Writes stem.md, stem.tex, and the caption as stem.txt."""
    save(sheet, stem)
    write_whole(stem.with_name(f"{stem.name}.txt"), caption.text + "\n")


def save(sheet: Sheet, stem: Path) -> None:
    """Writes stem.md and stem.tex."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind, text in (("md", sheet.markdown), ("tex", sheet.latex)):
        write_whole(stem.with_name(f"{stem.name}.{kind}"), text)


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_<`])", r"\\\1", printable(text))


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in printable(text))
    return re.sub(r"^-(?=\d)", "$-$", escaped)
