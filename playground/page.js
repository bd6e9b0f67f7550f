// The page: controls, pictures and numbers. Everything is computed by the worker.
/* global builtInImages, playgroundWorker */
"use strict";

const $ = (id) => document.getElementById(id);
const setText = (id, text) => { $(id).textContent = text; };

// ---- what the browser must have

/** The features that are missing, in words. */
function missingFeatures() {
  // The smallest modules that use vector instructions, and exceptions.
  const simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
    253, 98, 11];
  const exceptions = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 8, 1, 6, 0, 6, 64, 25, 11, 11];
  const missing = [];
  if (typeof Worker === "undefined" || typeof Blob === "undefined") missing.push("web workers");
  if (typeof WebAssembly === "undefined") return [...missing, "WebAssembly"];
  if (!WebAssembly.validate(new Uint8Array(simd))) missing.push("WebAssembly’s vector instructions (SIMD)");
  if (!WebAssembly.validate(new Uint8Array(exceptions))) missing.push("WebAssembly’s exceptions");
  return missing;
}

function giveUp(message) {
  $("status").className = "problem";
  setText("status", message);
  for (const control of document.querySelectorAll("main input, main select, main button")) control.disabled = true;
}

// ---- the worker

/** Calls into the worker, by promises. */
class Engine {
  constructor() {
    // A page that is opened from disk may not start a worker from a file, but it may from its own text.
    const source = new Blob([`(${playgroundWorker})()`], {type: "text/javascript"});
    this.worker = new Worker(URL.createObjectURL(source));
    this.waiting = new Map();
    this.last = 0;
    this.worker.onmessage = ({data}) => {
      const {resolve, reject} = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if (data.error === undefined) resolve(data.result);
      else reject(new Error(data.error));
    };
    this.worker.onerror = (event) => giveUp(`The worker failed: ${event.message}`);
  }

  call(kind, message = {}) {
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, {resolve, reject});
      this.worker.postMessage({...message, id, kind});
    });
  }
}

// ---- pictures and numbers

