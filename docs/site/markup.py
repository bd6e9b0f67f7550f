"""From Markdown, comments and code to HTML: mathematics is kept for KaTeX, names become links, and what is quoted is
compared with the sources."""
import html
import json
import os
import pathlib
import re
import subprocess
import sys

import markdown

import cpp
from sources import LIBRARY_FOLDERS

MATH = re.compile("\ue002(\\d+)\ue003")
# What Markdown must not see: blocks, code and mathematics.
NOT_MARKDOWN = re.compile(
    r"(?P<fence>^```)(?P<language>\w*)\n(?P<body>.*?)^```$"
    r"|(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)"
    r"|\$\$(?P<display>.+?)\$\$"
    r"|\$(?=\S)(?P<inline>(?:[^$\n]|\n(?!\n))+?)(?<=\S)\$", re.M | re.S)
# What stands out in a comment: `code`, x_{t-1}, --flag, [N, C], file.h, snake_case or Class::name, and call().
NAMES = re.compile(
    r"(`[^`]+`|\b\w+_\{[^}]*\}|(?<![\w-])--[a-z][\w-]*|\[[\w., +*/-]+\](?=\W|$)|\b[\w/]+\.(?:h|cpp|cu)\b"
    r"|\b[A-Za-z]\w*(?:_\w+|::\w+)+(?:\(\))?|\b\w+\(\))")
PRINTED_TABLE = re.compile(r"^<!-- printed by (\S+) -->\n\|.*\n\|.*\n((?:\|.*\n)+)", re.M)
HERE = pathlib.Path(__file__).resolve().parent


def escape(text):
    return html.escape(text, quote=False)


def link(address, content):
    return f'<a href="{address}">{content}</a>'


def pre(content):
    return f'<pre tabindex="0">{content}</pre>'


