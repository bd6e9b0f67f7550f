#!/usr/bin/env python3
"""Opens the playground in headless Chromium and holds it to what it promises.

check.py PAGE_FOLDER PLAYGROUND_NATIVE MUTILDE MODEL [--screenshots FOLDER]

Numbers, speed, size, keyboard, a phone's width, and what it says in a browser that lacks something.
"""
import argparse
import asyncio
import base64
import functools
import http.server
import itertools
import json
import math
import operator
import os
import pathlib
import struct
import subprocess
import tempfile
import threading
import time
import urllib.request
import zipfile

import websockets

MOST_BYTES = 6_000_000
MOST_SECONDS = 3
TRAINED = "cosine"  # the schedule that the model was trained on

# The controls of both parts, by the names of playground/bridge.h.
FORWARD = [
    {"schedule": "cosine", "t": 600, "seed": 0, "error": 0.1, "clip": False},
    {"schedule": "cosine", "t": 600, "seed": 0, "error": 0.1, "clip": True},
    {"schedule": "cosine", "t": 999, "seed": 3, "error": 0.01, "clip": False},
    {"schedule": "linear", "t": 999, "seed": 3, "error": 0.25, "clip": True},
    {"schedule": "linear", "t": 0, "seed": 2147483647, "error": 0.5, "clip": True},
]
SAMPLE = [
    {"schedule": "cosine", "steps": 50, "ddim": True, "eta": 0, "clip": True, "seed": 1, "count": 4},
    {"schedule": "cosine", "steps": 20, "ddim": True, "eta": 0.5, "clip": True, "seed": 2, "count": 1},
    {"schedule": "cosine", "steps": 20, "ddim": False, "eta": 0, "clip": True, "seed": 3, "count": 1},
    {"schedule": "linear", "steps": 20, "ddim": True, "eta": 0, "clip": True, "seed": 4, "count": 1},
    {"schedule": "linear", "steps": 20, "ddim": False, "eta": 0, "clip": False, "seed": 5, "count": 1},
]