/** 0.000994, 12.4, 20300, 2.38e-7 */
function short(x) {
  if (x === 0) return "0";
  return Math.abs(x) >= 1e-4 && Math.abs(x) < 1e5 ? String(Number(x.toPrecision(3))) : x.toExponential(2);
}
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 2 : 1)} %`;

const above = [217, 130, 43], below = [59, 125, 216];  // as in style.css

/** Of a value, its colour: grey from -1 to 1, and beyond that as asked. */
const clamped = (v) => Math.round((Math.min(1, Math.max(-1, v)) + 1) * 127.5);

/** Draws images of [count, H, W, C] in a square of rows; `colour(values, at)` gives a pixel's. */
function draw(canvas, pixels, {height, width, channels, count = 1}, colour) {
  const across = Math.ceil(Math.sqrt(count));
  canvas.width = across * width;
  canvas.height = across * height;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  for (let image = 0; image < count; ++image) {
    for (let i = 0; i < height * width; ++i) {
      const rgb = colour(pixels, (image * height * width + i) * channels, channels);
      picture.data.set([...rgb, 255], 4 * i);
    }
    context.putImageData(picture, (image % across) * width, Math.floor(image / across) * height);
  }
}

function plain(pixels, at, channels) {
  return channels === 1 ? Array(3).fill(clamped(pixels[at])) : [0, 1, 2].map((c) => clamped(pixels[at + c]));
}

/** Marks what is outside of [-1, 1] by more than half a grey level. */
function marked(pixels, at, channels) {
  for (let c = 0; c < channels; ++c) {
    if (pixels[at + c] > 1 + 1 / 255) return above;
    if (pixels[at + c] < -1 - 1 / 255) return below;
  }
  return plain(pixels, at, channels);
}

/** Signed: from blue over the middle grey to orange at `scale`. */
const signed = (scale) => (pixels, at, channels) => {
  let v = 0;
  for (let c = 0; c < channels; ++c) if (Math.abs(pixels[at + c]) > Math.abs(v)) v = pixels[at + c];
  const share = scale > 0 ? Math.min(1, Math.abs(v) / scale) : 0;
  return (v > 0 ? above : below).map((end) => Math.round(128 + share * (end - 128)));
};

// ---- images to start from

/** {name, pixels: Float32Array in [-1, 1], height, width, channels} */
function builtIn({name, pixels}) {
  const bytes = Uint8Array.from(atob(pixels), (c) => c.charCodeAt(0));
  return {name, pixels: Float32Array.from(bytes, (b) => b / 127.5 - 1), height: 28, width: 28, channels: 1};
}

async function readImage(file) {
  const size = 96;
  const bitmap = await createImageBitmap(file);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const side = Math.min(bitmap.width, bitmap.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, size, size);
  const rgba = context.getImageData(0, 0, size, size).data;
  const pixels = new Float32Array(3 * size * size);
  for (let i = 0; i < size * size; ++i) {
    for (let c = 0; c < 3; ++c) pixels[3 * i + c] = rgba[4 * i + c] / 127.5 - 1;
  }
  return {name: file.name, pixels, height: size, width: size, channels: 3};
}

// ---- the first part: eq. 9, 11 and 13

class Forward {
  constructor(engine) {
    this.engine = engine;
    this.form = $("forward");
    this.images = [];
    this.image = null;
    this.busy = this.again = false;
    for (const image of builtInImages) this.addImage(builtIn(image));
    this.form.addEventListener("input", () => this.update());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    $("file").addEventListener("change", () => this.takeFile($("file").files[0]));
    document.body.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.form.classList.add("dropping");
    });
    document.body.addEventListener("dragleave", () => this.form.classList.remove("dropping"));
    document.body.addEventListener("drop", (event) => {
      event.preventDefault();
      this.form.classList.remove("dropping");
      this.takeFile(event.dataTransfer.files[0]);
    });
  }

  addImage(image) {
    const choice = document.createElement("label"), input = document.createElement("input");
    const canvas = document.createElement("canvas");
    Object.assign(input, {type: "radio", name: "image", value: this.images.length, checked: !this.image});
    input.setAttribute("aria-label", image.name);
    choice.title = image.name;
    draw(canvas, image.pixels, image, plain);
    choice.append(input, canvas);
    $("images").append(choice);
    this.images.push(image);
    this.image ??= image;
    return input;
  }

  async takeFile(file) {
    if (!file) return;
    try {
      this.addImage(await readImage(file)).checked = true;
      this.update();
    } catch {
      setText("verdict", `${file.name}: the browser cannot read this as an image.`);
    }
  }

  controls() {
    const {schedule, t, seed, error, clip} = this.form.elements;
    return {schedule: schedule.value, t: t.valueAsNumber, seed: seed.valueAsNumber, error: error.valueAsNumber,
      clip: clip.checked};
  }

  /** Computes for what the controls say by the time that the worker is free. */
  async update() {
    const controls = this.controls();
    setText("t-value", controls.t);
    setText("error-value", controls.error);
    if (!this.form.checkValidity()) return;
    this.image = this.images[this.form.elements.image.value];
    if (this.busy) {
      this.again = true;
      return;
    }
    this.busy = true;
    const {pixels: x_0, height, width, channels} = this.image;
    try {
      this.show(controls, this.image,
          await this.engine.call("forward", {x_0, height, width, channels, controls}));
    } catch (error) {
      setText("verdict", error.message);
    }
    this.busy = false;
    if (this.again) {
      this.again = false;
      this.update();
    }
  }

  show(controls, image, result) {
    const show = (id, pixels, colour, words) => {
      draw($(id), pixels, image, colour);
      $(id).setAttribute("aria-label", words);
    };
    const difference = result.mu_tilde.map((v, i) => v - result.mu_theta[i]);
    show("x-0", image.pixels, plain, `x_0: ${image.name}`);
    show("x-t", result.x_t, plain, `x_t at t = ${controls.t}`);
    show("x-0-hat", result.x_0_hat, marked, `x_0_hat, ${percent(result.x_0_range.share_outside)} of it outside`);
    show("mu-tilde", result.mu_tilde, plain, "the mean by eq. 11");
    show("mu-theta", result.mu_theta, plain, "the mean by eq. 13");
    show("difference", difference, signed(result.max_difference),
        `mu_tilde minus mu_theta, at most ${short(result.max_difference)}`);
    setText("difference-scale", `full colour is ${short(result.max_difference)}`);

    const expected = result.mu_tilde_x_0_t * result.max_cut;
    setText("n-alpha-bar", short(result.alpha_bar_t));
    setText("n-amplification", short(result.sqrt_recip_alpha_bar_minus_one_t));
    setText("n-mean", short(result.x_0_range.mean_abs));
    setText("n-max", short(result.x_0_range.max_abs));
    setText("n-outside", percent(result.x_0_range.share_outside));
    setText("n-difference", short(result.max_difference));
    setText("n-mu-tilde-error", short(result.mu_tilde_error));
    setText("n-mu-theta-error", short(result.mu_theta_error));
    setText("n-expected", short(expected));
    setText("verdict", this.verdict(controls, result));
  }

  verdict({clip}, {x_0_range, max_difference}) {
    const outside = x_0_range.share_outside > 0;
    if (!clip) {
      return `Without clipping, eq. 11 and eq. 13 are one function: ${short(max_difference)} is round-off of ` +
        `float32. ${outside ? "Clip x_0_hat to see them part." : "And nothing is outside of [−1, 1]."}`;
    }
    return outside ? `Eq. 11 gets the clipped x_0_hat, eq. 13 knows nothing of it: they differ by up to ` +
        `${short(max_difference)}, where x_0_hat is outside of [−1, 1] and nowhere else.` :
      "Nothing of x_0_hat is outside of [−1, 1], so clipping changes nothing but round-off.";
  }
}

// ---- the second part: sampling

/** One run after the other of the controls' samples. The worker takes a step when it is asked to. */
class Sampler {
  constructor(engine, model) {
    this.engine = engine;
    this.model = model;
    this.form = $("sampling");
    this.started = null;  // the controls of the samples under way
    this.frames = [];     // a step's x_t and what came of it
    this.playing = false;
    this.form.addEventListener("input", () => this.showControls());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.play(true);
    });
    $("one-step").addEventListener("click", () => this.oneStep());
    $("pause").addEventListener("click", () => (this.playing ? this.pause() : this.play(false)));
    $("frame").addEventListener("input", () => this.showFrame($("frame").valueAsNumber));
    this.showControls();
  }

  controls() {
    const {schedule, steps, sampler, eta, clip, seed, count} = this.form.elements;
    return {schedule: schedule.value, steps: steps.valueAsNumber, ddim: sampler.value === "ddim",
      eta: eta.valueAsNumber, clip: clip.checked, seed: seed.valueAsNumber, count: Number(count.value)};
  }

  get done() { return this.frames.length > 0 && this.frames.at(-1).done; }

  async begin() {
    const controls = this.controls();
    this.frames = [];
    this.started = controls;
    await this.engine.call("start", {controls});
  }

  /** Takes the next step, if none began anew meanwhile. */
  async step() {
    const frames = this.frames;
    const frame = await this.engine.call("step");
    if (frames !== this.frames) return;
    frames.push(frame);
    this.showFrame(frame.done ? frames.length : frames.length - 1);
  }

  async play(anew) {
    const turn = this.turn = {};  // a later call takes over
    this.playing = true;
    this.showButtons();
    try {
      if (anew) await this.begin();
      while (this.playing && this.turn === turn && !this.done) await this.step();
    } catch (error) {
      setText("progress", error.message);
    }
    if (this.turn !== turn) return;
    this.playing = false;
    this.showButtons();
  }

  pause() {
    this.playing = false;
  }

  /** Goes on by one step; begins anew where there is none left, or the controls have changed. */
  async oneStep() {
    if (!this.form.reportValidity()) return;
    this.turn = null;
    this.playing = false;
    $("one-step").disabled = true;
    try {
      if (this.done || JSON.stringify(this.controls()) !== JSON.stringify(this.started)) await this.begin();
      await this.step();
    } catch (error) {
      setText("progress", error.message);
    }
    $("one-step").disabled = false;
    this.showButtons();
  }

  showControls() {
    const ddim = $("sampler").value === "ddim";
    $("eta").disabled = !ddim;
    setText("eta-value", ddim ? $("eta").valueAsNumber.toFixed(2) : "not in DDPM");
  }

  showButtons() {
    $("pause").disabled = !this.playing && (this.frames.length === 0 || this.done);
    setText("pause", this.playing ? "Pause" : "Go on");
  }

  /** Step `at`: its x_t, and x_0_hat from it. One behind the last step is the result. */
  showFrame(at) {
    const {frames, started} = this, frame = frames[Math.min(at, frames.length - 1)];
    const result = at === frames.length;
    const shape = {height: this.model.size, width: this.model.size, channels: this.model.channels,
      count: started.count};
    draw($("sample-x"), result ? frame.x_prev : frame.x_t, shape, plain);
    draw($("sample-x-0-hat"), frame.x_0_hat, shape, plain);
    setText("sample-x-name", result ? "x_0" : "x_t");
    setText("sample-x-note", result ? "the samples" : `t = ${frame.schedule_t}`);
    $("sample-x").setAttribute("aria-label", result ? "the samples" : `x_t at t = ${frame.schedule_t}`);
    $("sample-x-0-hat").setAttribute("aria-label", `x_0_hat predicted at t = ${frame.schedule_t}`);

    const slider = $("frame");
    slider.disabled = false;
    slider.max = this.done ? frames.length : frames.length - 1;
    slider.value = at;
    setText("frame-value", result ? "result" : `${at + 1} of ${started.steps}`);

    setText("s-t", frame.schedule_t);
    setText("s-network-t", frame.network_t);
    setText("s-alpha-bar", short(frame.alpha_bar_t));
    setText("s-mean", short(frame.x_0_range.mean_abs));
    setText("s-max", short(frame.x_0_range.max_abs));
    setText("s-outside", percent(frame.x_0_range.share_outside));
    setText("s-time", `${Math.round(frame.milliseconds)} ms`);
    const seconds = frames.reduce((sum, {milliseconds}) => sum + milliseconds / 1000, 0);
    setText("progress", this.done ? `Done: ${started.steps} steps in ${seconds.toFixed(1)} s.` :
      `${frames.length} of ${started.steps} steps done.`);
  }
}

async function main() {
  const missing = missingFeatures();
  if (missing.length > 0) {
    giveUp(`This browser lacks ${missing.join(" and ")}, and this page cannot do without. Chrome and Edge have it ` +
      "all from version 95 on, Firefox from 100, Safari from 16.4.");
    return null;
  }
  try {
    const engine = new Engine();
    const model = await engine.call("describe");
    setText("model", `A UNet of ${(model.parameters / 1e6).toFixed(2)} million weights, trained for ` +
      `${model.step.toLocaleString("en")} steps on Fashion-MNIST with the ${model.schedule} schedule. What it is ` +
      `shown beside x_t is how noisy that is, as a t of the ${model.schedule} schedule; on another one each step ` +
      "shows it the t of nearest alpha_bar_t, where by eq.\u00a08 x_t has the same distribution.");
    const forward = new Forward(engine), sampler = new Sampler(engine, model);
    await forward.update();
    setText("status", `Ready, ${(performance.now() / 1000).toFixed(1)} s after the page was opened.`);
    return {engine, forward, sampler};
  } catch (error) {
    giveUp(`The engine did not start: ${error.message}`);
    return null;
  }
}

const ready = main();
