"use strict";

// Names of pictures and methods come from files: they only ever become text nodes, never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const DASH = "–";
const $ = (id) => document.getElementById(id);
const isNumber = Number.isFinite;

function fill(node, props, children) {
  for (const [key, value] of Object.entries(props)) {
    if (key === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
    else if (key in node && !(node instanceof SVGElement)) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const el = (tag, props = {}, ...children) => fill(document.createElement(tag), props, children);
const svg = (tag, props = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);

/* ---- figures ---- */

const metrics = Object.keys(data.metrics);
const arrow = (metric) => (data.metrics[metric].direction === "higher" ? "↑" : "↓");
const meanOf = (method, metric) => (method.means || {})[metric] || {};
const digits = Object.fromEntries(metrics.map((metric) => {
  const top = Math.max(0, ...data.methods.map((m) => meanOf(m, metric).mean).filter(isNumber).map(Math.abs));
  return [metric, top >= 100 ? 1 : top >= 10 ? 2 : top >= 2 ? 3 : 4];
}));
const show = (value, metric) => (isNumber(value) ? value.toFixed(digits[metric]) : DASH);
const seconds = (value) => (!isNumber(value) ? DASH : value >= 100 ? value.toFixed(0) : `${+value.toPrecision(3)}`);

/** A figure as it counts beside another one: what lies below the metric's floor is as good as the floor. */
const counted = (value, metric) => (isNumber(value) ? Math.max(value, data.metrics[metric].floor ?? -Infinity) : value);

/** The best value as it counts and is shown: what reads the same is equally good. */
function bestOf(values, metric) {
  const found = values.filter(isNumber).map((value) => counted(value, metric));
  const pick = data.metrics[metric].direction === "higher" ? Math.max : Math.min;
  return found.length ? show(pick(...found), metric) : null;
}

function figureCell(value, metric, best, trained, detail) {
  const text = show(value, metric);
  const mark = trained ? el("span", { className: "mark", title: "trained on this metric" }, "†") : null;
  const line = detail ? el("small", {}, detail) : null;
  const isBest = show(counted(value, metric), metric) === best;
  return el("td", { className: isBest ? "figure best" : "figure" }, el("span", { className: "value" }, text), mark, line);
}

function meanCell(method, metric, best) {
  const { mean, low, high, count } = meanOf(method, metric);
  let detail = isNumber(low) && isNumber(high) ? `${show(low, metric)} – ${show(high, metric)}` : "";
  if (isNumber(count) && count < data.set.count) detail += ` (of ${count})`;
  return figureCell(mean, metric, best, (method.trained_on || []).includes(metric), detail.trim());
}

/** The best mean of each metric; one over fewer pictures than another is of other pictures, and never the best. */
const bestMeans = (methods) => Object.fromEntries(metrics.map((metric) => {
  const means = methods.map((method) => meanOf(method, metric));
  const most = Math.max(...means.map((mean) => mean.count || 0));
  return [metric, bestOf(means.filter((mean) => (mean.count || 0) === most).map((mean) => mean.mean), metric)];
}));

/** Return a function (method) → what `call` makes of all methods of its scale: figures of other scales are no rivals. */
function ofScale(methods, call) {
  const scales = [...new Set(methods.map((method) => method.scale))];
  const found = new Map(scales.map((scale) => [scale, call(methods.filter((method) => method.scale === scale))]));
  return (method) => found.get(method.scale);
}

const metricHead = (metric) => el("th", { scope: "col", className: "figure" }, `${metric} `, el("i", {}, arrow(metric)));

function fillTable(id, head, rows) {
  $(id).replaceChildren(el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
}

/* ---- the main table ---- */

const sorting = { key: null, direction: null };
const timed = data.methods.some((method) => isNumber(method.seconds_per_mp));
const columns = ["name", ...metrics, ...(timed ? ["seconds_per_mp"] : [])];
const sortValue = (method, key) => (key in data.metrics ? meanOf(method, key).mean : method[key]);

function sortBy(key) {
  const first = data.metrics[key]?.direction === "higher" ? "descending" : "ascending";  // the best on top
  const other = first === "ascending" ? "descending" : "ascending";
  sorting.direction = sorting.key === key && sorting.direction === first ? other : first;
  sorting.key = key;
  const sign = sorting.direction === "ascending" ? 1 : -1;
  const order = (one, two) => {
    const [a, b] = [sortValue(one, key), sortValue(two, key)];
    if (key === "name") return sign * a.localeCompare(b, "en", { numeric: true });
    return isNumber(a) && isNumber(b) ? sign * (a - b) : isNumber(b) - isNumber(a);  // those without a figure last
  };
  const body = $("table").tBodies[0];
  body.append(...[...data.methods].sort(order).map((method) => methodRows.get(method)));
  for (const cell of $("table").tHead.rows[0].cells) {
    if (cell.dataset.key === key) cell.setAttribute("aria-sort", sorting.direction);
    else cell.removeAttribute("aria-sort");
  }
}

const methodRows = new Map();
function drawTable() {
  const best = ofScale(data.methods, bestMeans);
  for (const method of data.methods) {
    const name = el("th", { scope: "row" }, el("span", { className: `dot ${method.kind}` }), method.name);
    const time = timed ? [el("td", { className: "figure" }, seconds(method.seconds_per_mp))] : [];
    methodRows.set(method, el("tr", {}, name, ...metrics.map((metric) => meanCell(method, metric, best(method)[metric])), ...time));
  }
  const head = columns.map((key) => {
    const text = key === "name" ? "method" : key === "seconds_per_mp" ? "s\u00a0/\u00a0MP " : `${key} `;
    const better = key === "name" ? null : el("i", {}, key in data.metrics ? arrow(key) : "↓");
    const button = el("button", { type: "button", on: { click: () => sortBy(key) } }, text, better);
    return el("th", { scope: "col", className: key === "name" ? "" : "figure", "data-key": key }, button);
  });
  fillTable("table", head, methodRows.values());
  const trained = data.methods.some((m) => (m.trained_on || []).some((metric) => metric in data.metrics));
  $("legend").textContent = "Means over the pictures, 95 % bootstrap intervals below them; best of each scale in bold; "
    + "↑ higher, ↓ lower is better. " + (timed ? "s\u00a0/\u00a0MP: seconds per megapixel of output. " : "")
    + (trained ? "† The metric was one of this model’s training losses, so it flatters the model. " : "")
    + "Click the head of a column to sort by it.";
}

/** The paper's layout: a block for each scale, once by either stage and then twice. */
function drawAblation() {
  const methods = (data.ablation || []).map((name) => data.methods.find((m) => m.name === name)).filter(Boolean);
  $("ablation").hidden = !methods.length;
  const rows = [...new Set(methods.map((method) => method.scale))].flatMap((scale) => {
    const block = methods.filter((method) => method.scale === scale);
    const best = bestMeans(block);
    return block.map((method, index) => el("tr", { className: index ? "" : "block" },
      el("th", { scope: "row" }, method.name), el("td", {}, `×${scale}`),
      ...[method.m, method.n].map((ratio) => el("td", {}, ratio > 1 ? `${ratio}` : DASH)),
      ...metrics.map((metric) => meanCell(method, metric, best[metric]))));
  });
  const head = ["", "scale", "M", "N"].map((text) => el("th", { scope: "col" }, text));
  fillTable("ablation-table", [...head, ...metrics.map(metricHead)], rows);
}

/* ---- quality against time ---- */

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const count = Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, i) => (Math.ceil(low / step - 1e-9) + i) * step);
}

function logTicks(low, high, wanted) {
  const powers = Array.from({ length: 20 }, (_, i) => 10 ** (i - 10));
  const inside = (factors) => powers.flatMap((p) => factors.map((f) => f * p)).filter((x) => x >= low && x <= high);
  const fine = inside([1, 2, 5]);
  return fine.length <= wanted ? fine : inside([1]);
}

function drawPlot() {
  const metric = $("metric").value;
  const usable = (m) => isNumber(m.seconds_per_mp) && m.seconds_per_mp > 0 && isNumber(meanOf(m, metric).mean);
  const points = data.methods.filter(usable).map((method) => ({ method, x: method.seconds_per_mp, ...meanOf(method, metric) }));
  const missing = data.methods.filter((method) => !usable(method)).map((method) => method.name);
  const leftOut = missing.length ? ` Without a time or a figure, so not drawn: ${missing.join(", ")}.` : "";
  $("plot-legend").textContent = `Up is better, left is faster; bars are the 95 % intervals.${leftOut}`;
  if (!points.length) return $("plot").replaceChildren(el("p", {}, "No method has both a time and this figure."));

  const width = Math.max(280, $("plot").clientWidth), height = Math.round(Math.min(440, Math.max(300, width / 2)));
  const box = { left: 58, right: width - 20, top: 34, bottom: height - 48 };
  const higher = data.metrics[metric].direction === "higher";
  const ends = points.flatMap((p) => [p.mean, p.low, p.high]).filter(isNumber);
  const pad = (Math.max(...ends) - Math.min(...ends) || Math.abs(ends[0]) * 0.1 || 1) * 0.1;
  const [y0, y1] = [Math.min(...ends) - pad, Math.max(...ends) + pad];
  const logs = points.map((p) => Math.log10(p.x));
  const gap = Math.max(0.2, (Math.max(...logs) - Math.min(...logs)) * 0.12);
  const [x0, x1] = [Math.min(...logs) - gap, Math.max(...logs) + gap];
  const px = (x) => box.left + (Math.log10(x) - x0) / (x1 - x0) * (box.right - box.left);
  const py = (y) => (higher ? box.bottom - (y - y0) / (y1 - y0) * (box.bottom - box.top)
    : box.top + (y - y0) / (y1 - y0) * (box.bottom - box.top));

  const nodes = [], labels = [];
  const line = (a, b, c, d, kind) => nodes.push(svg("line", { x1: a, y1: b, x2: c, y2: d, class: kind }));
  const text = (x, y, words, kind, anchor = "middle") =>
    labels.push(svg("text", { x, y, class: kind, "text-anchor": anchor }, words));
  const yTicks = ticks(y0, y1, height / 80);
  const places = Math.max(0, -Math.floor(Math.log10((yTicks[1] ?? yTicks[0] + 1) - yTicks[0]) + 1e-9));
  for (const tick of yTicks) {
    line(box.left, py(tick), box.right, py(tick), "grid");
    text(box.left - 8, py(tick) + 4, tick.toFixed(places), "tick", "end");
  }
  for (const tick of logTicks(10 ** x0, 10 ** x1, width / 70)) {
    line(px(tick), box.bottom, px(tick), box.bottom + 5, "axis");
    text(px(tick), box.bottom + 20, `${+tick.toPrecision(1)}`, "tick");
  }
  line(box.left, box.bottom, box.right, box.bottom, "axis");
  text(box.right, height - 6, "seconds per megapixel of output, log scale →", "name", "end");
  text(4, 16, `${metric} ${arrow(metric)}${higher ? "" : "  (lower is higher up)"}`, "name", "start");

  const level = (p) => py(counted(p.mean, metric));
  points.sort((p, q) => p.x - q.x || level(p) - level(q));
  const rivals = [...new Set(points.map((p) => p.method.scale))].map((scale) => points.filter((p) => p.method.scale === scale));
  const fronts = rivals.map((own) => own.filter((p, i) => own.slice(0, i).every((q) => level(p) < level(q))));
  if (fronts.some((front) => front.length > 1)) {
    $("plot-legend").textContent += " The dashed line joins those that none of their scale beats in both.";
  }
  for (const front of fronts) {
    nodes.push(svg("polyline", { class: "front", points: front.map((p) => `${px(p.x)},${py(p.mean)}`).join(" ") }));
  }
  const placed = points.map((p) => ({ left: px(p.x) - 7, right: px(p.x) + 7, y: py(p.mean) }));
  for (const p of points) {
    const [x, y] = [px(p.x), py(p.mean)];
    if (isNumber(p.low) && isNumber(p.high)) line(x, py(p.low), x, py(p.high), "interval");
    nodes.push(svg("circle", { cx: x, cy: y, r: 6, class: `point ${p.method.kind}` },
      svg("title", {}, `${p.method.name}: ${show(p.mean, metric)}, ${seconds(p.x)} s / MP`)));
    placeLabel(p, x, y, box, placed, text);
  }
  const label = `${metric} against seconds per megapixel for ${points.length} methods; the figures are in the table`;
  const frame = { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label };
  $("plot").replaceChildren(svg("svg", frame, ...nodes, ...labels));
}

/** Put a name beside its point, on the side with more room, at the first height where it covers nothing. */
function placeLabel(point, x, y, box, placed, text) {
  const name = point.method.name.length > 24 ? `${point.method.name.slice(0, 23)}…` : point.method.name;
  const length = name.length * 7.2;
  const atRight = x + 12 + length < box.right;
  const [left, right] = atRight ? [x + 10, x + 10 + length] : [x - 10 - length, x - 10];
  const free = (at) => placed.every((other) => right < other.left || left > other.right || Math.abs(other.y - at) > 14);
  const at = [0, -16, 16, -32, 32, -48, 48].map((shift) => y + shift).find(free) ?? y;
  placed.push({ left, right, y: at });
  text(atRight ? left : right, at + 4, name, "label", atRight ? "start" : "end");
}

/* ---- the record ---- */

function drawHeader() {
  const { count, with_gt: withGt, lq_sizes: sizes } = data.set;
  const scale = isNumber(data.scale) ? `×${data.scale}` : "";
  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  $("title").textContent = `Super-resolution ${scale}`;
  document.title = `tudsr eval ${scale}, ${plural(count, "picture")}`;
  const range = [...new Set(sizes.map((size) => size.join(" × ")))].join(" to ");
  $("lead").textContent = `${plural(data.methods.length, "method")} on ${plural(count, "picture")}`
    + (range ? `, inputs of ${range} px` : "")
    + (withGt === count ? ", all with a true picture."
      : withGt ? `, ${withGt} with a true picture.` : ", without true pictures.");
  const machine = data.machine || {};
  const where = [machine.device === "cpu" ? null : machine.device, machine.cpu || machine.system,
    machine.threads && plural(machine.threads, "thread"), machine.dtype];
  const facts = {
    machine: where.filter(Boolean).join(", "),
    commit: String(data.commit || "").replace(/^([0-9a-f]{12})[0-9a-f]+/, "$1"),
    tudsr: data.tudsr,
    made: String(data.created || "").replace(/^(.{10})T(.{5}).*?(\+00:00|Z)?$/,
      (_, day, time, utc) => `${day} ${time}${utc ? " UTC" : ""}`),
  };
  for (const [name, value] of Object.entries(facts)) {
    $("facts").append(el("div", {}, el("dt", {}, name), el("dd", {}, value ? String(value) : DASH)));
  }
}

function drawRecord() {
  const cells = (values) => values.map((value) => el("td", {}, value === null || value === undefined ? DASH : String(value)));
  const row = (name, ...values) => el("tr", {}, el("th", { scope: "row" }, name), ...cells(values));
  const head = (...names) => names.map((name) => el("th", { scope: "col" }, name));
  fillTable("metrics-table", head("metric", "better", "colours", "border, px", "against", "definition", "licence"),
    metrics.map((metric) => {
      const m = data.metrics[metric];
      return row(metric, isNumber(m.floor) ? `${m.direction}, to ${m.floor}` : m.direction, m.color_space, m.border_px, m.reference, m.source, m.licence);
    }));
  fillTable("methods-table", head("method", "kind", "M", "N", "trained on", "s / picture", "path", "SHA-256"),
    data.methods.map((m) => row(m.name, m.kind, m.m, m.n, (m.trained_on || []).join(", ") || null, seconds(m.seconds_per_picture),
      m.path, m.sha256 && Object.entries(m.sha256).map(([file, hash]) => `${file} ${hash.slice(0, 16)}…`).join("\n"))));
  $("config").textContent = JSON.stringify({ config: data.config, machine: data.machine, commit: data.commit }, null, 2);
  const lines = [...data.notes, ...(data.skipped || []).map(({ file, reason }) => `${file}: ${reason}`)];
  $("left-out").hidden = !lines.length;
  $("left-out-list").replaceChildren(...lines.map((line) => el("li", {}, line)));
}

drawHeader();
drawTable();
drawAblation();
drawRecord();
if (timed && metrics.length) {
  $("time").hidden = false;
  $("metric").append(...metrics.map((metric) => el("option", { value: metric }, metric)));
  $("metric").addEventListener("change", drawPlot);
  new ResizeObserver(drawPlot).observe($("time"));
}