class Failure(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failure(message)
    print("ok   " + message)


class Chromium:
    """A headless browser with one page, driven by the DevTools protocol."""

    async def __aenter__(self):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # Tests run as root in containers, where Chromium's own sandbox does not start.
        self.process = subprocess.Popen(
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--remote-debugging-port=0", "--user-data-dir=" + self.folder.name, "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = pathlib.Path(self.folder.name, "DevToolsActivePort")
        deadline = time.monotonic() + 60
        while not (port_file.exists() and "\n" in port_file.read_text()):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise Failure("chromium did not start")
            await asyncio.sleep(0.05)
        port = port_file.read_text().split("\n")[0]
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        targets = json.load(direct.open(f"http://127.0.0.1:{port}/json/list"))
        address = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
        self.socket = await websockets.connect(address, max_size=None)
        self.last = 0
        self.problems = []
        for domain in ("Page", "Runtime", "Log"):
            await self.send(domain + ".enable")
        return self

    async def __aexit__(self, *_):
        await self.socket.close()
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    async def send(self, method, **params):
        self.last += 1
        await self.socket.send(json.dumps({"id": self.last, "method": method, "params": params}))
        while True:
            message = json.loads(await asyncio.wait_for(self.socket.recv(), 120))
            self.note(message)
            if message.get("id") == self.last:
                if "error" in message:
                    raise Failure(f"{method}: {message['error']['message']}")
                return message["result"]

    def note(self, message):
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.problems.append(message["params"]["entry"]["text"])

    async def evaluate(self, expression):
        """The value of an expression, a promise's when it is one."""
        answer = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True,
                                 returnByValue=True)
        if "exceptionDetails" in answer:
            raise Failure(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def open(self, address):
        await self.send("Page.navigate", url=address)
        while await self.evaluate("location.href !== 'about:blank' && document.readyState") != "complete":
            await asyncio.sleep(0.02)
        await self.evaluate("ready.then(() => null)")
        return await self.evaluate("document.getElementById('status').textContent")

    async def press(self, key, code=0, text=""):
        for kind in ("keyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                            text=text if kind == "keyDown" else "")

    async def size(self, width, height, mobile=False):
        await self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                        deviceScaleFactor=1, mobile=mobile)


# ---- numbers

async def page_forward(page, controls):
    return await page.evaluate(f"""ready.then(async ({{engine, forward}}) => {{
      const {{pixels, height, width, channels}} = forward.images[0];
      const result = await engine.call("forward", {{x_0: pixels, height, width, channels,
        controls: {json.dumps(controls)}}});
      return {{x_0: [...pixels], x_t: [...result.x_t], x_0_hat: [...result.x_0_hat],
        mu_tilde: [...result.mu_tilde], mu_theta: [...result.mu_theta],
        max_difference: result.max_difference, mu_tilde_error: result.mu_tilde_error,
        mu_theta_error: result.mu_theta_error}};
    }})""")


async def page_sample(page, controls):
    """By the controls of the page, as a reader would."""
    return await page.evaluate(f"""ready.then(async ({{sampler}}) => {{
      const controls = {json.dumps(controls)}, elements = sampler.form.elements;
      elements.schedule.value = controls.schedule;
      elements.steps.value = controls.steps;
      elements.sampler.value = controls.ddim ? "ddim" : "ddpm";
      elements.eta.value = controls.eta;
      elements.clip.checked = controls.clip;
      elements.seed.value = controls.seed;
      elements.count.value = controls.count;
      await sampler.play(true);
      const last = sampler.frames.at(-1);
      return {{x: [...last.x_prev], x_0_hat: [...last.x_0_hat],
        timesteps: sampler.frames.map((frame) => [frame.schedule_t, frame.network_t])}};
    }})""")


def native(program, model, requests):
    answers = subprocess.run([program, model], input=json.dumps(requests), text=True, check=True,
                             capture_output=True)
    return json.loads(answers.stdout)


def farthest(a, b):
    if len(a) != len(b):
        raise Failure(f"{len(a)} numbers against {len(b)}")
    return max(abs(p - q) for p, q in zip(a, b))


def alpha_bar(schedule, T=1000):
    if schedule == "linear":
        betas = [1e-4 + (0.02 - 1e-4) * t / (T - 1) for t in range(T)]
    else:
        f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
        betas = [min(0.999, 1 - f[t + 1] / f[t]) for t in range(T)]
    return list(itertools.accumulate((1 - beta for beta in betas), operator.mul))


def shown_timesteps(schedule, steps):
    """Of each step, t in its schedule and the t of nearest noise in the model's, largest first."""
    used = [round(i * 999 / (steps - 1)) for i in range(steps)]
    logit = lambda a: math.log(a / (1 - a))
    trained = [logit(a) for a in alpha_bar(TRAINED)]
    own = [logit(a) for a in alpha_bar(schedule)]
    return [[t, min(range(1000), key=lambda s: abs(trained[s] - own[t]))] for t in reversed(used)]


async def check_numbers(page, arguments):
    from_page = [await page_forward(page, controls) for controls in FORWARD]
    requests = [{"kind": "forward", "x_0": answer.pop("x_0"), "height": 28, "width": 28, "channels": 1,
                 **controls} for controls, answer in zip(FORWARD, from_page)]
    for controls, here, there in zip(FORWARD, from_page, native(arguments.native, arguments.model, requests)):
        expect(here == there, f"forward, bit for bit as the native program: {controls}")
        if controls["clip"]:
            expect(here["mu_tilde_error"] < here["mu_theta_error"], "and clipping brings its mean nearer to the right")

    # Sampling calls exp, cos and sin, whose last digits differ between the two C libraries; so does the order of
    # rounding in `mutilde sample`, which may fuse multiplications and additions. How much rounding moves a sample
    # is measured: the native program's distance from the same sampling in float64. Two programs that each round
    # in their own way are at most the sum of their distances apart; a second factor of 2, for one may be unlucky.
    from_page = [await page_sample(page, controls) for controls in SAMPLE]
    requests = [{"kind": "sample", **controls} for controls in SAMPLE]
    from_native = native(arguments.native, arguments.model, requests)
    exact = native(arguments.native, arguments.model, [{"float64": True, **request} for request in requests])
    for controls, here, there, truth in zip(SAMPLE, from_page, from_native, exact):
        expect(here["timesteps"] == shown_timesteps(controls["schedule"], controls["steps"]),
               f"{controls['steps']} steps on the {controls['schedule']} schedule show the network the nearest t")
        tolerance = 4 * farthest(there["x"], truth["x"])
        distance = farthest(here["x"], there["x"])
        expect(distance <= tolerance, f"samples within {distance:.2g} (at most {tolerance:.2g}) of the native "
               f"program's: {controls}")
        if controls["schedule"] == TRAINED:  # the command keeps to the schedule of the training
            # The command writes the whole part of 127.5 (x + 1).
            misses = [max(level - (v + 1) * 127.5, (v + 1) * 127.5 - (level + 1)) / 127.5
                      for v, level in zip(here["x"], command_samples(arguments, controls)) if -1 <= v <= 1]
            expect(max(misses) <= tolerance, "and of `mutilde sample`, as far as its grey levels tell")


def command_samples(arguments, controls):
    """uint8 samples of `mutilde sample`, flat."""
    with tempfile.TemporaryDirectory() as folder:
        archive = os.path.join(folder, "samples.npz")
        command = [arguments.mutilde, "sample", arguments.model, "--num_samples", str(controls["count"]),
                   "--timestep_respacing", str(controls["steps"]), "--seed", str(controls["seed"]),
                   "--clip_denoised", str(controls["clip"]), "--npz", archive]
        if controls["ddim"]:
            command += ["--use_ddim", "--eta", str(controls["eta"])]
        subprocess.run(command, check=True, capture_output=True)
        with zipfile.ZipFile(archive) as file:
            array = file.read("arr_0.npy")
    return list(array[10 + struct.unpack("<H", array[8:10])[0]:])


# ---- the page

async def check_load(page, address):
    for _ in range(3):  # the fastest counts: the machine may have other work
        status = await page.open(address)
        seconds = float(status.split()[1])
        if seconds < MOST_SECONDS:
            break
    expect(status.startswith("Ready,") and seconds < MOST_SECONDS, f"{address.split(':')[0]}: {status}")


def check_size(folder):
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    expect(total < MOST_BYTES, f"{total:,} bytes in {folder.name}/, model included")


async def check_responsive(page):
    """While nine images are sampled the page's own thread goes on: it has many turns in each step. Were it to
    compute, it would have one between two of them."""
    answer = await page.evaluate("""ready.then(async ({sampler}) => {
      let turns = 0;
      const timer = setInterval(() => ++turns, 5);
      Object.assign(sampler.form.elements.steps, {value: 10});
      Object.assign(sampler.form.elements.count, {value: 9});
      await sampler.play(true);
      clearInterval(timer);
      return {turns, steps: sampler.frames.length};
    })""")
    expect(answer["turns"] > 3 * answer["steps"],
           f"the page has {answer['turns']} turns of its own in {answer['steps']} steps")


async def check_keyboard(page):
    unnamed = await page.evaluate("""[...document.querySelectorAll("input, select, button")].filter(
      (control) => !(control.labels?.length || control.ariaLabel || control.textContent)).map((c) => c.id)""")
    expect(unnamed == [], "every control has a label")
    await page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        await page.press("Tab", 9)
        reached.add(await page.evaluate("document.activeElement.id || document.activeElement.name"))
    wanted = {"t", "error", "forward-clip", "forward-schedule", "image", "file", "forward-seed", "run", "one-step",
              "frame", "schedule", "steps", "sampler", "eta", "clip", "seed", "count"}
    expect(wanted <= reached, f"Tab reaches every control{''.join(' but ' + w for w in wanted - reached)}")
    before = await page.evaluate("$('t').focus(), $('n-alpha-bar').textContent")
    for _ in range(3):
        await page.press("ArrowLeft", 37)
    await page.evaluate("new Promise((done) => setTimeout(done, 500))")
    after = await page.evaluate("[$('t-value').textContent, $('n-alpha-bar').textContent]")
    expect(after[0] == "597" and after[1] != before, "an arrow key moves t, and the numbers follow")
    await page.evaluate("$('seed').focus()")
    await page.press("Enter", 13, "\r")
    expect(await page.evaluate("ready.then(({sampler}) => sampler.playing)"), "Enter starts the sampling")
    await page.evaluate("ready.then(({sampler}) => sampler.pause())")


async def check_own_image(page):
    shot = await page.send("Page.captureScreenshot")
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(base64.b64decode(shot["data"]))
        file.flush()
        root = (await page.send("DOM.getDocument"))["root"]["nodeId"]
        control = (await page.send("DOM.querySelector", nodeId=root, selector="#file"))["nodeId"]
        await page.send("DOM.setFileInputFiles", files=[file.name], nodeId=control)
        deadline = time.monotonic() + 30
        while await page.evaluate("$('x-0-hat').width") != 96 and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
    colours = await page.evaluate("""(() => {
      const {data} = $("x-0").getContext("2d").getImageData(0, 0, 96, 96);
      return new Set(new Uint32Array(data.buffer)).size;
    })()""")
    expect(await page.evaluate("$('x-0-hat').width") == 96 and colours > 10, "the reader's own image is taken")


async def check_width(page):
    for width in (320, 390):
        await page.size(width, 844, mobile=True)
        wide = await page.evaluate("document.documentElement.scrollWidth")
        expect(wide <= width, f"nothing is wider than a screen of {width} pixels")


async def check_missing(address):
    async with Chromium() as page:
        for remove, words in (("delete window.Worker", "web workers"),
                              ("delete window.WebAssembly", "WebAssembly"),
                              ("WebAssembly.validate = () => false", "SIMD")):
            script = await page.send("Page.addScriptToEvaluateOnNewDocument", source=remove)
            status = await page.open(address)
            disabled = await page.evaluate("[...document.querySelectorAll('main button')].every((b) => b.disabled)")
            expect("This browser lacks" in status and words in status and disabled, f"after {remove}: {status}")
            await page.send("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])


async def take_screenshots(page, address, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for theme in ("light", "dark"):
        await page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        for width in (390, 1440):
            await page.size(width, 900, mobile=width < 600)
            await page.open(address)
            await page.evaluate("ready.then(({sampler}) => sampler.play(true))")
            shot = await page.send("Page.captureScreenshot", captureBeyondViewport=True)
            (folder / f"{theme}-{width}.png").write_bytes(base64.b64decode(shot["data"]))


def serve(folder):
    """A static server of the folder; its address."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/index.html"


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("native")
    parser.add_argument("mutilde")
    parser.add_argument("model")
    parser.add_argument("--screenshots", type=pathlib.Path)
    arguments = parser.parse_args()
    address = (arguments.page.resolve() / "index.html").as_uri()
    check_size(arguments.page)
    async with Chromium() as page:
        await check_load(page, serve(arguments.page))
        await check_load(page, address)
        await check_numbers(page, arguments)
        await check_responsive(page)
        await check_keyboard(page)
        await check_own_image(page)
        await check_width(page)
        expect(page.problems == [], f"no error was reported by the browser {page.problems or ''}")
        if arguments.screenshots:
            await take_screenshots(page, address, arguments.screenshots)
    await check_missing(address)


try:
    asyncio.run(main())
except Failure as failure:
    raise SystemExit(f"FAILED: {failure}")
