"""Reads the fenced blocks of model text, in the forms that CommonMark has and in others that models write.

CommonMark's blocks have fences of three or more backticks or tildes, may be indented, in a list or in a quote, and are
closed by a fence that is at least as long. Also read are:

- a block that closes at the end of the answer's line (`[1, 2]` and the fence), or with text after the fence;
- a block on one line, its name first, or with its name and its content on the opening line;
- a block that is not closed: it ends where the next one with a known name opens, or at the end of the text;
- a block that only a shorter fence closes: it ends there.

In a block of Python (a program, an input, an output), nothing inside a string closes it, so that a docstring may show a
block. Elsewhere in Python there are no backticks, so a line that begins or ends with a fence closes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from executor.newlines import plain_newlines

_ALIASES = {"py": "python", "py3": "python", "python3": "python", "inputs": "input", "outputs": "output"}
_PYTHON = frozenset({"python", "input", "output"})
_OURS = _PYTHON | {"message"}

_MARKERS = r"[ \t]*(?:(?:>|[-*+]|\d{1,3}[.)])[ \t]*)*"
"""Indentation, and the marks of quotes and list items."""
_FENCE = rf"^(?P<markers>{_MARKERS})(?P<run>`{{3,}}|~{{3,}})(?P<info>[^\n]*)$"
_AT_LINE_END = r"(?P<last>(?<!`)`{3,}+|(?<!~)~{3,}+)[ \t]*$"
_TRIPLE = r"(?P<triple>\"\"\"|''')"
_STRING_OR_COMMENT = r"(?P<skipped>\"(?:\\.|[^\"\\\n])*+\"?|'(?:\\.|[^'\\\n])*+'?|#[^\n]*)"
_FENCES = re.compile(_FENCE, re.MULTILINE)
_IN_PROSE = re.compile(rf"{_FENCE}|{_AT_LINE_END}", re.MULTILINE)
_IN_PYTHON = re.compile(rf"{_FENCE}|{_AT_LINE_END}|{_TRIPLE}|{_STRING_OR_COMMENT}", re.MULTILINE)
_CLOSING = {quote: re.compile(rf"(?<!\\){quote}") for quote in ('"""', "'''")}
_INFO = re.compile(r"[ \t]*(?P<word>[A-Za-z_]*[0-9]?)(?P<rest>.*)")


class Block(NamedTuple):
    """One fenced block; `name` in lower case, aliases resolved, "" where the fence had none."""

    name: str
    text: str


class _Fence(NamedTuple):
    """A line that begins with a fence: its place, and its parts."""

    start: int
    end: int
    markers: str
    run: str
    info: str
    """The text that follows the run of backticks or tildes."""
    name: str
    """The name of the block, if one opens here."""
    rest: str
    """The text that follows the name."""

    @classmethod
    def of(cls, line: re.Match[str]) -> _Fence:
        info = _INFO.match(line["info"])
        assert info is not None  # it matches any line
        word = info["word"].lower()
        plain = word if word in _ALIASES else word.rstrip("0123456789")  # `input1` is an input
        return cls(*line.span(), line["markers"], line["run"], line["info"], _ALIASES.get(plain, plain), info["rest"])

    @property
    def is_inline(self) -> bool:
        """Whether it ends on its own line."""
        return self.run[0] in self.info

    @property
    def is_spaced(self) -> bool:
        return self.info[:1] in (" ", "\t")

    @property
    def opens_ours(self) -> bool:
        """Whether a block with a known name opens here. After a space, `Output is 5` is a sentence."""
        sentence = self.is_spaced and len(self.rest.split()) > 1
        return self.name in _OURS and not self.is_inline and not sentence

    @property
    def opens_other(self) -> bool:
        """Whether a block with another name opens here, such as `sh`."""
        return not self.is_spaced and len(self.info.split()) == 1 and not self.is_inline and not self.opens_ours

    @property
    def opens_none(self) -> bool:
        """Whether no more than a sentence follows."""
        return not (self.opens_ours or self.opens_other or self.is_inline)


class _End(NamedTuple):
    """The end of a block's text, and the position from which to search for the next block."""

    text: int
    after: int


