"use strict";
// Tables are in the page already; this adds sorting, the choice of a site, and the charts (Observable Plot).
const data = JSON.parse(document.getElementById("data").textContent);
const colours = ["var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)"];
const names = data.variants.map((v) => v.name);
const colour = (name) => colours[Math.min(names.indexOf(name), colours.length - 1)];
const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text ?? "" });
const short = (x) => (x === 0 ? "0" : Math.abs(x) < 0.001 ? x.toExponential(1) : Number(x.toPrecision(3)).toString());
const width = (element) => Math.max(260, element.clientWidth || 640);

function latency() {
  const figure = document.getElementById("latency");
  const rows = data.variants.flatMap((v) =>
    Object.entries(v.latency).map(([mode, t]) => ({
      label: `${v.name}: ${mode}`, model: v.name, mode,
      median: t.median_s * 1e3, q1: t.q1_s * 1e3, q3: t.q3_s * 1e3,
      title: `${v.name}: ${mode}\nmedian ${short(t.median_s * 1e3)} ms, quartiles ${short(t.q1_s * 1e3)} to ${short(t.q3_s * 1e3)} ms\n` +
        `ratio ${t.ratio.toFixed(2)} (${t.ratio_low.toFixed(2)} to ${t.ratio_high.toFixed(2)}), ${t.rounds} rounds`,
    })),
  );
  const wide = width(figure), narrow = wide < 560;
  const labels = rows.map((r) => r.label);
  figure.replaceChildren(Plot.plot({
    width: wide, height: rows.length * (narrow ? 48 : 30) + 62, marginLeft: narrow ? 10 : 250, marginRight: 40, marginBottom: 42,
    x: { label: "time (ms)", grid: true, zero: true, nice: true },
    y: { label: null, domain: labels, axis: narrow ? null : "left", padding: narrow ? 0.5 : 0.25 },
    marks: [
      Plot.barX(rows, { x: "median", y: "label", fill: (r) => colour(r.model) }),
      Plot.ruleY(rows, { x1: "q1", x2: "q3", y: "label", stroke: "var(--front)", strokeWidth: 2 }),
      narrow ? Plot.text(rows, { x: 0, y: "label", text: "label", textAnchor: "start", dy: -20 }) : null,
      Plot.tip(rows, Plot.pointerY({ x: "median", y: "label", title: "title", lineWidth: 40 })),  // anywhere on a long bar
    ],
  }));
}

function batches() {
  const figure = document.getElementById("batches");
  if (!figure) return;
  const rows = data.batches.flatMap(({ batch, latency }) => Object.entries(latency).map(([model, t]) => ({
    batch, model, median: t.median_s * 1e3, q1: t.q1_s * 1e3, q3: t.q3_s * 1e3,
    title: `${model}, batch ${batch}\nmedian ${short(t.median_s * 1e3)} ms, ${short(batch / t.median_s)} samples per second\n` +
      `ratio ${t.ratio.toFixed(2)} (${t.ratio_low.toFixed(2)} to ${t.ratio_high.toFixed(2)})`,
  })));
  figure.replaceChildren(Plot.plot({
    width: width(figure), height: 300, marginLeft: 50, marginRight: 30, marginBottom: 42,
    x: { label: "batch (samples)", type: "log", ticks: data.batches.map((b) => b.batch), tickFormat: "d" },
    y: { label: "time (ms)", type: "log", grid: true, ticks: 5, tickFormat: short },
    marks: [
      Plot.line(rows, { x: "batch", y: "median", z: "model", stroke: (r) => colour(r.model) }),
      Plot.ruleX(rows, { x: "batch", y1: "q1", y2: "q3", stroke: (r) => colour(r.model) }),
      Plot.dot(rows, { x: "batch", y: "median", fill: (r) => colour(r.model) }),
      Plot.tip(rows, Plot.pointer({ x: "batch", y: "median", title: "title" })),
    ],
  }), legend());
}

function legend() {
  const list = make("p");
  list.className = "quiet legend";
  for (const name of names) list.append(Object.assign(make("i"), { style: `background: ${colour(name)}` }), make("span", name));
  return list;
}

