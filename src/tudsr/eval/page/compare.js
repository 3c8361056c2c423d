/* ---- by eye: two views of one picture, one above the other, cut at a slider ---- */

const state = { picture: 0, left: null, right: null, at: 50, zoom: 2 };
const picture = () => data.pictures[state.picture];

/** The view of a side; a picture that lacks the chosen one shows another, not the other side's if possible. */
function viewOf(side) {
  const { views } = picture();
  const chosen = (of) => views.find((view) => view.id === state[of]);
  const left = chosen("left") || views.find((view) => view.id !== state.right) || views[0];
  return side === "left" ? left : chosen("right") || views.find((view) => view !== left) || left;
}

/** A stage holds both views; what it shows is set by `refresh`, where it is cut by the property --at. */
function makeStage() {
  const image = (side) => el("img", { className: side, draggable: false });
  const handle = el("div", { className: "handle" });
  const tags = ["left", "right"].map((side) => el("span", { className: `tag ${side}` }));
  const stage = el("div", { className: "stage" }, image("left"), image("right"), handle, ...tags);
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    slideTo((event.clientX - box.left) / box.width * 100);
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    stage.setPointerCapture(event.pointerId);
    follow(event);
    slider.focus({ preventScroll: true });
  });
  stage.addEventListener("pointermove", (event) => stage.hasPointerCapture(event.pointerId) && follow(event));
  return stage;
}

const whole = makeStage();
const slider = whole.querySelector(".handle");
let cropStages = [];

function slideTo(percent) {
  state.at = Math.min(100, Math.max(0, percent));
  $("compare").style.setProperty("--at", `${state.at}%`);
  const rounded = Math.round(state.at);
  slider.setAttribute("aria-valuenow", rounded);
  slider.setAttribute("aria-valuetext", `${rounded} % ${viewOf("left").name}, ${100 - rounded} % ${viewOf("right").name}`);
}

function setStage(stage, width, source, label) {
  for (const side of ["left", "right"]) {
    const view = viewOf(side), img = stage.querySelector(`img.${side}`);
    if (img.src !== source(view)) img.src = source(view);
    img.alt = `${label}, ${view.name}`;
    stage.querySelector(`.tag.${side}`).textContent = view.name;
  }
  stage.style.width = width;
}

function drawWhole() {
  const [width, height] = picture().size;
  const shown = Math.min(1, 1024 / Math.max(width, height)) * width;
  const larger = Math.max(1, Math.floor(640 / Math.max(width, height)));  // very small pictures are shown larger
  whole.style.aspectRatio = `${width} / ${height}`;
  whole.classList.toggle("pixels", larger > 1);
  setStage(whole, `min(${shown * larger}px, ${(80 * width / height).toFixed(2)}vh)`, (view) => view.whole, picture().name);
  whole.querySelectorAll(".frame").forEach((frame) => frame.remove());
  picture().crops.forEach((crop, i) => {
    if (crop.width === width && crop.height === height) return;
    const frame = el("span", { className: "frame" }, "abc"[i]);
    const parts = { left: crop.x / width, top: crop.y / height, width: crop.width / width, height: crop.height / height };
    for (const [name, part] of Object.entries(parts)) frame.style[name] = `${part * 100}%`;
    whole.append(frame);
  });
}

function drawCrops() {
  const { crops, name } = picture();
  while (cropStages.length < crops.length) cropStages.push(makeStage());
  $("crops").replaceChildren(...crops.map((crop, i) => {
    const stage = cropStages[i];
    stage.classList.add("pixels");
    stage.style.aspectRatio = `${crop.width} / ${crop.height}`;
    setStage(stage, `${crop.width * state.zoom}px`, (view) => view.crops[i], `${name}, crop ${"abc"[i]}`);
    const size = `${crop.width} × ${crop.height} px at ${crop.x}, ${crop.y}`;
    return el("figure", {}, stage, el("figcaption", {}, el("b", {}, "abc"[i]), ` ${size}`));
  }));
  for (const zoom of [1, 2]) $(`zoom-${zoom}`).setAttribute("aria-pressed", zoom === state.zoom);
}

