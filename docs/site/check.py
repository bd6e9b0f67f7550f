#!/usr/bin/python3
"""Checks the site that build.py wrote: links, leftover LaTeX, requests to other hosts, equations tagged in the sources
but not in the map or the other way round, and that two clicks lead from home to an equation's code; and where Chromium
is installed, that no page is wider than a telephone or a desktop window, mathematics shows, text has contrast, light
and dark, and one search leads from a number or a function to its equation.

    check.py SITE [--screenshots DIR]
"""
import argparse
import base64
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

QUIET = {"code", "pre", "script", "style", "annotation"}  # where backslashes and dollars are no LaTeX gone astray
RAW_LATEX = re.compile(r"\$[^$\s][^$]*\$|\\[A-Za-z]{2,}|[_^]\{|\\\(|\\\[")
EXTERNAL = re.compile(r"(?:https?:)?//")
# The folders in which a tag without an equation is a mistake (elsewhere it may be another paper's).
TAGGED = re.compile(r"code/(core|cuda|nn|diffusion)/")
WIDTHS = (390, 1440)
PROBE = (pathlib.Path(__file__).parent / "probe.js").read_text("utf-8")


class Reader(html.parser.HTMLParser):
    """What one page holds: anchors, links, text outside of code, and code outside of links."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.text, self.unlinked, self.open = set(), [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif "src" in attributes or tag == "link" and "href" in attributes:
            self.loads.append(attributes.get("src") or attributes.get("href"))
        if tag in QUIET or tag == "a":
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if not QUIET.intersection(self.open):
            self.text.append(data)
        if self.open[-1:] == ["pre"]:
            self.unlinked.append(data)


def check_files(site):
    """One line for each fault that the files themselves show."""
    site = pathlib.Path(site)
    pages = {path.relative_to(site).as_posix(): Reader(path.read_text("utf-8"))
             for path in sorted(site.rglob("*.html"))}
    problems = []
    for url, page in pages.items():
        for link in page.links + page.loads:
            if EXTERNAL.match(link):
                if link in page.loads:
                    problems.append(f"{url}: loads {link} from another host")
                continue
            if link.startswith(("mailto:", "data:")):
                continue
            path, _, anchor = urllib.parse.unquote(link).partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(url), path)) if path else url
            if not (site / target).is_file():
                problems.append(f"{url}: dead link {link}")
            elif anchor and target in pages and anchor not in pages[target].ids:
                problems.append(f"{url}: dead anchor {link}")
        problems += [f"{url}: raw LaTeX: {found[0]}" for text in page.text if (found := RAW_LATEX.search(text))]
        if TAGGED.match(url):
            problems += [f"{url}: {found[0]} is not in the map"
                         for text in page.unlinked if (found := re.search(r"\bEq\. (?:DDIM )?\d+", text))]
    if "equations.html" not in pages:
        return problems + ["there is no equations.html"]
    mapped = []
    for entry in re.split(r'(?= id="eq-)', (site / "equations.html").read_text("utf-8"))[1:]:
        mapped.append(entry.split('"')[1])
        codes = {pages[path] for path in re.findall(r'href="(code/(?!tests/)[^"#]+)#L', entry) if path in pages}
        if not any(link.endswith(f"equations.html#{mapped[-1]}") for code in codes for link in code.links):
            problems.append(f"equations.html: {mapped[-1]} leads to no code that leads back")
    home = pages["index.html"].links if "index.html" in pages else []
    if (playground := site / "playground/index.html").is_file():
        if "playground/index.html" not in home:
            problems.append("index.html: no link to the playground")
        if '<nav id="site"><a href="../index.html">' not in playground.read_text("utf-8"):
            problems.append("playground/index.html: no link back")
    problems += [f"index.html: no link to {name}" for name in mapped if f"equations.html#{name}" not in home]
    for sheet in site.glob("assets/*.css"):
        urls = re.findall(r"url\(((?:https?:)?//[^)]*)\)", sheet.read_text("utf-8"))
        problems += [f"{sheet.name}: loads {url} from another host" for url in urls]
    return problems


class Browser:
    """Chromium without a window, spoken to through its DevTools pipe."""

    def __init__(self, program):
        self.profile = tempfile.TemporaryDirectory()
        (read_end, self.to), (self.from_, write_end) = os.pipe(), os.pipe()
        self.process = subprocess.Popen(  # it reads from descriptor 3 and writes to 4
            ["bash", "-c", f'exec "$@" 3<&{read_end} 4>&{write_end}', "bash", program, "--headless=new", "--no-sandbox",
             "--disable-gpu", "--no-first-run", f"--user-data-dir={self.profile.name}", "--remote-debugging-pipe"],
            pass_fds=(read_end, write_end), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(read_end)
        os.close(write_end)
        self.buffer, self.number, self.requests, self.session, self.loaded = b"", 0, [], None, False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def receive(self):
        while b"\0" not in self.buffer:
            piece = os.read(self.from_, 1 << 20)
            if not piece:
                sys.exit("check: Chromium ended")
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(message)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        self.loaded |= message.get("method") == "Page.loadEventFired"
        return message

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            pass
        if "error" in answer:
            sys.exit(f"check: {method}: {answer['error']}")
        return answer["result"]

    def show(self, path):
        self.loaded = False
        self.call("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
        while not self.loaded:
            self.receive()

    def look(self, width, scheme):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        return self.evaluate(PROBE)

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value")

    def screenshot(self, file):
        pathlib.Path(file).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.profile.cleanup()


def check_search(browser, site):
    """Whether who searches for an equation's number gets it first, and for one of its functions gets it too."""
    def search(text):
        return browser.evaluate(
            f"(async () => {{ input.value = {json.dumps(text)}; await search(); "
            "return [...results.querySelectorAll('a')].map((link) => link.getAttribute('href')); })()")
    browser.show(site / "index.html")
    map_page = (site / "equations.html").read_text("utf-8")
    for section in re.findall(r'<section class="row equation.*?</section>', map_page, re.S):
        anchor = re.search(r'id="([^"]+)"', section)[1]
        number = re.search(r'class="number">([^<]+)<', section)[1]
        for words in (number, number.replace("Eq.", "equation")):
            if search(words)[:1] != [f"equations.html#{anchor}"]:
                yield f"a search for {words} does not begin with equations.html#{anchor}"
        for name in re.findall(r'<dd><a href="code/(?!tests)[^"]+"><code>([^<]+)</code>', section):
            if f"equations.html#{anchor}" not in search(name):
                yield f"a search for {name} does not find equations.html#{anchor}"