def blocks(text: str) -> list[Block]:
    """The fenced blocks of `text`, in order."""
    text = plain_newlines(text)
    found: list[Block] = []
    position = 0
    while line := _FENCES.search(text, position):
        opening = _Fence.of(line)
        position = opening.end
        if opening.name in _OURS and (value := _between_fences(opening)):
            found.append(Block(opening.name, value))
        if opening.is_inline or (opening.run[0] == "~" and not opening.opens_ours):
            continue
        width = len(opening.markers)
        if depth := opening.markers.count(">"):
            text, position = _unquoted(text[position:], depth), 0
            width = len(opening.markers.rpartition(">")[2].removeprefix(" "))
        start = min(position + 1, len(text))
        end = _end_of(text, start, opening)
        content = _dedented(text[start : end.text], width).strip("\n")
        found.append(Block(opening.name, content if content.strip() else _after_name(opening) or content))
        position = end.after
    return found


def _between_fences(opening: _Fence) -> str:
    """The text of a block that closes on its opening line; "" if this is none."""
    content, closed, _ = opening.rest.partition(opening.run)
    return content.strip() if closed and content[:1] in (" ", "\t") else ""


def _after_name(opening: _Fence) -> str:
    """The text of a block that has it on its opening line; "" if this is none, or a number such as `input 1:`."""
    spaced = opening.name in _OURS and opening.rest[:1] in (" ", "\t")
    return opening.rest.strip() if spaced and not opening.rest.rstrip().endswith(":") else ""


def _unquoted(text: str, depth: int) -> str:
    """`text`, which begins with the end of a line, without the marks of a quote on the lines up to the quote's end."""
    mark = re.compile(rf"[ \t]*(?:>[ ]?){{1,{depth}}}")
    lines = text.split("\n")
    for index, line in enumerate(lines[1:], start=1):
        if not (marks := mark.match(line)):
            break
        lines[index] = line[marks.end() :]
    return "\n".join(lines)


def _dedented(text: str, width: int) -> str:
    """`text` without the indentation that all of its lines have, up to `width` columns."""
    lines = text.split("\n")
    width = min([width, *(len(line) - len(line.lstrip(" \t")) for line in lines if line.strip())])
    return "\n".join(line[width:] for line in lines) if width else text


def _end_of(text: str, start: int, opening: _Fence) -> _End:
    """Where the block ends whose text starts at `start`."""
    is_python = opening.name in _PYTHON
    shorter: _End | None = None
    unclosed: set[str] = set()
    position = start
    while found := (_IN_PYTHON if is_python else _IN_PROSE).search(text, position):
        position = found.end()
        if found.lastgroup == "triple" and (quote := found["triple"]) not in unclosed:
            closing = _closing(text, position, quote)
            if closing < 0:
                unclosed.add(quote)
            elif _is_string(text, position, closing, opening.run[0]):
                position = closing + len(quote)
        if found.lastgroup in ("triple", "skipped"):
            continue
        run = found["run"] or found["last"]
        if run[0] != opening.run[0]:
            continue
        long = len(run) >= len(opening.run)
        if found["last"]:
            if not is_python and run in text[text.rfind("\n", 0, found.start()) + 1 : found.start()]:
                continue  # of a pair within the line
            end, closes = _End(found.start(), found.end()), is_python  # the value's own white space is its reader's
        else:
            fence = _Fence.of(found)
            opens = fence.opens_ours or (is_python and fence.opens_other)
            if not is_python and (fence.opens_other or fence.is_inline):
                continue  # a part of the prose
            if fence.name == opening.name and not fence.rest.strip() and not text[fence.end :].strip():
                opens = False  # a fence that closes, and says once more what
            end, closes = _End(max(start, fence.start - 1), fence.start if opens else fence.end), True
            if long and fence.opens_ours and opens:
                return shorter or end
        if long and closes:
            return end
        shorter = shorter or end
    return shorter or _End(len(text), len(text))


def _closing(text: str, start: int, quote: str) -> int:
    """Where the string is closed whose content starts at `start`; -1 if nowhere."""
    found = _CLOSING[quote].search(text, start)
    return found.start() if found else -1


def _is_string(text: str, start: int, end: int, mark: str) -> bool:
    """Whether what is between two triple quotes is one string, and not the end of one block and the start of another.

    Then it holds the fences of whole blocks only, or of blocks with other names than ours. `mark`: the fences' letter.
    """
    inner: _Fence | None = None
    for line in _FENCES.finditer(text, start, end):
        fence = _Fence.of(line)
        ends_inner = inner is not None and fence.run.startswith(inner.run)
        if fence.is_inline:
            continue
        if inner is None:
            inner = fence if fence.run[0] == mark or fence.opens_ours else None
        elif fence.opens_ours and (inner.opens_none or ends_inner or inner.run[0] != mark):
            return False
        elif fence.opens_none and ends_inner:
            inner = None
    return inner is None or not inner.opens_ours
