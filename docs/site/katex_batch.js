// From [[LaTeX, whether it is a display], ...] to [[HTML, error or null], ...]: all formulas in one process.
"use strict";
const katex = require("katex");
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(formulas.map(([tex, displayMode]) => {
  try {
    return [katex.renderToString(tex, { displayMode, strict: "error", throwOnError: true }), null];
  } catch (error) {
    return ["", error.message];
  }
})));