function trade() {
  const figure = document.getElementById("trade");
  if (!figure) return;
  const scored = data.trade.points[0].score !== null;
  const rows = data.trade.points.map((p) => ({
    x: p.latency_ms, y: scored ? p.score : p.gflops, low: Math.max(0, p.latency_ms - p.latency_iqr_ms / 2), high: p.latency_ms + p.latency_iqr_ms / 2, name: p.name,
    title: `${p.name}\n${short(p.latency_ms)} ms, ${short(p.gflops)} GFLOP${scored ? `\nscore ${short(p.score)}` : ""}`,
  }));
  figure.replaceChildren(Plot.plot({
    width: width(figure), height: 320, marginLeft: 50, marginRight: 90, marginBottom: 42,
    x: { label: "time (ms)", nice: true, grid: true }, y: { label: scored ? "score" : "GFLOP", nice: true, grid: true, tickFormat: short },
    marks: [
      Plot.line(rows.toSorted((a, b) => a.x - b.x), { x: "x", y: "y", stroke: "var(--c0)", strokeDasharray: "4 3" }),
      Plot.ruleY(rows, { x1: "low", x2: "high", y: "y", stroke: "var(--c1)" }),
      Plot.dot(rows, { x: "x", y: "y", r: 5, fill: "var(--c1)" }),
      Plot.text(rows, { x: "x", y: "y", text: "name", textAnchor: "start", dx: 9, dy: -9 }),
      Plot.tip(rows, Plot.pointer({ x: "x", y: "y", title: "title" })),
    ],
  }));
}

function groups() {
  const figure = document.getElementById("groups");
  if (!figure) return;
  const all = data.scale_groups.groups;
  const run = data.sites.map((s) => s.name);
  const place = (site) => run.indexOf(site);
  const order = all.flatMap((g) => g.sites).sort((a, b) => place(a) - place(b));
  const rows = all.flatMap((g) => g.sites.map((site, i) => {
    const axes = g.pins.length, free = g.pins.filter((p) => p === null).length;
    const pins = g.pins.flatMap((p, a) => (p ? [`axis ${a} pinned by ${p}`] : []));
    return {
      group: g.name, at: order.indexOf(site), full: free === axes ? 1 : free ? 0.5 : 0, size: g.native[i].join(" x "),
      title: [site, `group ${g.name}`, `${g.native[i].join(" x ")} natively, chosen as ${g.relations[i]}`, ...pins].join("\n"),
    };
  }));
  const last = all.map((g) => rows.filter((r) => r.group === g.name).reduce((a, b) => (a.at > b.at ? a : b)));
  const wide = width(figure), narrow = wide < 560;
  const cut = (name) => (name.length > 34 ? `\u2026${name.slice(-33)}` : name);
  figure.replaceChildren(Plot.plot({
    width: wide, height: all.length * (narrow ? 44 : 26) + 60, marginRight: 70, marginBottom: 36,
    marginLeft: narrow ? 12 : 20 + 7 * Math.max(...all.map((g) => cut(g.name).length)),
    x: { label: "order of the run", domain: [-0.5, order.length - 0.5], ticks: 0 },
    y: { label: null, domain: all.map((g) => g.name), axis: narrow ? null : "left", tickFormat: cut, type: "point", padding: 0.6 },
    marks: [
      Plot.line(rows, { x: "at", y: "group", z: "group", stroke: "var(--line)", strokeWidth: 6, strokeLinecap: "round" }),
      Plot.dot(rows, { x: "at", y: "group", r: 6, stroke: "var(--c1)", strokeWidth: 2, fill: (r) => `color-mix(in srgb, var(--c1) ${100 * r.full}%, var(--back))` }),
      Plot.text(last, { x: "at", y: "group", text: "size", textAnchor: "start", dx: 12 }),
      narrow ? Plot.text(all, { frameAnchor: "left", y: "name", text: (g) => cut(g.name), textAnchor: "start", dy: -15 }) : null,
      Plot.tip(rows, Plot.pointer({ x: "at", y: "group", title: "title" })),
    ],
  }));
}

function overview() {
  latency();
  batches();
  trade();
  groups();
}

