// Search, light and dark, the menu on narrow screens, and mathematics made to fit. Without it, every page still reads.
"use strict";
const root = document.documentElement;

document.querySelector(".theme").addEventListener("click", () => {
  const isDark = root.dataset.theme === "dark" || (root.dataset.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = isDark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* it holds for this page then */ }
});

const menu = document.querySelector("button.menu");
menu.addEventListener("click", () => {
  menu.setAttribute("aria-expanded", String(document.querySelector("nav.main").classList.toggle("open")));
});

// A display or a quotation that is too wide gets a little smaller; beyond that it scrolls within its box.
function fit() {
  for (const box of document.querySelectorAll(".math, .prose pre")) {
    box.style.fontSize = "";
    const share = box.clientWidth / box.scrollWidth, size = parseFloat(getComputedStyle(box).fontSize);
    if (share < 1) box.style.fontSize = Math.max(box.matches("pre") ? 0.84 : 0.74, share * 0.99) * size + "px";
  }
}
document.fonts.ready.then(fit);
addEventListener("resize", fit);

// Search. The index is a script, not data to fetch, so that it also loads from a file: address.
const input = document.querySelector(".search input"), results = document.querySelector(".search ul");
const words = (text) => text.toLowerCase().replace(/::/g, " ").split(/[^\w-]+/).filter(Boolean);
const kindBonus = { equation: 4, page: 2, function: 3, type: 3, symbol: 3, test: -2, source: -1 };
let loading = null;

function loadIndex() {
  loading ??= new Promise((resolve) => {
    const script = document.createElement("script");
    script.src = root.dataset.root + "assets/search.js";
    script.onload = () => resolve(window.searchIndex.map(([title, url, kind, text]) =>
      ({ title, url, kind, titleWords: words(title), textWords: words(text), all: (title + " " + text).toLowerCase() })));
    document.head.append(script);
  });
  return loading;
}

function score(entry, query, terms) {
  let sum = kindBonus[entry.kind] ?? 0;
  for (const term of terms) {
    if (entry.titleWords.includes(term)) sum += 10;
    else if (entry.titleWords.some((word) => word.startsWith(term))) sum += 6;
    else if (entry.textWords.includes(term)) sum += entry.kind === "equation" ? 9 : 3;
    else if (entry.all.includes(term)) sum += 1;
    else return -1;
  }
  if (entry.kind === "equation" && entry.all.includes(query)) sum += 12;
  // An equation's title is its number, then words.
  const title = entry.kind === "equation" ? entry.titleWords.slice(0, terms.length) : entry.titleWords;
  return title.join(" ") === terms.join(" ") ? sum + 20 : sum;
}

async function search() {
  const query = input.value.trim().toLowerCase(), terms = words(query.replace(/^equation\b/, "eq"));
  results.hidden = terms.length === 0;
  if (results.hidden) return;
  const entries = await loadIndex();
  const found = entries.map((entry) => [score(entry, query, terms), entry]).filter(([value]) => value > 0)
    .sort((a, b) => b[0] - a[0] || a[1].title.length - b[1].title.length).slice(0, 12);
  results.replaceChildren(...found.map(([, entry]) => {
    const item = document.createElement("li"), link = document.createElement("a"), kind = document.createElement("small");
    link.href = root.dataset.root + entry.url;
    kind.textContent = entry.kind;
    link.append(entry.title, kind);
    item.append(link);
    return item;
  }));
  if (found.length === 0) results.innerHTML = "<li><p>Nothing found.</p></li>";
}

input.addEventListener("focus", loadIndex, { once: true });
input.addEventListener("input", search);
document.querySelector(".search").addEventListener("submit", (event) => {
  event.preventDefault();
  results.querySelector("a")?.click();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.matches("input, textarea, select")) {
    event.preventDefault();
    input.focus();
  }
  if (event.key === "Escape") {
    results.hidden = true;
    input.blur();
  }
  const links = [...results.querySelectorAll("a")], at = links.indexOf(document.activeElement);
  if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !results.hidden && (at >= 0 || document.activeElement === input)) {
    event.preventDefault();
    const next = at + (event.key === "ArrowDown" ? 1 : -1);
    (next < 0 ? input : links[Math.min(next, links.length - 1)])?.focus();
  }
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".search")) results.hidden = true;
});
