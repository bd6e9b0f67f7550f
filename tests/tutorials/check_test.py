#!/usr/bin/env python3
"""tutorials/check.py accepts what was printed and rejects everything else."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tutorials"))
import check  # noqa: E402

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


if __name__ == "__main__":
    unittest.main()