function sorting(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((h) => h.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value || row.cells[column].textContent;
      const rows = [...body.rows].map((row, index) => ({ row, index, key: key(row) }));
      const numeric = rows.every(({ key }) => key === "" || !Number.isNaN(Number(key)));
      rows.sort((a, b) => {
        const order = numeric ? Number(a.key || -Infinity) - Number(b.key || -Infinity) || 0
          : a.key.localeCompare(b.key, "en", { numeric: true });
        return (up ? order : -order) || a.index - b.index;
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
}

let waiting = [];
function chart(caption, label, draw) {
  const figure = make("figure");
  figure.append(make("figcaption", caption));
  waiting.push([figure, label, draw]);
}

function drawn() {  // all places first: their width depends on how many there are
  document.getElementById("charts").replaceChildren(...waiting.map(([figure]) => figure));
  for (const [figure, label, draw] of waiting) {
    const svg = draw(Math.min(width(figure), 440));
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", label);
    figure.append(svg);
  }
  waiting = [];
}

function positions(learnt) {
  const { start, now, taps, shown_sets: sets, sets: all } = learnt.positions;
  const axes = start[0].length, first = Math.max(0, axes - 2);  // of a volume, the last two axes
  const flat = axes === 1;
  const points = now.map((p, i) => {
    const set = sets[Math.floor(i / taps)], from = start[i];
    const moved = Math.hypot(...p.map((x, a) => x - from[a]));
    return {
      x: p[axes - 1], y: flat ? set : p[first], x0: from[axes - 1], y0: flat ? set : from[first],
      title: `tap ${i % taps}, set ${set}\nat (${p.map(short).join(", ")})\nfrom (${from.map(short).join(", ")})\nmoved ${short(moved)} samples`,
    };
  });
  const half = (a) => Math.max((learnt.window[a] - 1) / 2, 0.5) + 0.5;
  const lines = (a) => Array.from({ length: learnt.window[a] }, (_, i) => i - (learnt.window[a] - 1) / 2);
  const ticks = (a) => (learnt.window[a] <= 11 ? lines(a) : 8);
  const shown = sets.length < all ? `${sets.length} of ${all} sets` : `${all} set${all > 1 ? "s" : ""}`;
  chart(`Positions over the original grid, in samples from the centre (${shown} of ${taps} taps${axes > 2 ? ", last two axes" : ""}).`,
    `Positions of ${points.length} taps over the original grid`, (w) => Plot.plot({
      width: w, height: flat ? 220 : w * Math.min(1.2, half(first) / half(axes - 1)) + 40, marginLeft: 44, marginBottom: 42,
      x: { label: flat ? "position" : "column", domain: [-half(axes - 1), half(axes - 1)], ticks: ticks(axes - 1) },
      y: flat ? { label: "set", domain: [Math.max(...sets) + 1, -1], ticks: sets.length < 9 ? sets : 8, tickFormat: "d" }
        : { label: "row", domain: [half(first), -half(first)], ticks: ticks(first) },
      marks: [
        Plot.ruleX(lines(axes - 1), { stroke: "var(--line)" }),
        flat ? null : Plot.ruleY(lines(first), { stroke: "var(--line)" }),
        Plot.link(points, { x1: "x0", y1: "y0", x2: "x", y2: "y", stroke: "var(--c2)", strokeOpacity: 0.6 }),
        Plot.dot(points, { x: "x0", y: "y0", r: 5, stroke: "var(--c0)", symbol: "square" }),
        Plot.dot(points, { x: "x", y: "y", r: points.length > 60 ? 2 : 3.5, fill: "var(--c1)" }),
        Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: "title", maxRadius: 25 })),
      ],
    }));
}

function profiles(learnt) {
  for (const axis of learnt.profiles.axes) {
    const z = learnt.profiles.z;
    const rows = axis.values.flatMap((values, i) => values.map((value, j) => ({ z: z[j], value, tap: axis.taps[i],
      title: `tap ${axis.taps[i]}\nat ${short(z[j])} samples: ${short(value)}` })));
    const start = axis.start.map((value, j) => ({ z: z[j], value }));
    chart(`Axis ${axis.axis}: what a tap contributes at a distance (solid, one line per tap), and at the start (dashed).`,
      `Continuous profile of ${axis.taps.length} taps along axis ${axis.axis}`, (w) => Plot.plot({
        width: w, height: 250, marginLeft: 44, marginBottom: 42, x: { label: "distance (samples)" }, y: { label: "contribution", nice: true },
        marks: [
          Plot.ruleY([0], { stroke: "var(--line)" }),
          Plot.ruleX([-2, -1, 0, 1, 2], { stroke: "var(--line)" }),
          Plot.line(rows, { x: "z", y: "value", z: "tap", stroke: "var(--c1)", strokeWidth: 1.5 }),
          Plot.line(start, { x: "z", y: "value", stroke: "var(--c0)", strokeWidth: 1.5, strokeDasharray: "4 3" }),
          Plot.tip(rows, Plot.pointer({ x: "z", y: "value", title: "title" })),
        ],
      }));
  }
}

