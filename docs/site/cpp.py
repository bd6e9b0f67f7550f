"""Reads C++ formatted as ours, without a compiler: what a file defines and where, its prose, its code, its colours."""
import functools
import html
import re
import textwrap
from typing import NamedTuple

from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Literal, Name, Number, String

LEXERS = {".h": "cpp", ".cpp": "cpp", ".cu": "cuda", ".py": "python", ".sh": "bash", ".cmake": "cmake", ".toml": "toml",
          ".json": "json", ".md": "markdown", ".txt": "cmake", ".js": "javascript", ".css": "css", ".html": "html"}
# The first that fits; what fits none has no colour.
COLOURS = [(Comment.Preproc, "p"), (Comment.PreprocFile, "s"), (Comment, "c"), (Keyword.Type, "t"), (Keyword, "k"),
           (Name.Builtin, "t"), (String, "s"), (Number, "m"), (Literal, "m")]
SUFFIXES = (".h", ".cpp", ".cu")
EQUATIONS = re.compile(r"\b[Ee]q\. (?:DDIM )?\d+(?:-\d+)?(?:(?:, | and )\d+(?:-\d+)?)*(?!\w|\.\d)")


class Symbol(NamedTuple):
    name: str  # "q_sample", "Schedule::beta", "Posterior.MeanFollowsEq11"
    line: int  # from 1
    kind: str  # function, type, value or test
    is_definition: bool


def blank(text):
    """The text with comments and the inside of strings replaced by spaces; positions stay."""
    def spaces(match):
        return re.sub(r"[^\n]", " ", match[0])
    comments, strings, characters = r"//[^\n]*|/\*.*?\*/", r'R"\(.*?\)"|"(?:\\.|[^"\\\n])*"', r"'(?:\\.|[^'\\\n])'"
    return re.sub(f"{comments}|{strings}|{characters}", spaces, text, flags=re.S)


