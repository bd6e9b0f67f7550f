"""What is in the repository: its files, the symbols of its C++, the words of its code; and where the site shows it."""
import functools
import pathlib
import re
import subprocess
import tomllib
from collections import defaultdict

import cpp

LIBRARIES = {"core": ("core", "core/ops"), "nn": ("nn",), "data": ("data",), "diffusion": ("diffusion",)}
LIBRARY_FOLDERS = tuple(folder + "/" for folders in LIBRARIES.values() for folder in folders)
# Written by programs, so in no listing of the repository.
GENERATED = re.compile(r"(build|out|runs)/")
# Words of programs that are not ours.
ELSEWHERE = set("compute sanitizer tool racecheck gtest_filter".split())


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def tutorial_name(path):
    match = re.fullmatch(r"tutorials/(\d\d_\w+)\.(?:cpp|cu)", path)
    return match and match[1]


def equation_anchor(identifier):
    return "eq-" + slug(identifier)


class Sources:
    def __init__(self, root):
        listed = subprocess.run(["git", "-c", f"safe.directory={root}", "-C", root, "ls-files", "--cached", "--others",
                                 "--exclude-standard"], capture_output=True, text=True, check=True).stdout.split("\n")
        self.root = pathlib.Path(root)
        self.has_playground = False
        self.files = {path for path in listed if path and (self.root / path).is_file()}
        self.folders = {str(parent) for path in self.files for parent in pathlib.PurePath(path).parents} - {"."}
        self.text, self.symbols, self.words = {}, defaultdict(list), set()
        for path in sorted(self.files):
            suffix = pathlib.Path(path).suffix
            if suffix not in cpp.LEXERS or path.startswith("tests/data/") and suffix == ".json":
                continue
            text = self.text[path] = (self.root / path).read_text(encoding="utf-8")
            if suffix in cpp.SUFFIXES:
                for symbol in cpp.symbols(text):
                    self.symbols[symbol.name].append((path, symbol))
                text = re.sub(r"//[^\n]*", "", text)
            if suffix != ".md":
                self.words.update(re.findall(r"\w+", text))
        self.short = defaultdict(set)  # "forward" -> {"UNet::forward", ...}
        for name in self.symbols:
            self.short[name.split("::")[-1]].add(name)
        self.flags = {}  # "--lr" -> address; filled by the command reference
        self.equations = tomllib.loads(self.text["docs/equations.toml"])["equation"]
        self.equation_ids = {equation["id"] for equation in self.equations}
        self.tutorials = {name: path for path in sorted(self.files) if (name := tutorial_name(path))}
        # What documents may quote: output that a tutorial's test demands, and lines of code.
        self.output = {}
        for path in self.tutorials.values():
            blocks = re.findall(r"^// ```text\n(.*?)^// ```", self.text[path], re.M | re.S)
            self.output[path] = [line.lstrip("/ ").rstrip() for block in blocks for line in block.split("\n")]
        self.code_lines = {" ".join(line.split()) for text in self.text.values() for line in text.split("\n")}

    @functools.cache
    def find(self, name):
        """(file, symbol) of a name's definition, else of its declaration; None if it is unknown or means several."""
        if name not in self.symbols:
            names = [full for full in self.short.get(name.split("::")[-1], ()) if full.endswith("::" + name)]
            if len(names) != 1:
                return None
            name = names[0]
        places = self.symbols[name]
        places = [place for place in places if place[1].is_definition] or places
        library = [place for place in places
                   if place[0].startswith(LIBRARY_FOLDERS) and not place[0].startswith("core/cpu/")]
        return (library or places)[0] if library or len({path for path, _ in places}) == 1 else None

    def file(self, name, near=""):
        """The path that a name means: from the root, beside the file `near`, or the end of exactly one."""
        for path in (name, f"{near.rpartition('/')[0]}/{name}"):
            if path in self.files:
                return path
        ends = [path for path in self.files if path.endswith("/" + name)]
        return ends[0] if len(ends) == 1 else None

    # Addresses. All begin with /, which stands for the site's root.

    def address(self, path):
        """Where a file of the repository is shown: on a page of its own, or as source."""
        if name := tutorial_name(path):
            return f"/tutorials/{name}.html"
        special = {"README.md": "/index.html", "CONTRIBUTING.md": "/contributing.html",
                   "tutorials/README.md": "/tutorials/index.html"}
        if path == "playground/README.md" and self.has_playground:
            return "/playground/index.html"
        if path in special or re.fullmatch(r"docs/[\w-]+\.md", path):
            return special.get(path, f"/{pathlib.Path(path).stem}.html")
        if path in self.text:
            return f"/code/{path}.html"
        return f"/code/index.html#{slug(path)}" if path in self.folders else None

    @staticmethod
    def line(place):
        path, symbol = place
        return f"/code/{path}.html#L{symbol.line}"

    def equation(self, identifier):
        return f"/equations.html#{equation_anchor(identifier)}" if identifier in self.equation_ids else None

    # What stands in `code` on a page, and what a shell is told, must exist.

    def known(self, word):
        return (word in self.words or word in self.short or len(word) < 3 or word in ELSEWHERE
                or word.endswith("_tests") and f"tests/{word.removesuffix('_tests')}" in self.folders)

    def resolve(self, text, near=""):
        """(address or None, whether it exists) of what stands in `code`."""
        first = text.split(" ")[0].removesuffix("/")
        if GENERATED.match(first + "/") or first in cpp.LEXERS:
            return None, True
        is_path = "/" in text.split(" ")[0] or pathlib.Path(first).suffix in cpp.LEXERS
        if is_path and re.fullmatch(r"[\w.+*-]+(/[\w.+*-]+)*", first):
            if "*" in first:
                return None, any(pathlib.PurePath(path).match(first) for path in self.files)
            if path := self.file(first, near) or (first if first in self.folders else None):
                return self.address(path), True
            return None, "." not in first and all(self.known(word) for word in re.findall(r"\w+", first))
        if flag := re.match(r"--([\w-]+)", text):
            return self.flags.get(flag[0]), flag[0] in self.flags or flag[1] in self.words
        if re.fullmatch(r"[A-Z]\w+\.[A-Z]\w+", text) and (place := self.find(text)):  # a test
            return self.line(place), True
        if name := re.fullmatch(r"(~?\w[\w:]*)(\(.*\))?", text):
            if place := self.find(name[1]):
                return self.line(place), True
            scope, _, last = name[1].rpartition("::")
            if scope not in ("", "mutilde", "std"):
                return None, any(full.endswith(name[1]) for full in self.short.get(last, ()))
            if text.endswith("()"):
                return None, last in self.short
        # A text that begins with a sign is no name, but names may stand in it.
        pattern = r"[A-Za-z_]\w*" if re.match(r"\w|-\w", text) else r"[A-Za-z]\w*_\w+"
        return None, all(self.known(word) for word in re.findall(pattern, re.sub(r"(?<!\w)-D", "", text)))

    def printed(self, row, path):
        """Whether a program's output has the numbers of a table's row, one after the other on one line."""
        def numbers(text):
            return " ".join(re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", text))
        return any(f" {numbers(row)} " in f" {numbers(line)} " for line in self.output.get(path, ()))

    def command_exists(self, line):
        """Whether the programs, presets, targets and flags in a line of shell exist, as far as they are ours."""
        words = line.split("#")[0].split()
        for before, word in zip([""] + words, words):
            program = re.match(r"build/\w+/(?:\w+/)+(\w+)$", word)
            target = program[1] if program else None
            if before in ("--target", "--preset", "-L"):
                target = word.removeprefix("tutorial_")
            if (re.match(r"(scripts|tests|bench|docs)/", word) and word not in self.files
                    or target and not self.known(target) and target not in self.tutorials
                    or "mutilde" in line and word.startswith("--") and word[2:] not in self.words):
                return False
        return True
