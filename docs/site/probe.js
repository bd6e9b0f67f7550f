// check.py runs this in a page. Returns one line a fault that shows.
(async () => {
  await document.fonts.ready;
  await new Promise((done) => setTimeout(done, 60));
  const faults = [], width = innerWidth, all = [...document.querySelectorAll("body *")];
  const name = (e) => `${e.tagName.toLowerCase()}.${e.classList[0] ?? ""} "${e.textContent.trim().slice(0, 40)}"`;

  const page = document.documentElement.scrollWidth;
  if (page > width) {
    const wide = all.filter((e) => e.getBoundingClientRect().right > width + 1 && !e.closest("pre, .math, .table, .skip"));
    faults.push(`is ${page} px wide: ${wide.slice(0, 3).map(name).join(", ")}`);
  }

  const formulas = [...document.querySelectorAll(".katex-html")];
  for (const e of formulas) {
    const { width: w, height: h } = e.getBoundingClientRect();
    if (w < 3 || h < 3) faults.push(`a formula does not show: ${name(e.parentElement)}`);
  }
  if (formulas.length && !document.fonts.check("16px KaTeX_Main")) faults.push("KaTeX's fonts are not loaded");
  if (width > 1000) {
    for (const e of document.querySelectorAll(".math")) {
      if (e.scrollWidth > e.clientWidth + 1) faults.push(`a formula is wider than its column: ${name(e)}`);
    }
  }
  for (const e of document.images) {
    if (!e.naturalWidth) faults.push(`a picture does not load: ${e.src}`);
  }

  // WCAG's contrast of text against what is behind it; 4.5 is its level AA.
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const linear = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const seen = new Set();
  for (const e of all) {
    const hasText = [...e.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!hasText || !e.getClientRects().length || e.closest(".skip, .katex-mathml")) continue;
    const ink = rgb(getComputedStyle(e).color), paper = behind(e), pair = `${ink}/${paper}`;
    if (seen.has(pair)) continue;
    seen.add(pair);
    const [low, high] = [luminance(ink), luminance(paper)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(1)} of ${name(e)}`);
  }
  return faults;
})();