def statement(text, start):
    """From `start` to the ; or { that ends a declaration or begins its body, and which of the two it is."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] in "([":
            depth += 1
        elif text[at] in ")]":
            depth -= 1
        elif text[at] in ";{}" and depth == 0:
            return text[start:at], text[at]
    return text[start:], ""


def symbols(text):
    """What a source declares or defines at namespace and class scope. Relies on the layout that clang-format gives:
    a body is indented deeper than its head."""
    found, code, at, skip_to = [], blank(text), 0, 0
    scopes = [(0, "")]  # (indentation of members, prefix of their names)
    for number, line in enumerate(code.splitlines(keepends=True), 1):
        start, at = at, at + len(line)
        indent = len(line) - len(line.lstrip(" "))
        head = line.strip()
        if not head or head.startswith(("#", "namespace", "using namespace", "friend", "return")) or start < skip_to:
            continue
        while len(scopes) > 1 and head.startswith("}") and indent <= scopes[-1][0] - 2:
            scopes.pop()
        if indent != scopes[-1][0] or not re.match(r"[A-Za-z_~]", head):
            continue
        text_of, end = statement(code, start)
        skip_to = start + len(text_of)
        words = re.sub(r"\[\[.*?\]\]|^\s*template\s*<[^(]*?>\s*(?=\w)", " ", text_of, flags=re.S).strip()
        prefix = scopes[-1][1]
        test = re.match(r"TEST(?:_F|_P)?\((\w+),\s*(\w+)\)", words)
        kind = re.match(r"(?:class|struct|union|enum class|enum)\s+(\w+)", words)
        alias = re.match(r"using\s+(\w+)\s*=", words)
        function = re.match(r"[^=]*?((?:\w+::)*(?:operator\s*[^\s\w(]+|operator\(\)|~?\w+))\s*\(", words, re.S)
        if test:
            found.append(Symbol(f"{test[1]}.{test[2]}", number, "test", True))
        elif kind and end == "{":
            found.append(Symbol(prefix + kind[1], number, "type", True))
            if not words.startswith("enum") and not re.match(r"[^\n]*\}", code[skip_to:]):
                scopes.append((indent + 2, f"{prefix}{kind[1]}::"))
        elif alias:
            found.append(Symbol(prefix + alias[1], number, "type", True))
        elif kind:
            continue
        elif function:
            number += text_of[:max(text_of.find(function[1] + "("), 0)].count("\n")  # its return type may stand above
            found.append(Symbol(prefix + function[1], number, "function", end == "{" or "= default" in words))
        elif (value := re.match(r"[^=]*?(\w+)\s*(?:=|\[|$)", words, re.S)) and " " in words:
            found.append(Symbol(prefix + value[1], number, "value", True))
    return found


def excerpt(text, line):
    """The lines of the definition that begins at `line`, with the comment above it: (first line number, text)."""
    lines = text.splitlines()
    first = last = line - 1
    while first > 0 and lines[first - 1].startswith(("//", "template")):
        first -= 1
    while not lines[last].startswith("}") and not (last == line - 1 and lines[last].endswith("}")):
        last += 1
    return first + 1, "\n".join(lines[first:last + 1])


def tagged_paragraph(first, code, identifier):
    """Of a definition with the equation's tag in it and not above, the lines around it of its depth or deeper, up to an
    empty one: the tag's line number, the first line's, text."""
    lines = code.splitlines()
    tag = next(at for at, line in enumerate(lines) if identifier in tagged_equations(line))
    depth = re.match(" *", lines[tag])[0]
    start, end = tag, tag + 1
    while lines[start - 1].startswith(depth) and lines[start - 1].strip():
        start -= 1
    while lines[end].startswith(depth) and lines[end].strip():
        end += 1
    return first + tag, first + start, textwrap.dedent("\n".join(lines[start:end]))


def tagged_equations(text):
    """The ids of all equations that a text refers to, ranges spelt out."""
    ids = set()
    for tag in EQUATIONS.findall(text):
        for first, last in re.findall(r"((?:DDIM )?\d+)(?:-(\d+))?", tag):
            ids.add(first)
            if last:
                ids.update(str(n) for n in range(int(first), int(last) + 1))
    return ids


@functools.cache
def colour_of(kind):
    return next((name for known, name in COLOURS if kind in known), "")


def highlight(text, suffix, link=lambda name, is_call: None, equation=lambda id: None):
    """One line of HTML for each line of the text. `link` gives a name's address or None, `equation` an equation's."""
    lexer = get_lexer_by_name(LEXERS.get(suffix, "text"), stripnl=False, ensurenl=False)
    tokens = list(lexer.get_tokens(text.rstrip("\n") + "\n"))
    lines = [""]
    for at, (kind, value) in enumerate(tokens):
        colour = colour_of(kind)
        address = None
        if kind in Name and suffix in SUFFIXES:
            before = "".join(token for _, token in tokens[max(at - 3, 0):at])
            after = tokens[at + 1][1] if at + 1 < len(tokens) else ""
            if not before.endswith((".", "->", "::")):
                address = link(value, after.startswith(("(", "<")))
        for part, piece in enumerate(value.split("\n")):
            if part:
                lines.append("")
            if not piece:
                continue
            piece = html.escape(piece, quote=False)
            if kind in Comment:
                piece = link_equations(piece, equation)
            if address:
                piece = f'<a href="{address}">{piece}</a>'
            lines[-1] += f'<span class="{colour}">{piece}</span>' if colour else piece
    return lines[:-1]


def link_equations(text, equation):
    """Links each number of `Eq. 4-6 and 14`, the first together with the word."""
    def linked(match):
        address = equation(match[1])
        return f'<a class="eq" href="{address}">{match[0]}</a>' if address else match[0]
    return EQUATIONS.sub(lambda tag: re.sub(r"(?:[Ee]q\. )?((?:DDIM )?\d+)", linked, tag[0]), text)


def tutorial_rows(text):
    """[(prose lines, first line of the code, code)] of a tutorial: prose is what begins with // at column 0."""
    rows, prose, code, first = [], [], [], 1
    for number, line in enumerate(text.splitlines() + ["//"], 1):
        if re.match(r"//(?!/)", line):
            if any(code):
                rows.append((prose, first, "\n".join(code).rstrip()))
                prose, code = [], []
            prose.append(re.sub("^// ?", "", line))
        elif line or any(code):
            if not any(code):
                first = number
            code.append(line)
        else:
            prose.append("")
    return rows


def header_rows(text):
    """The same of a header: prose is every comment between declarations. Without its private parts."""
    rows, prose, code, first = [], [], [], 1
    scopes, hidden = [0], False
    for number, line in enumerate(text.splitlines() + ["//"], 1):
        indent = len(line) - len(line.lstrip())
        if len(scopes) > 1 and line.startswith(" " * (scopes[-1] - 2) + "}"):
            scopes.pop()
            hidden = False
        elif re.match(r" *(private|protected|public):", line):
            hidden = "private" in line
            if hidden:
                while code and not code[-1]:
                    code.pop()
        if hidden or re.match(r"#(pragma|include)|namespace|}  // namespace", line):
            continue
        if line.lstrip().startswith("//") and indent == scopes[-1]:
            if any(code):
                rows.append((prose, first, "\n".join(code).rstrip()))
                prose, code = [], []
            prose.append(re.sub("^ *//+ ?", "", line))
            continue
        if line and any(code) and not code[-1] and indent == scopes[-1] and line.strip()[0] != "}":
            rows.append((prose, first, "\n".join(code).rstrip()))  # the comment is not about what a blank line parts
            prose, code = [], []
        if re.match(r" *(template <.*> )?(class|struct) \w+[^;]*\{$", line):
            scopes.append(indent + 2)
        if line or any(code):
            if not any(code):
                first = number
            code.append(line)
        elif prose:
            prose.append("")
    if any(prose[:-1]):
        rows.append((prose[:-1], first, ""))
    return rows