function drawPictureTable() {
  const { figures, seconds: times, views } = picture();
  const methods = data.methods.filter((method) => method.name in figures);
  const value = (method, metric) => (figures[method.name] || {})[metric];
  const best = ofScale(methods, (peers) => Object.fromEntries(
    metrics.map((metric) => [metric, bestOf(peers.map((m) => value(m, metric)), metric)])));
  const sides = ["left", "right"].map((side) => viewOf(side));
  const rows = methods.map((method) => {
    const view = views.find((v) => v.kind === "method" && v.name === method.name);
    const where = view && ["left", "right"].filter((_, i) => sides[i] === view).join(", ");
    const cells = metrics.map((metric) =>
      figureCell(value(method, metric), metric, best(method)[metric], (method.trained_on || []).includes(metric)));
    const time = timed ? [el("td", { className: "figure" }, seconds((times || {})[method.name]))] : [];
    return el("tr", { className: where ? "chosen" : "" },
      el("th", { scope: "row" }, method.name, where ? el("small", {}, where) : null), ...cells, ...time);
  });
  const time = timed ? [el("th", { scope: "col", className: "figure" }, "s")] : [];
  fillTable("picture-table", [el("th", { scope: "col" }, "method"), ...metrics.map(metricHead), ...time], rows);
}

function refresh() {
  const { views, name, size, lq_size: lqSize } = picture();
  for (const side of ["left", "right"]) {
    const option = (view, i) => el("option", { value: view.id }, `${i < 9 ? `${i + 1}  ` : ""}${view.name}`);
    $(side).replaceChildren(...views.map(option));
    $(side).value = viewOf(side).id;
  }
  $("picture-name").replaceChildren(name, el("small", {}, `${state.picture + 1} of ${data.pictures.length}`
    + `${lqSize ? `, ${lqSize.join(" × ")} →` : ","} ${size.join(" × ")} px`));
  drawWhole();
  drawCrops();
  drawPictureTable();
  slideTo(state.at);
}

function showPicture(index) {
  state.picture = Math.min(data.pictures.length - 1, Math.max(0, index));
  [...$("strip").children].forEach((thumb, i) => thumb.setAttribute("aria-pressed", i === state.picture));
  const thumb = $("strip").children[state.picture];
  $("strip").scrollLeft = thumb.offsetLeft - ($("strip").clientWidth - thumb.clientWidth) / 2;
  refresh();
}

function choose(side, id) {
  state[side] = id;
  refresh();
}

function swap() {
  [state.left, state.right] = [viewOf("right").id, viewOf("left").id];
  refresh();
}

function setZoom(zoom) {
  state.zoom = zoom;
  drawCrops();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?") return $("help").open ? $("help").close() : $("help").showModal();
  const moves = { ArrowLeft: -2, ArrowRight: 2 }, steps = { j: 1, k: -1, ArrowDown: 1, ArrowUp: -1 };
  if ($("help").open || event.target.closest("select") || (event.key in moves && event.target.closest(".scroll"))) return;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  if (event.key in moves) slideTo(state.at + moves[event.key] * (event.shiftKey ? 5 : 1));
  else if (event.key === "x") swap();
  else if (event.key in steps) {
    // Elsewhere on the page the arrows scroll it.
    if (event.key.startsWith("Arrow") && !$("compare").contains(document.activeElement)) return;
    showPicture(state.picture + steps[event.key]);
  } else if (digit) {
    const view = picture().views[digit[1] - 1];
    if (view) choose(event.shiftKey ? "left" : "right", view.id);
  } else return;
  event.preventDefault();
}

if (data.pictures.length) {
  $("compare").hidden = false;
  const { views } = picture();
  const kindOf = (view) => (view.kind === "method" ? data.methods.find((m) => m.name === view.name).kind : view.kind);
  state.left = (views.find((view) => ["bicubic", "lq"].includes(kindOf(view))) || views[0]).id;
  const right = views.find((view) => view.id !== state.left && kindOf(view) === "model");
  state.right = (right || views.find((view) => view.id !== state.left) || views[0]).id;

  for (const [name, value] of Object.entries({ role: "slider", tabindex: 0, "aria-label": "Left or right view",
    "aria-valuemin": 0, "aria-valuemax": 100 })) slider.setAttribute(name, value);
  $("whole").append(whole);
  $("strip").append(...data.pictures.map((item, i) => el("button", { type: "button", title: item.name,
    on: { click: () => showPicture(i) } }, el("img", { src: item.thumb, alt: "" }), el("span", {}, item.name))));
  for (const side of ["left", "right"]) $(side).addEventListener("change", () => choose(side, $(side).value));
  for (const zoom of [1, 2]) $(`zoom-${zoom}`).addEventListener("click", () => setZoom(zoom));
  $("swap").addEventListener("click", swap);
  $("help-button").addEventListener("click", () => $("help").showModal());
  document.addEventListener("keydown", onKey);
  showPicture(0);
}
