#!/usr/bin/python3
"""Builds the site into one static folder that asks no other host for anything. scripts/docs.sh calls it.

    build.py --build BUILD_DIR --out DIR [--playground DIR]

BUILD_DIR holds the programs: `mutilde`, for its help, and the tutorials that draw pictures. The exit code is 1, with
one line a fault, if LaTeX does not render or a page names a file, function, flag or command that does not exist, links
to nothing, or quotes code or output that is not what the sources have.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field

import cpp
from markup import HERE, MATH, Markup, escape, link, plain, pre
from sources import LIBRARIES, Sources, equation_anchor, slug

ROOT = HERE.parents[1]
KATEX = pathlib.Path("/usr/share/javascript/katex/katex.min.css")
FONTS = {"KaTeX": "/usr/share/fonts/truetype/katex", "CharisSIL": "/usr/share/fonts-sil-charis/woff2",
         "JetBrainsMono": "/usr/share/fonts/truetype/jetbrains-mono"}
NAVIGATION = [("tutorials/index.html", "Tutorials"), ("equations.html", "Equations"), ("why-eq-11.html", "Why eq. 11?"),
              ("clipping.html", "Clipping"), ("design.html", "Design"), ("performance.html", "Performance"),
              ("commands.html", "Commands"), ("library/index.html", "Library"), ("code/index.html", "Sources")]


@dataclass
class Page:
    url: str
    title: str
    body: str
    layout: str = "text"  # the class of <main>: text, rows, code or home
    above: str = ""       # links in front of the title
    sections: list = field(default_factory=list)  # (id, heading, level)


def files_list(entries):
    """A list of (address, name, what it is)."""
    return '<dl class="files">' + "".join(f'<dt><a href="{address}"><code>{name}</code></a></dt><dd>{words}</dd>'
                                          for address, name, words in entries) + "</dl>"


class Site:
    def __init__(self, root, build, playground=None):
        self.sources = Sources(root)
        self.markup = Markup(self.sources)
        self.root, self.build, self.playground = pathlib.Path(root), pathlib.Path(build), playground
        self.sources.has_playground = bool(playground)
        self.pages, self.search = {}, []
        self.derivations = {}  # equation -> (rank, order, address, tutorial's title)

    def make(self):
        commands = self.commands()  # first: the other pages link to its flags
        self.tutorial_pages()
        self.equation_map()
        for path in sorted(self.sources.text):
            if re.fullmatch(r"docs/[\w-]+\.md|CONTRIBUTING\.md", path) and path != "docs/equations.md":
                title = re.search(r"^# (.*)", self.sources.text[path], re.M)[1]
                self.add(Page(self.sources.address(path)[1:], title, self.markup.document(path)))
        self.add(Page("commands.html", "Commands", commands))
        self.library()
        self.code_pages()
        self.index_names()
        self.home()

    def add(self, page):
        """Gives headings their anchors, and puts the page and its sections into the search."""
        used = set()

        def anchor(match):
            level, attributes, text = match.groups()
            given = re.search(r'id="([^"]+)"', attributes)
            name = given[1] if given else slug(plain(text)) or "section"
            while name in used:
                name += "-"
            used.add(name)
            page.sections.append((name, text, int(level)))
            inner = text if "<a " in text else f'<a href="#{name}">{text}</a>'
            return f'<h{level} id="{name}">{inner}</h{level}>'
        page.body = re.sub(r"<h([23])([^>]*)>(.*?)</h\1>", anchor, page.body, flags=re.S)
        self.pages[page.url] = page
        if page.layout == "code":
            return
        first, *others = re.split(r'(?=<h[23] id=")', page.body)
        self.index(page.title, page.url, "page", plain(first))
        if page.url not in ("equations.html", "index.html"):  # equations have entries of their own
            for (name, text, _), piece in zip(page.sections, others):
                self.index(plain(text), f"{page.url}#{name}", page.title, plain(piece))

    def index(self, title, url, kind, text=""):
        self.search.append([title, url, kind, text[:800]])

    # Prose on the left, on the right the code that it speaks of.

    def rows(self, rows, path, prose_of, names_in=lambda first, code: ("", "")):
        out = ""
        for prose, first, code in rows:
            # What is short stays in view while its longer neighbour passes.
            classes = "row" + " short-code" * (0 < code.count("\n") < 36) + " short-prose" * (len(prose) < 16)
            anchors, places = names_in(first, code)
            right = self.markup.listing(path, first, code, places) if code else ""
            out += f'<div class="{classes}">{anchors}<div class="prose">{prose_of(prose)}</div>{right}</div>\n'
        return out

    def tutorial_pages(self):
        names = list(self.sources.tutorials)
        titles = {name: re.search(r"^// # (.*)", self.sources.text[path], re.M)[1]
                  for name, path in self.sources.tutorials.items()}
        for order, (name, path) in enumerate(self.sources.tutorials.items()):
            text = self.sources.text[path]
            if re.search(r"^// !\[", text, re.M):
                for picture in self.run_tutorial(name).glob("*.png"):
                    self.markup.pictures[f"/images/{picture.name}"] = picture
            rows = cpp.tutorial_rows(text)
            rows[0] = ([line for line in rows[0][0] if not line.startswith("# ")], *rows[0][1:])
            body = (f'<p class="about">Run it: <code>build/release/tutorials/{name} --out out/tutorials</code>. The '
                    f'page is its source, {link(f"/code/{path}.html", path)}, and a test holds what it quotes to what it '
                    'prints.</p>')
            body += self.rows(rows, path, lambda prose: self.markup.markdown("\n".join(prose), path))
            steps = "".join(link(f"/tutorials/{names[at]}.html", f"{label} {escape(titles[names[at]])}")
                            for at, label in ((order - 1, "&larr;"), (order + 1, "Next:")) if 0 <= at < len(names))
            page = Page(f"tutorials/{name}.html", titles[name], f'{body}<nav class="steps">{steps}</nav>', "rows",
                        link("/tutorials/index.html", "Tutorials"))
            self.add(page)
            self.find_derivations(page, order)
        self.add(Page("tutorials/index.html", "Tutorials", self.markup.document("tutorials/README.md")))

    def run_tutorial(self, name):
        """The folder with the tutorial's pictures, made anew if its program is newer."""
        folder, program = self.build / "tutorials" / "pictures" / name, self.build / "tutorials" / name
        if not program.exists():
            sys.exit(f"docs: {program} is not built")
        stamp = folder / "printed.txt"
        if not stamp.exists() or stamp.stat().st_mtime < program.stat().st_mtime:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            run = subprocess.run([program, "--out", folder], capture_output=True, text=True, check=True)
            stamp.write_text(run.stdout, encoding="utf-8")
        return folder

    def find_derivations(self, page, order):
        """Which section derives an equation: one with it in its heading, else one with mathematics that names it."""
        pieces = re.split(r'(?=<h2 id=")', page.body)
        headings = [("", page.title, 1)] + [section for section in page.sections if section[2] == 2]
        for piece, (name, heading, _) in zip(pieces, headings):
            prose = re.sub(r'<div class="code">.*?</pre>', "", piece, flags=re.S) if 'class="math"' in piece else ""
            for rank, text in enumerate((plain(heading), plain(prose))):
                for identifier in cpp.tagged_equations(text):
                    found = (rank, order, f"/{page.url}#{name}".rstrip("#"), page.title)
                    self.derivations[identifier] = min(self.derivations.get(identifier, found), found)

    # The equations.

    def equation_row(self, equation, level=2):
        """An equation beside the code that implements it."""
        identifier, facts, listings = equation["id"], defaultdict(str), ""
        where = f"docs/equations.toml: Eq. {identifier}"
        for function in equation["functions"]:
            name, path = function["name"], function["file"]
            definitions = [(symbol.line, *cpp.excerpt(self.sources.text[path], symbol.line)) for place, symbol
                           in self.sources.symbols.get(name, ()) if place == path and symbol.is_definition]
            tagged = [definition for definition in definitions if identifier in cpp.tagged_equations(definition[2])]
            if not tagged:
                self.markup.problems.append(f"{where}: {path} does not define {name} with the tag")
                continue
            line, first, code = tagged[0]
            if identifier not in cpp.tagged_equations("\n".join(code.splitlines()[:line - first])):
                line, first, code = cpp.tagged_paragraph(first, code, identifier)
            name = f"<code>{escape(name)}</code> {path}:{line}"
            facts["Code"] += f'<dd>{link(f"/code/{path}.html#L{line}", name)}</dd>'
            listings += self.markup.listing(path, first, code)
        for test in equation["tests"]:
            if place := self.sources.find(test):
                facts["Proved by"] += f'<dd>{link(self.sources.line(place), f"<code>{test}</code>")}</dd>'
            else:
                self.markup.problems.append(f"{where}: there is no test {test}")
        if identifier in self.derivations:
            _, _, address, title = self.derivations[identifier]
            facts["Derived in"] += f'<dd>{link(address, f"tutorial {escape(title)}")}</dd>'
        else:
            self.markup.problems.append(f"{where}: no tutorial derives it")
        anchor = equation_anchor(identifier)
        title = self.markup.inline(equation["title"], where)
        facts = "".join(f"<dt>{label}</dt>{values}" for label, values in facts.items())
        return (f'<section class="row equation"><div class="prose"><h{level} id="{anchor}">'
                f'<span class="number">Eq. {identifier}</span> {title}</h{level}>'
                + self.markup.math(equation["latex"], True, where)
                + self.markup.markdown(equation.get("note", ""), where)
                + f'<dl>{facts}</dl></div><div class="listings">{listings}</div></section>')

    def chips(self):
        identifiers = [equation["id"] for equation in self.sources.equations]
        chips = "".join(link(self.sources.equation(identifier), identifier) for identifier in identifiers)
        return f'<nav class="chips" aria-label="Equations">{chips}</nav>'

    def equation_map(self):
        intro = re.search(r"^# .*\n((?:.|\n)*?)Search the code", self.sources.text["docs/equations.md"], re.M)[1]
        intro = self.markup.markdown(intro, "docs/equations.md") + (
            "<p>Each stands beside the code that implements it. In the sources, each tag such as <code>Eq. 11</code> "
            "leads back here.</p>")
        rows = "".join(self.equation_row(equation) for equation in self.sources.equations)
        self.add(Page("equations.html", "The equations, and where they live",
                      f'<div class="lead">{intro}</div>{self.chips()}{rows}', "rows"))
        for equation in self.sources.equations:
            names = " ".join(function["name"] for function in equation["functions"])
            title = equation["title"].replace("$", "")
            self.index(f"Eq. {equation['id']}: {title}", self.sources.equation(equation["id"])[1:], "equation",
                       f"{names} {equation.get('note', '')}")

    # The reference.

    def commands(self):
        """From the program's own help."""
        program = self.build / "app" / "mutilde"
        if not program.exists():
            sys.exit(f"docs: {program} is not built")

        def help_of(*command):
            return subprocess.run([program, *command, "--help"], capture_output=True, text=True, check=True).stdout

        def words(text):
            return self.markup.link_equations(self.markup.names(" ".join(text.split())))
        top = help_of()
        body = pre(escape(top))
        for command in re.findall(r"^  (\w+)  ", top.split("Commands:")[1].split("\n\n")[0], re.M):
            intro, usage, *blocks = help_of(command).split("\n\n")
            body += f'<h2 id="{command}">mutilde {command}</h2><p>{words(intro)}</p>{pre(escape(usage))}'
            for block in blocks:
                title, _, lines = block.partition(":\n")
                if not lines:
                    body += f"<p>{words(block)}</p>"
                    continue
                body += f'<h3 id="{command}-{slug(title)}">{title}</h3>'
                if title == "Examples":
                    body += pre(escape(lines))
                    continue
                body += '<dl class="flags">'
                for left, right in re.findall(r"^  (\S+(?: \S+)*)((?:.*)(?:\n {10,}.*)*)", lines, re.M):
                    names = re.findall(r"--[\w-]+", left)
                    anchor = f"{command}-{slug(names[0] if names else left)}"
                    flag = link(f"#{anchor}", f"<code>{escape(left)}</code>")
                    body += f'<dt id="{anchor}">{flag}</dt><dd>{words(right)}</dd>'
                    for name in names:
                        self.sources.flags.setdefault(name, f"/commands.html#{anchor}")
                        self.index(left, f"commands.html#{anchor}", f"mutilde {command}", " ".join(right.split()))
                body += "</dl>"
        return body

    def library(self):
        """A page for each public header."""
        body = ("<p>What each header declares: shapes, errors, and where the definition is. A name in any code on this "
                "site leads to its definition.</p>")
        for library, folders in LIBRARIES.items():
            entries = []
            for path, text in self.sources.text.items():
                if path.endswith(".h") and os.path.dirname(path) in folders and path != "core/ops/check.h":
                    intro = [re.sub("^// ?", "", line) for line in re.match(r"(?://.*\n)*", text)[0].splitlines()]
                    self.add(self.header_page(path, text, intro))
                    summary = re.split(r"(?<=\.)\s", " ".join(intro[:4]))[0]
                    entries.append((f"/library/{path}.html", path, self.markup.link_equations(escape(summary))))
            body += f'<h2 id="{library}"><code>mutilde::{library}</code></h2>{files_list(entries)}'
        self.add(Page("library/index.html", "Library", body))

    def header_page(self, path, text, intro):
        symbols = defaultdict(dict)  # line -> name -> symbol
        for symbol in cpp.symbols(text):
            symbols[symbol.line][symbol.name] = symbol

        def names_in(first, code):
            """Anchors for what a row declares, and links to where that is defined."""
            anchors, places = "", ""
            for symbol in {name: symbol for line in range(first, first + code.count("\n") + 1)
                           for name, symbol in symbols[line].items()}.values():
                anchor = slug(symbol.name) if re.search(r"\w$", symbol.name) else f"line-{symbol.line}"
                self.index(symbol.name, f"library/{path}.html#{anchor}", symbol.kind)
                if anchor not in used:
                    anchors += f'<span id="{anchor}"></span>'
                    used.add(anchor)
                place = self.sources.find(symbol.name)
                if place and place[0] != path and not symbol.is_definition:
                    places += link(self.sources.line(place), f"{escape(symbol.name)}: {place[0]}:{place[1].line}")
            return anchors, f'<p class="places">{places}</p>' if places else ""
        used = set()
        rows = cpp.header_rows(text)
        if rows and rows[0][0][:len(intro)] == intro:
            rows[0] = (rows[0][0][len(intro):], *rows[0][1:])
        rows = [row for row in rows if row[2] or any(row[0])]
        include = pre(f'#include "{path}"')
        body = f'<div class="lead">{self.markup.comment(intro)}{include}</div>'
        body += self.rows(rows, path, self.markup.comment, names_in)
        return Page(f"library/{path}.html", path, body, "rows reference",
                    link("/library/index.html", "Library") + link(f"/code/{path}.html", "Source"))

    def code_pages(self):
        listing = defaultdict(list)
        for path, text in self.sources.text.items():
            folder = os.path.dirname(path) or "."
            summary = re.match(r"(?:#!.*\n)?(?://+|#|\"\"\") ?(.*)", text)
            summary = summary[1] if summary and not path.endswith(".md") else ""
            listing[folder].append((f"/code/{path}.html", os.path.basename(path), escape(summary)))
            body = "".join(f'<span class="line" id="L{n}"><a href="#L{n}" aria-label="Line {n}"></a>{line}\n</span>'
                           for n, line in enumerate(self.markup.highlight(text, path), 1))
            above = link(f'/code/index.html#{slug(folder) or "root"}', "Sources")
            if f"library/{path}.html" in self.pages:
                above += link(f"/library/{path}.html", "Reference")
            elif not (address := self.sources.address(path)).startswith("/code/"):
                above += link(address, "As a page")
            if path.endswith(cpp.SUFFIXES):
                tagged = cpp.tagged_equations(text)
                above += "".join(link(self.sources.equation(equation["id"]), f"Eq. {equation['id']}")
                                 for equation in self.sources.equations if equation["id"] in tagged)
            self.add(Page(f"code/{path}.html", path, f'<pre class="source" tabindex="0">{body}</pre>', "code", above))
            self.index(path, f"code/{path}.html", "source", summary)
        self.add(Page("code/index.html", "Sources", "".join(
            f'<h2 id="{slug(folder) or "root"}">{folder}</h2>{files_list(sorted(entries))}'
            for folder, entries in sorted(listing.items()))))

    def index_names(self):
        """Definitions and tests for the search, and the glossary's terms."""
        for name, places in self.sources.symbols.items():
            for path, symbol in places:
                if symbol.kind in ("test", "function") and symbol.is_definition and not path.endswith(".h"):
                    kind = "test" if path.startswith("tests/") else "definition"
                    self.index(name, f"code/{path}.html#L{symbol.line}", kind, path)
        glossary = self.sources.text["docs/glossary.md"]
        for code, meaning in re.findall(r"^\|[^|]*\| (`[^|]*) \| (.*) \|$", glossary, re.M):
            self.index(code.replace("`", ""), "glossary.html", "symbol", meaning.replace("`", ""))

    def home(self):
        where = "docs/site/home.html"
        text = self.sources.text[where]
        for line in "\n".join(re.findall(r"<pre[^>]*>(.*?)</pre>", text, re.S)).split("\n"):
            if not self.sources.command_exists(line):
                self.markup.problems.append(f"{where}: {line} names something that does not exist")
        text = re.sub(r"<code>([^<]*)</code>", lambda match: self.markup.code(match[1], where), text)
        eleven = next(equation for equation in self.sources.equations if equation["id"] == "11")
        text = text.replace("{equation}", self.equation_row(eleven, 3)).replace("{chips}", self.chips())
        if not self.playground:
            text = re.sub(r"<p><a href=./playground/.*\n", "", text)
        self.markup.pictures["/images/quickstart.png"] = self.root / "docs/images/quickstart.png"
        self.add(Page("index.html", "mutilde", self.markup.link_equations(text), "home"))

    # Output.

    def document(self, page, template, formulas):
        def entry(url, label):
            folder = os.path.dirname(url)
            here = ' class="current"' if folder and page.url.startswith(folder + "/") else ""
            here = ' aria-current="page"' if page.url == url else here
            return f'<a href="/{url}"{here}>{label}</a>'
        navigation = NAVIGATION + [("playground/index.html", "Playground")] * bool(self.playground)
        more = [(url, escape(other.title)) for url, other in self.pages.items()
                if "/" not in url and url != "index.html" and url not in dict(navigation)]
        heading, toc = f'<p class="above">{page.above}</p><h1>{escape(page.title)}</h1>', ""
        chapters = [section for section in page.sections if section[2] == 2]
        if page.layout == "text" and len(chapters) > 2:
            toc = "".join(link(f"#{name}", re.sub("</?a[^>]*>", "", text)) for name, text, _ in chapters)
        document = template.format(
            title=escape(page.title) + " · mutilde" * (page.url != "index.html"), body=page.body,
            layout=page.layout + " has-toc" * bool(toc),
            heading=f'<header class="title">{heading}</header>' if page.layout != "home" else "",
            toc=f'<nav class="toc" aria-label="On this page">{toc}</nav>' if toc else "",
            navigation="".join(entry(*item) for item in navigation), more="".join(entry(*item) for item in more))
        document = MATH.sub(lambda match: formulas[int(match[1])], document)
        up = "../" * page.url.count("/")
        return re.sub(r'(<(?:a|link|script|img|html)\b[^<>]*?(?:href|src|data-root)=")/', rf"\g<1>{up}", document)

    def write(self, out):
        out = pathlib.Path(out)
        shutil.rmtree(out, ignore_errors=True)
        formulas, template = self.markup.render_math(), (HERE / "page.html").read_text(encoding="utf-8")
        for url, page in self.pages.items():
            (out / url).parent.mkdir(parents=True, exist_ok=True)
            (out / url).write_text(self.document(page, template, formulas), encoding="utf-8")
        fonts = out / "assets" / "fonts"
        for folder in (fonts, out / "images"):
            folder.mkdir(parents=True)
        for address, path in self.markup.pictures.items():
            shutil.copyfile(path, out / address[1:])
        # KaTeX offers each font three times; the first is enough.
        style = KATEX.read_text(encoding="utf-8")
        style = re.sub(r"(url\(fonts/KaTeX[^)]*\.woff2\) format\(.woff2.\)),[^;}]*", r"\1", style)
        style += (HERE / "style.css").read_text(encoding="utf-8")
        for name in re.findall(r"url\(fonts/([\w.-]+)\)", style):
            shutil.copyfile(pathlib.Path(FONTS[re.match("[A-Za-z]+", name)[0]]) / name, fonts / name)
        (out / "assets" / "style.css").write_text(style, encoding="utf-8")
        shutil.copyfile(HERE / "site.js", out / "assets" / "site.js")
        index = json.dumps(self.search, separators=(",", ":"))
        (out / "assets" / "search.js").write_text(f"window.searchIndex = {index};\n", encoding="utf-8")
        if self.playground:
            shutil.copytree(self.playground, out / "playground")
            index = out / "playground" / "index.html"
            text = index.read_text("utf-8").replace('id="site" hidden', 'id="site"')
            text = re.sub(r"<(figcaption|dt)>.*?</\1>", lambda part: self.markup.link_equations(part[0]), text,
                          flags=re.S)
            index.write_text(text.replace('href="/', 'href="../'), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--playground")
    options = parser.parse_args()
    site = Site(ROOT, options.build, options.playground)
    site.make()
    site.write(options.out)
    if site.markup.problems:
        sys.exit("\n".join(site.markup.problems))
    print(f"docs: {len(site.pages)} pages and {len(site.markup.formulas)} formulas in {options.out}")


if __name__ == "__main__":
    main()
