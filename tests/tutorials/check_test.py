#!/usr/bin/env python3
"""tutorials/check.py accepts what was printed, check_latex.py what renders, and both reject everything else."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tutorials"))
import check  # noqa: E402
import check_latex  # noqa: E402

SOURCE = """\
// # A tutorial
// ```text
//  t   beta
//  0   0.0001
// ```
// ```cpp
// not a quote
// ```
int x;  // ```text
// ```text
// done
// ```
// ![A curve](curve.png)
"""
PRINTED = ["t   beta", "0   0.0001", "more", "done"]


class Check(unittest.TestCase):
    def complaints(self, source=SOURCE, printed=PRINTED, written=("curve.png",)):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "01_x.cpp"
            path.write_text(source, encoding="utf-8")
            return list(check.complaints(path, printed, written))

    def test_accepts_what_was_printed(self):
        self.assertEqual(self.complaints(), [])

    def test_rejects_a_wrong_digit_and_names_its_line(self):
        found = self.complaints(SOURCE.replace("0.0001", "0.0002"))
        self.assertEqual(len(found), 2)
        self.assertIn(":4:", found[0])
        self.assertIn("0   0.0001", found[1])

    def test_rejects_lines_in_another_order(self):
        self.assertNotEqual(self.complaints(printed=PRINTED[::-1]), [])

    def test_rejects_a_line_quoted_twice_but_printed_once(self):
        self.assertNotEqual(self.complaints(SOURCE + "// ```text\n// done\n// ```\n"), [])

    def test_rejects_a_picture_that_was_not_written(self):
        self.assertEqual(len(self.complaints(written=())), 1)

    def test_rejects_a_source_without_quotes_or_with_an_open_block(self):
        self.assertNotEqual(self.complaints("// # Nothing\n"), [])
        with self.assertRaises(ValueError):
            self.complaints("// ```text\n// t\n")


LATEX = r"""
// Prose with $\alpha_t$ and a display,
//
// $$x_t = \frac{1}{2}
//   \left( y + z \right)$$
//
// and a price, `$5`.
//
// ```sh
// echo $HOME
// ```
int x;  // $\wrong$
"""


class Latex(unittest.TestCase):
    def complaints(self, source):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "01_x.cpp"
            path.write_text(source, encoding="utf-8")
            found = check_latex.complaints([path])
        if found is None:
            self.skipTest("there is no katex that works")
        return found

    def test_accepts_what_renders_and_leaves_code_alone(self):
        self.assertEqual(self.complaints(LATEX), [])

    def test_rejects_a_misspelt_command_and_names_its_line(self):
        found = self.complaints(LATEX.replace(r"\alpha", r"\alhpa"))
        self.assertEqual(len(found), 1)
        self.assertIn(":2: ", found[0])
        self.assertIn(r"\alhpa", found[0])

    def test_rejects_a_display_with_an_open_brace(self):
        found = self.complaints(LATEX.replace("{2}", "{2"))
        self.assertEqual(len(found), 1)
        self.assertIn(":4: ", found[0])

    def test_rejects_what_katex_only_warns_of(self):
        self.assertEqual(len(self.complaints(LATEX.replace("y + z", "ä + z"))), 1)

    def test_rejects_a_dollar_that_stands_alone(self):
        self.assertEqual(len(self.complaints(LATEX.replace("`$5`", "$5"))), 1)


if __name__ == "__main__":
    unittest.main()