def plain(markup):
    """The words of a piece of HTML, without its mathematics."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", MATH.sub("", markup)))).strip()


class Markup:
    def __init__(self, sources):
        self.sources = sources
        self.formulas, self.problems = [], []
        self.pictures = {}  # address -> file

    # Mathematics: a token for now, as KaTeX takes long to start and a page a moment.

    def math(self, tex, display, where):
        self.formulas.append((tex.strip(), display, where))
        token = f"\ue002{len(self.formulas) - 1}\ue003"
        return f'<div class="math" tabindex="0">{token}</div>' if display else token

    def render_math(self):
        """The HTML of every formula, in order."""
        formulas = json.dumps([(tex, display) for tex, display, _ in self.formulas])
        run = subprocess.run(["node", HERE / "katex_batch.js"], input=formulas, text=True, capture_output=True,
                             check=False, env={**os.environ, "NODE_PATH": "/usr/share/nodejs"})
        if run.returncode != 0:
            sys.exit(f"docs: katex does not run\n{run.stderr}")
        rendered = json.loads(run.stdout)
        for (tex, _, where), (_, error) in zip(self.formulas, rendered):
            if error:
                self.problems.append(f"{where}: LaTeX: {error}   in   {tex}")
        return [markup for markup, _ in rendered]

    # Code.

    def highlight(self, text, path):
        """Code of a file, line by line; a call or a type leads to its definition in the library or in the same file."""
        local = set(re.findall(r"\bauto (\w+) = ", text))

        def definition(name, is_call):
            place = self.sources.find(name) if (is_call or name[:1].isupper()) and name not in local else None
            near = (path, "tutorials/tutorial.", *LIBRARY_FOLDERS)
            if place and place[1].kind in ("function", "type") and place[0].startswith(near):
                return self.sources.line(place)
            return None
        return cpp.highlight(text, pathlib.Path(path).suffix, definition, self.sources.equation)

    def listing(self, path, first, code, below=""):
        """Code of a file as a block with a link to where it stands."""
        lines = "\n".join(self.highlight(code, path))
        return (f'<div class="code"><a class="where" href="/code/{path}.html#L{first}">{path}:{first}</a>'
                f'{pre(lines)}{below}</div>')

    def code(self, text, where):
        address, exists = self.sources.resolve(text, where)
        if not exists:
            self.problems.append(f"{where}: `{text}` names nothing that exists")
        breakable = re.sub("(::|[_/])(?=.)", r"\1<wbr>", escape(text))  # in a table
        code = f"<code>{breakable}</code>"
        return link(address, code) if address else code

    def block(self, language, body, where):
        """A fenced block of Markdown."""
        if language == "math":
            return self.math(body, True, where)
        exists = {"text": lambda line: any(line in output for output in self.sources.output.values()),
                  "cpp": lambda line: " ".join(line.split()) in self.sources.code_lines}
        exists = exists.get(language, self.sources.command_exists)
        self.problems += [f"{where}: no source has what a block quotes:   {line.strip()}"
                          for line in body.split("\n") if line.strip() and not exists(line.strip())]
        return pre("\n".join(self.highlight(body.rstrip(), f"block.{language}")))

    # Prose.

    def markdown(self, text, where):
        stash = []

        def keep(match):
            if match["fence"]:
                stash.append(self.block(match["language"], match["body"], where))
            elif match["code"]:
                stash.append(self.code(match["code"].strip(), where))
            else:
                stash.append(self.math(match["display"] or match["inline"], bool(match["display"]), where))
            token = f"\ue000{len(stash) - 1}\ue001"
            return f"\n\n{token}\n\n" if match["fence"] or match["display"] else token

        for path, rows in re.findall(PRINTED_TABLE, text):
            self.problems += [f"{where}: {path} does not print   {row}"
                              for row in rows.splitlines() if not self.sources.printed(row, path)]

        def restore(text):
            return re.sub("\ue000(\\d+)\ue001", lambda match: stash[int(match[1])], text)

        def restore_link(match):  # code within a link is no link itself
            return match[1] + re.sub("</?a[^>]*>", "", restore(match[2])) + "</a>"

        out = markdown.markdown(NOT_MARKDOWN.sub(keep, text), extensions=["tables", "sane_lists", "smarty"])
        out = re.sub(r'(href|src)="([^"]+)"', lambda m: f'{m[1]}="{self.target(m[2], where)}"', out)
        out = re.sub(r"<p>(\ue000\d+\ue001)</p>", r"\1", out)
        out = restore(re.sub(r"(<a [^>]*>)(.*?)</a>", restore_link, out, flags=re.S))
        out = re.sub("\ue002(\\d+)\ue003[.,;:)]+", self.unbroken, out)
        out = out.replace("<table>", '<div class="table" tabindex="0"><table>').replace("</table>", "</table></div>")
        return self.link_equations(out)

    def unbroken(self, match):
        """A formula with what follows it, which must not begin a line; a long formula may break."""
        return f'<span class="unbroken">{match[0]}</span>' if len(self.formulas[int(match[1])][0]) < 40 else match[0]

    def inline(self, text, where):
        return self.markdown(text, where).removeprefix("<p>").removesuffix("</p>")

    def document(self, path):
        """A Markdown file without its title."""
        return self.markdown(re.sub(r"\A(<!--.*?-->\s*)?# .*\n", "", self.sources.text[path]), path)

    def link_equations(self, markup):
        """Links `eq. 11` and `tutorial 8` in running text: not in code, links, headings or strong words."""
        def tutorial(match):
            name = next((name for name in self.sources.tutorials if int(name[:2]) == int(match[1])), None)
            return link(f"/tutorials/{name}.html", match[0]) if name else match[0]
        parts = re.split(r"(<(a|code|pre|strong|h\d)\b.*?</\2>|<[^>]*>)", markup, flags=re.S)
        # Of each three parts the first is text, the second what stands between, the third the second's tag.
        return "".join(re.sub(r"\b[Tt]utorial (\d+)\b", tutorial, cpp.link_equations(part, self.sources.equation))
                       if at % 3 == 0 else part for at, part in enumerate(parts) if at % 3 != 2)

    def target(self, href, where):
        """The address of what a link names, relative to its file."""
        if re.match(r"https?:|#", href):
            return href
        path, _, anchor = href.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(where), path))
        address = self.sources.address(path)
        if pathlib.Path(path).suffix == ".png":
            address = f"/images/{pathlib.Path(path).name}"
            if path in self.sources.files:
                self.pictures[address] = self.sources.root / path
            address = address if address in self.pictures else None
        if address is None:
            self.problems.append(f"{where}: the link to {href} leads nowhere")
        return f"{address}#{anchor}" if anchor else address or "#"

    def comment(self, lines):
        """A header's comment: paragraphs, lists, and formulas or tables where it is indented."""
        blocks = []  # [kind, lines]
        for line in lines:
            if not line.strip():
                blocks.append(["", []])
            elif item := re.match(r"\s*- (.*)", line):
                blocks.append(["li", [item[1]]])
            elif blocks and blocks[-1][0] == "li" and line.startswith(" "):
                blocks[-1][1].append(line.strip())
            else:
                kind = "pre" if line.startswith("  ") else "p"
                if not blocks or blocks[-1][0] != kind:
                    blocks.append([kind, []])
                blocks[-1][1].append(line)
        out = ""
        for kind, content in blocks:
            if kind == "pre":
                out += pre(escape("\n".join(content)))
            elif kind:
                out += f"<{kind}>{self.names(' '.join(content))}</{kind}>"
        out = re.sub(r"((?:<li>.*?</li>)+)", r"<ul>\1</ul>", out, flags=re.S)
        return self.link_equations(out)

    def names(self, text):
        """A comment's words. Names, flags and shapes become code, and links if they are known; x_{t-1} is set."""
        def name(text):
            if "_{" in text:
                return self.math(text, False, "a comment")
            address, _ = self.sources.resolve(text)
            code = f"<code>{escape(text)}</code>"
            return link(address, code) if address else code
        parts = NAMES.split(text)
        return "".join(name(part.strip("`")) if at % 2 else escape(part) for at, part in enumerate(parts))
