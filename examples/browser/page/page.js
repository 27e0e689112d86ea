// Runs model.onnx with onnxruntime-web; its int64 inputs choose the sizes inside the network, 0 for what the original has.
import * as ort from "./ort.wasm.bundle.min.mjs";

const COLOURS = ["#e6194b", "#3cb44b", "#ffe119", "#5b8def", "#f58231", "#b66dff", "#42d4f4", "#f032e6", "#bfef45", "#e0a98a"];
const byId = (id) => document.getElementById(id);
const load = async (path) => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer;
};

ort.env.wasm.numThreads = 1;
let model, session, images, labels, chosen, native;

/** Class scores, float32 (count, classes, side, side), of `count` images from the one numbered `first`. */
async function scores(first, count, sizes) {
  const { side } = model, area = side * side;
  const feeds = { image: new ort.Tensor("float32", images.subarray(first * area, (first + count) * area), [count, 1, side, side]) };
  model.sizes.forEach(({ name, native }, i) => {
    feeds[name] = new ort.Tensor("int64", BigInt64Array.from(native, () => BigInt(sizes[i])), [native.length]);
  });
  const start = performance.now();
  const outputs = await session.run(feeds);
  return { data: outputs[session.outputNames[0]].data, milliseconds: performance.now() - start };
}

/** The class of each pixel: the one with the highest score. */
function classes(data) {
  const { side, classes } = model, area = side * side, count = data.length / (classes * area);
  const found = new Uint8Array(count * area);
  for (let n = 0; n < count; n++)
    for (let p = 0; p < area; p++) {
      let best = 0;
      for (let c = 1; c < classes; c++)
        if (data[(n * classes + c) * area + p] > data[(n * classes + best) * area + p]) best = c;
      found[n * area + p] = best;
    }
  return found;
}

/** Digits' pixels that are right, over those that are a digit in either. */
function overlap(found, truth) {
  const background = model.classes - 1;
  let right = 0, either = 0;
  found.forEach((c, p) => {
    if (c === background && truth[p] === background) return;
    either++;
    right += c === truth[p];
  });
  return either ? right / either : 1;
}

const share = (a, b) => a.reduce((n, c, p) => n + (c === b[p]), 0) / a.length;
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const percent = (x) => `${(100 * x).toFixed(1)} %`;

