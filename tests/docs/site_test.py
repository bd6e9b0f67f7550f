#!/usr/bin/python3
"""The site's builder and its check accept what is right, and each planted fault is reported."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "docs" / "site"))
import check  # noqa: E402
import cpp  # noqa: E402
from markup import Markup  # noqa: E402
from sources import Sources  # noqa: E402

FILES = {
    "docs/equations.toml": '[[equation]]\nid = "11"\n[[equation]]\nid = "DDIM 12"\n',
    "core/op.h": """\
// Ops.
#pragma once

namespace mutilde {

/// x: [N, C].
Tensor double_it(const Tensor& x);

class Net : public Module {
 public:
  /// Runs it.
  Tensor forward(const Tensor& x = {}) const;

 private:
  int size_;
};

}  // namespace mutilde
""",
    "core/op.cpp": """\
#include "core/op.h"

namespace mutilde {

// Eq. 11.
Tensor double_it(const Tensor& x) {
  return x + x;
}

Tensor Net::forward(const Tensor& x) const {
  return double_it(x);
}

}  // namespace mutilde
""",
    "tutorials/01_a.cpp": """\
// # 1. A
//
// Words, then $x_0$.
//
// ```text
// it prints 1 and 2.50%
// ```
int main() {}
""",
    "scripts/run.sh": "# Runs --fast things.\nrun --fast\n",
}
GOOD = """\
`double_it`, `Net::forward()`, `core/op.h`, `op.cpp`, `core/`, `--fast`, `[N, C]`, [the op](../core/op.cpp),
eq. 11, $x_0$, tutorial 1

```text
it prints 1 and 2.50%
```

<!-- printed by tutorials/01_a.cpp -->
| n | share |
|---|---|
| 1 | 2.50% |

```cpp
  return x + x;
```

