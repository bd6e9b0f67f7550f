#!/usr/bin/env python3
"""Renders every formula of the tutorials with Debian's katex, strictly: what it would only warn of fails too.

    check_latex.py SOURCE...

A formula is $...$ or $$...$$ in the comments at column 0, outside of code. Exit code 1: one does not render; 77: katex is
not installed.
"""
import json
import os
import re
import subprocess
import sys

from check import prose_of

# One process for all formulas: katex's own command takes a quarter of a second for each.
RENDER = """
const katex = require("katex");
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(formulas.map(({latex, displayMode}) => {
  try {
    katex.renderToString(latex, {displayMode, strict: "error"});
    return "";
  } catch (error) {
    return error.message;
  }
})));
"""


def paragraphs_of(source):
    """(number of the first line, text) of each paragraph of the prose, without its code."""
    lines, last, fenced = [], None, False
    for number, text in prose_of(source):
        fence = text.startswith("```")
        fenced ^= fence
        if lines and (last != number - 1 or not text or fence):
            yield lines[0][0], "\n".join(line for _, line in lines)
            lines = []
        if text and not fenced and not fence:
            lines.append((number, re.sub("`[^`]*`", "", text)))
        last = number
    if lines:
        yield lines[0][0], "\n".join(line for _, line in lines)


def formulas_of(source):
    """(line number, LaTeX, whether it is a display) of each formula; LaTeX is None where a $ stands alone."""
    for first, text in paragraphs_of(source):
        for match in re.finditer(r"\$\$(.*?)\$\$|\$([^$]*)\$|\$", text, re.DOTALL):
            display, inline = match.groups()
            number = first + text.count("\n", 0, match.start())
            yield number, inline if display is None else display, display is not None


def render(formulas):
    """What katex says of each (LaTeX, whether it is a display), "" where it renders; None without a katex that works."""
    # Debian's modules are not where another node on the PATH looks.
    environment = {**os.environ, "NODE_PATH": "/usr/share/nodejs"}
    request = json.dumps([{"latex": latex, "displayMode": display} for latex, display in formulas])
    try:
        run = subprocess.run(["node", "-e", RENDER], input=request, capture_output=True, encoding="utf-8", check=False,
                             env=environment)
    except FileNotFoundError:
        return None
    return json.loads(run.stdout) if run.returncode == 0 else None


def complaints(sources):
    """One line for each formula that does not render; None without a katex that works."""
    found, formulas = [], []
    for source in sources:
        for number, latex, display in formulas_of(source):
            if latex is None:
                found.append(f"{source}:{number}: a $ that opens or closes nothing in its paragraph")
            else:
                formulas.append((f"{source}:{number}", latex, display))
    problems = render([(latex, display) for _, latex, display in formulas])
    if problems is None:
        return None
    return found + [f"{place}: {problem}" for (place, _, _), problem in zip(formulas, problems) if problem]


def main():
    sources = sys.argv[1:]
    found = complaints(sources)
    if found is None:
        print("there is no katex that works, so no formula was rendered")
        sys.exit(77)
    if found:
        sys.exit("\n".join(found))
    print(f"{sum(len(list(formulas_of(source))) for source in sources)} formulas, all rendered")


if __name__ == "__main__":
    main()
