#!/usr/bin/env python3
"""Runs a tutorial and compares what its prose quotes with what it printed in this run.

    check.py PROGRAM SOURCE

A quoted line stands in a ```text block of the comments at column 0. Each must be printed exactly (but for spaces at its
ends), in the order of the source; lines printed in between need no quote. A picture that the prose shows,
![words](name.png), must be written. Exit code 1: something differs; 77: Fashion-MNIST is not installed, so that the
numbers are those of other images.
"""
import difflib
import pathlib
import re
import subprocess
import sys
import tempfile

NO_DATASET = "note: Fashion-MNIST is not there"


def prose_of(source):
    """(line number, text) of each line of the comments that begin at column 0."""
    lines = pathlib.Path(source).read_text(encoding="utf-8").splitlines()
    return [(number, line[2:].strip()) for number, line in enumerate(lines, 1) if re.match("//(?!/)", line)]


def quotes_of(prose):
    """(line number, text) of each line in a ```text block."""
    quotes, fence = [], None
    for number, text in prose:
        if text.startswith("```"):
            fence = None if fence is not None else text
        elif fence == "```text" and text:
            quotes.append((number, text))
    if fence is not None:
        raise ValueError(f"a block that begins with {fence} is never closed")
    return quotes


def complaints(source, printed, written):
    """One line for each quote that was not printed and each picture that was not written."""
    prose = prose_of(source)
    quotes = quotes_of(prose)
    if not quotes:
        yield f"{source}: the prose quotes nothing: it needs a ```text block"
    at = 0
    for number, text in quotes:
        if text in printed[at:]:
            at = printed.index(text, at) + 1
            continue
        yield f"{source}:{number}: the prose quotes   {text}"
        nearest = difflib.get_close_matches(text, printed[at:], n=1, cutoff=0.3)
        if text in printed:
            yield "    which the program prints earlier, not here"
        elif nearest:
            yield f"    the program prints {nearest[0]}"
    for number, text in prose:
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            if picture not in written:
                yield f"{source}:{number}: the prose shows {picture}, which the program did not write"


def main():
    program, source = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run([program, "--out", folder], capture_output=True, encoding="utf-8", check=False)
        written = [path.name for path in pathlib.Path(folder).iterdir()]
    if run.returncode != 0:
        sys.exit(f"{program} ended with {run.returncode}\n{run.stdout}{run.stderr}")
    if NO_DATASET in run.stdout:
        print(run.stdout)
        sys.exit(77)
    found = list(complaints(source, [line.strip() for line in run.stdout.splitlines()], written))
    if found:
        sys.exit("\n".join(found) + f"\n\nIt printed:\n{run.stdout}")
    print(f"{source}: {len(quotes_of(prose_of(source)))} quoted lines, all printed")


if __name__ == "__main__":
    main()