```
scripts/run.sh --fast
```
"""
WRONG = [
    "`half_it`", "`Net::backward()`", "`Net::double_it`", "`fast()`", "`core/ops.h`", "`--slow`", "[gone](../core/gone.h)", "![picture](gone.png)",
    "$\\fraq{1}{2}$", "$$x_1_2$$", "```math\n\\frac{1}{2\n```\n", "```text\nit prints 2\n```\n",
    "<!-- printed by tutorials/01_a.cpp -->\n| n |\n|---|\n| 3 |\n", "```cpp\nreturn x * x;\n```\n",
    "```\nscripts/gone.sh\n```\n", "```\ncmake --build --preset release --target gone\n```\n",
]
PAGES = {
    "index.html": '<a href="equations.html#eq-11">eq. 11</a> <a href="https://arxiv.org">paper</a> <code>$A</code>',
    "equations.html": '<h2 id="eq-11">Eq. 11</h2><a href="code/core/op.cpp.html#L5">code</a>',
    "code/core/op.cpp.html":
        '<pre><span id="L5">// <a href="../../equations.html#eq-11">Eq. 11</a>.</span></pre>',
}


def write(folder, files):
    for name, text in files.items():
        path = pathlib.Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


class Builder(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        subprocess.run(["git", "init", "--quiet", cls.folder.name], check=True)
        write(cls.folder.name, FILES)
        cls.sources = Sources(cls.folder.name)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def html(self, text):
        """The HTML of a piece of Markdown, and what was wrong with it."""
        markup = Markup(self.sources)
        out = markup.markdown(text, "docs/page.md")
        formulas = markup.render_math()
        return out + " ".join(formulas), markup.problems

    def test_accepts_what_exists_and_links_it(self):
        out, problems = self.html(GOOD)
        self.assertEqual(problems, [])
        for address in ("/code/core/op.cpp.html#L6", "/code/core/op.cpp.html#L10", "/code/core/op.h.html",
                        "/code/index.html#core", "/equations.html#eq-11", "/tutorials/01_a.html"):
            self.assertIn(f'href="{address}"', out)
        self.assertIn('class="katex"', out)
        self.assertNotIn("$", out)

    def test_rejects_each_fault(self):
        for fault in WRONG:
            with self.subTest(fault):
                self.assertEqual(len(self.html(fault)[1]), 1)

    def test_mathematics_and_code_are_not_markdown(self):
        out, _ = self.html("`double_it` and `op_it_` stand, $a_1 * b_2 * c_3$ too.")
        self.assertNotIn("<em>", out.split("<span")[0])

    def test_finds_symbols_and_the_rows_of_sources(self):
        self.assertEqual(self.sources.find("forward")[0], "core/op.cpp")
        self.assertEqual([symbol.name for symbol in cpp.symbols(FILES["core/op.h"])],
                         ["double_it", "Net", "Net::forward", "Net::size_"])
        rows = cpp.header_rows(FILES["core/op.h"])
        self.assertEqual([prose[-1:] for prose, _, _ in rows], [["x: [N, C]."], [], ["Runs it."]])
        self.assertNotIn("size_", "".join(code for _, _, code in rows))
        self.assertEqual(cpp.tutorial_rows(FILES["tutorials/01_a.cpp"])[0][1:], (8, "int main() {}"))

    def test_takes_the_lines_around_a_tag_within_a_definition(self):
        code = "void f() {\n  a();\n\n  for (;;) {\n    b();  // Eq. 10.\n    c();\n  }\n  d();\n}"
        self.assertEqual(cpp.tagged_paragraph(20, code, "10"), (24, 24, "b();  // Eq. 10.\nc();"))

    def test_reads_equation_tags(self):
        self.assertEqual(cpp.tagged_equations("Eq. 4-6 and 14, eq. DDIM 12; eq. 9, and two more"),
                         {"4", "5", "6", "14", "DDIM 12", "9"})


class Check(unittest.TestCase):
    def problems(self, **changes):
        with tempfile.TemporaryDirectory() as folder:
            write(folder, PAGES | {name.replace("__", "/") + ".html": text for name, text in changes.items()})
            return check.check_files(folder)

    def test_accepts_a_site_without_faults(self):
        self.assertEqual(self.problems(), [])

    def test_rejects_each_fault(self):
        for fault in ('<a href="gone.html">', '<a href="equations.html#eq-12">', '<img src="gone.png">',
                      '<script src="https://cdn.org/a.js"></script>', '<link rel="stylesheet" href="//cdn.org/a.css">',
                      "Let $x_0$ be.", "\\frac{1}{2}", "x_{t-1}"):
            with self.subTest(fault):
                self.assertEqual(len(self.problems(page=fault)), 1)

    def test_wants_a_playground_to_be_linked_both_ways(self):
        linked = PAGES["index.html"] + '<a href="playground/index.html">'
        back = '<nav id="site"><a href="../index.html">'
        self.assertEqual(self.problems(index=linked, playground__index=back), [])
        self.assertEqual(len(self.problems(playground__index=back)), 1)
        self.assertEqual(len(self.problems(index=linked, playground__index="<h1>Alone</h1>")), 1)
        dead = back + '<a href="../equations.html#eq-12">'
        self.assertEqual(len(self.problems(index=linked, playground__index=dead)), 1)

    def test_rejects_an_equation_away_from_home_or_code_and_a_tag_without_an_equation(self):
        self.assertEqual(self.problems(equations=PAGES["equations.html"] + '<h2 id="eq-12">Eq. 12</h2>'),
                         ["equations.html: eq-12 leads to no code that leads back", "index.html: no link to eq-12"])
        for unlinked in (PAGES["equations.html"].replace("code/core/op.cpp.html#L5", "index.html"),
                         PAGES["equations.html"].replace("code/core", "code/tests")):
            with self.subTest(unlinked):
                pages = {"equations": unlinked, "code__tests__op.cpp": PAGES["code/core/op.cpp.html"]}
                self.assertEqual(self.problems(**pages), ["equations.html: eq-11 leads to no code that leads back"])
        self.assertEqual(self.problems(code__core__other="<pre>// Eq. 20.</pre>"),
                         ["code/core/other.html: Eq. 20 is not in the map"])


if __name__ == "__main__":
    unittest.main()