function draw(id, image, found) {
  const { side } = model, context = byId(id).getContext("2d"), pixels = context.createImageData(side, side);
  for (let p = 0; p < side * side; p++) {
    const gray = 255 * Math.min(1, Math.max(0, image[p]));
    const colour = found && COLOURS[found[p]];
    for (let k = 0; k < 3; k++)
      pixels.data[4 * p + k] = colour ? 0.15 * gray + 0.85 * parseInt(colour.slice(1 + 2 * k, 3 + 2 * k), 16) : gray;
    pixels.data[4 * p + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

/** One line through points (x, y), with the axis' ends written on it. */
function chart(id, points, unit) {
  const [width, height, left, bottom] = [320, 150, 48, 22], xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const top = Math.max(...ys) || 1;
  const x = (v) => left + ((width - left - 8) * (v - xs[0])) / (xs[xs.length - 1] - xs[0]);
  const y = (v) => 8 + (height - bottom - 8) * (1 - v / top);
  const marks = points.map(([a, b]) => `<circle cx="${x(a)}" cy="${y(b)}" r="3"><title>size ${a}: ${unit(b)}</title></circle>`);
  const ticks = xs.filter((_, i) => i % 2 === 0).map((v) => `<text x="${x(v)}" y="${height - 6}" text-anchor="middle">${v}</text>`);
  byId(id).setAttribute("aria-label", points.map(([a, b]) => `size ${a}: ${unit(b)}`).join(", "));
  byId(id).innerHTML = `<path class="axis" d="M${left} 8V${y(0)}H${width}"/><text x="${left - 6}" y="12" text-anchor="end">${unit(top)}</text>`
    + `<text x="${left - 6}" y="${y(0)}" text-anchor="end">0</text>${ticks.join("")}`
    + `<path class="line" d="M${points.map(([a, b]) => `${x(a)} ${y(b)}`).join("L")}"/>${marks.join("")}`;
}

const part = (array, index) => array.subarray(index * model.side ** 2, (index + 1) * model.side ** 2);

async function show() {
  const index = Number(byId("which").value), runs = [];
  for (let n = 0; n < 5; n++) runs.push(await scores(index, 1, chosen));
  const found = classes(runs[0].data);
  draw("image", part(images, index));
  draw("found", part(images, index), found);
  draw("truth", part(images, index), part(labels, index));
  byId("which-now").textContent = `${index + 1} of ${model.count}`;
  byId("overlap").textContent = percent(overlap(found, part(labels, index)));
  byId("same").textContent = percent(share(found, part(native, index)));
  byId("time").textContent = `${median(runs.map((r) => r.milliseconds)).toFixed(1)} ms`;
}

/** Runs `work`; while it runs, at most one more is kept waiting: the newest. */
let running = false, next = null;
async function later(work) {
  if (running) { next = work; return; }
  running = true;
  document.body.dataset.state = "running";
  try {
    for (next = work; next; ) {
      const now = next;
      next = null;
      await now();
      await new Promise((done) => setTimeout(done));
    }
    document.body.dataset.state = "ready";
  } catch (error) {
    fail(error);
  } finally {
    running = false;
  }
}

function fail(error) {
  document.body.dataset.state = "failed";
  byId("error").hidden = false;
  byId("error").textContent = String(error);
  console.error(error);
}

async function sweep() {
  const [{ native: [original] }] = model.sizes, points = [];
  for (let n = 4; n <= 16; n++) {
    const size = Math.round((original * n) / 8), sizes = model.sizes.map((_, i) => (i ? 0 : size));
    const { data, milliseconds } = await scores(0, model.count, sizes);
    points.push([size, overlap(classes(data), labels), milliseconds / model.count]);
    byId("charts").hidden = false;
    if (n > 4) {
      chart("chart-overlap", points.map(([x, y]) => [x, y]), percent);
      chart("chart-time", points.map(([x, , y]) => [x, y]), (v) => `${v.toFixed(v < 10 ? 1 : 0)} ms`);
    }
    await new Promise((done) => setTimeout(done));
  }
}

function slider({ name, sites, native: [original] }, index) {
  const row = document.createElement("div");
  row.className = "size";
  row.innerHTML = `<label for="size-${index}"><span></span><output for="size-${index}"></output></label>
    <input id="size-${index}" type="range" min="1" max="${2 * original}" value="${original}">`;
  row.querySelector("span").textContent = `Feature maps from ${sites[0]}`;
  const input = row.querySelector("input");
  row.show = () => {
    input.value = chosen[index] || original;
    row.querySelector("output").textContent = chosen[index] ? `${chosen[index]} × ${chosen[index]}` : "as the network makes it";
  };
  input.addEventListener("input", () => {
    chosen[index] = Number(input.value);
    row.show();
    later(show);
  });
  row.show();
  return row;
}

async function start() {
  model = await (await load("model.json")).json();
  images = new Float32Array(await (await load("images.f32")).arrayBuffer());
  labels = new Uint8Array(await (await load("labels.u8")).arrayBuffer());
  session = await ort.InferenceSession.create(await (await load("model.onnx")).arrayBuffer(), { executionProviders: ["wasm"] });
  chosen = model.sizes.map(() => 0);
  native = classes((await scores(0, model.count, chosen)).data);
  byId("which").max = model.count - 1;
  byId("legend").innerHTML = COLOURS.map((colour, digit) => `<span style="background:${colour}">${digit}</span>`).join("");
  const rows = model.sizes.map(slider);
  byId("sliders").append(...rows);
  byId("facts").textContent =
    `model.onnx: ${(model.bytes / 1024).toFixed(0)} KiB, with the inputs ${session.inputNames.join(", ")}. ${model.checked}. `
    + `Here: onnxruntime-web ${ort.env.versions.web}, one thread.`;
  byId("which").addEventListener("input", () => later(show));
  byId("native").addEventListener("click", () => {
    chosen.fill(0);
    rows.forEach((row) => row.show());
    later(show);
  });
  byId("sweep").addEventListener("click", () => later(sweep));
  await later(show);
}

start().catch(fail);
export { scores };