def check_in_browser(site, screenshots=None):
    """One line for each fault that shows in Chromium. Of the sources' pages, which are all made alike, the widest."""
    site = pathlib.Path(site)
    def widest_line(path):
        return max(map(len, path.read_text("utf-8").split("\n")))
    pages = [path for path in sorted(site.rglob("*.html"))
             if path.relative_to(site).parts[0] not in ("code", "playground")]
    pages += [site / "code/index.html", *sorted(site.glob("code/**/*.h.html"), key=widest_line)[-3:]]
    browser, problems = Browser(shutil.which("chromium")), []
    for path in pages:
        url = path.relative_to(site).as_posix()
        browser.show(path)
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                problems += [f"{url} at {width} px, {scheme}: {fault}" for fault in browser.look(width, scheme)]
                if screenshots:
                    pathlib.Path(screenshots).mkdir(parents=True, exist_ok=True)
                    browser.screenshot(f"{screenshots}/{url.replace('/', '_')}-{width}-{scheme}.png")
    problems += check_search(browser, site)
    problems += [f"a page asks for {url}" for url in set(browser.requests)
                 if not url.startswith(("file:", "data:", "about:"))]
    browser.close()
    print(f"docs: {len(pages)} pages seen in Chromium at {' and '.join(map(str, WIDTHS))} pixels, light and dark")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site")
    parser.add_argument("--screenshots")
    options = parser.parse_args()
    problems = check_files(options.site)
    if shutil.which("chromium"):
        problems += check_in_browser(options.site, options.screenshots)
    else:
        print("docs: no chromium, so nobody looked at the pages")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