const ends = (n) => (n > 1 ? [0, n - 1] : [0]);
function kernels(learnt) {
  const { before, after, filter, projected } = learnt.kernel;
  const pictures = [["rms", "Root mean square over the channels"], ["filter", `Filter (${filter.join(", ")})${learnt.moved ? ", the one that changed most" : ""}`]];
  for (const [kind, what] of pictures) {
    const all = [before, after].filter(Boolean).flatMap((k) => k[kind].flat());
    const largest = Math.max(...all.map(Math.abs)) || 1;
    for (const [when, kernel] of [["before", before], ["after", after]]) {
      if (!kernel) continue;
      const picture = kernel[kind], rows = picture.length, columns = picture[0].length;
      const large = Math.max(rows, columns) > 16; // rounded to pixels, or with gaps, cells of less than one would vanish
      const cells = picture.flatMap((row, y) => row.map((value, x) => ({ x, y, value, title: `row ${y}, column ${x}\n${short(value)}` })));
      chart(`${what}, ${when}${projected ? " (one slice)" : ""}.`, `Kernel ${when}, ${rows} by ${columns} cells, largest magnitude ${short(largest)}`,
        (w) => Plot.plot({
          width: w, height: Math.min(w, (w - 30) * rows / columns) + (rows === 1 ? 60 : 30), marginLeft: 30,
          x: { label: null, ticks: ends(columns), round: !large }, y: { label: null, ticks: ends(rows), round: !large }, padding: 0,
          color: kind === "rms" ? { type: "linear", range: ["rgba(30, 120, 220, 0.07)", "rgb(30, 120, 220)"], domain: [0, largest], interpolate: "rgb" }
            : { type: "linear", range: ["rgb(214, 69, 80)", "rgba(128, 128, 128, 0.07)", "rgb(30, 120, 220)"], domain: [-largest, 0, largest], interpolate: "rgb" },
          marks: [
            Plot.cell(cells, { x: "x", y: "y", fill: "value", inset: large ? 0 : 0.5 }),
            Plot.tip(cells, Plot.pointer({ x: "x", y: "y", title: "title" })),
          ],
        }));
    }
  }
}

const words = { mean: "mean offset (samples)", std: "standard deviation", max_abs: "largest", shift: "shift (samples)", residual_max_abs: "largest residual" };
function facts(site, variant) {
  const learnt = variant.learnt, list = document.getElementById("facts");
  const size = (v) => v.map(short).join(" x ");
  const rows = [
    ["layer", `${site.layer} ${site.described}, ${site.calls} call${site.calls > 1 ? "s" : ""}, now ${variant.sampling}`],
    ["added", `${variant.added_parameters.toLocaleString("en")} parameters to ${variant.weight_parameters.toLocaleString("en")} weights`],
    ["kernel extent", `${size(learnt.extent.before)} before, ${size(learnt.extent.after)} after (samples), in a window of ${size(learnt.window)}`],
    ["rms radius", `${learnt.extent.rms_before ? size(learnt.extent.rms_before) + " before, " : ""}${size(learnt.extent.rms_after)} after (samples)`],
  ];
  if (learnt.distance) rows.push(["moved", `mean ${short(learnt.distance.mean)}, median ${short(learnt.distance.median)}, largest ${short(learnt.distance.max)} samples`]);
  for (const { axis, ...drift } of learnt.drift ?? []) {
    rows.push([`axis ${axis}`, Object.entries(drift).map(([name, value]) => `${words[name] ?? name.replaceAll("_", " ")} ${short(value)}`).join(", ")]);
  }
  list.replaceChildren(...rows.flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
}

let chosen = null;
function show(index) {
  const variantName = document.getElementById("variant").value, site = data.sites[index];
  const variant = site?.variants[variantName];
  chosen = variant?.learnt ? index : null;
  document.getElementById("detail").hidden = chosen === null;
  for (const row of document.querySelectorAll(".sites tr[data-site]")) row.classList.toggle("chosen", Number(row.dataset.site) === chosen);
  if (chosen === null) return;
  document.getElementById("detail-title").textContent = `${site.name} in ${variantName}`;
  facts(site, variant);
  if (variant.learnt.positions) positions(variant.learnt);
  if (variant.learnt.profiles) profiles(variant.learnt);
  kernels(variant.learnt);
  drawn();
}

function variantChosen() {
  const name = document.getElementById("variant").value;
  for (const table of document.querySelectorAll(".sites")) table.hidden = table.dataset.variant !== name;
  const usable = (i) => data.sites[i]?.variants[name]?.learnt;
  show(chosen !== null && usable(chosen) ? chosen : data.sites.findIndex((_, i) => usable(i)));
}

overview();
if (document.getElementById("variant")) {
  document.querySelectorAll(".sites table").forEach(sorting);
  document.querySelectorAll(".sites tbody button").forEach((button) => button.addEventListener("click", () => {
    show(Number(button.closest("tr").dataset.site));
    document.getElementById("detail").scrollIntoView({ block: "start" });
  }));
  document.getElementById("variant").addEventListener("change", variantChosen);
  variantChosen();
}
let pending = 0, before = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === before) return;  // a phone's address bar
  before = window.innerWidth;
  clearTimeout(pending);
  pending = setTimeout(() => { overview(); if (chosen !== null) show(chosen); }, 100);
});
