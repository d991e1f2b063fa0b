"use strict";
// Text from the index is inserted with textContent, never as markup.

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const NAMES = { aligned: "Aligned", raw: "Raw", centred: "Centred" };
const MEANING = {
  aligned: "Aligned vectors; scores are calibrated per modality.",
  raw: "Cosine similarity before alignment.",
  centred: "Raw vectors minus the mean of their modality (untrained baseline).",
};
const K = 20;
const state = { about: null, query: null, space: "aligned", only: "", hits: [], points: [], here: -1, asked: 0 };

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function address(path, parameters) {
  return `api/${path}?${new URLSearchParams(parameters)}`;
}

async function ask(path, parameters = {}, options = {}) {
  let response;
  try {
    response = await fetch(address(path, parameters), options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `The server answered ${response.status}.`);
  return answer;
}

function showError(message) {
  at("error").textContent = message ? message[0].toUpperCase() + message.slice(1) : "";
  at("error").hidden = !message;
}

// ---- search

async function search() {
  const query = state.query;
  if (!query) return;
  const number = ++state.asked;
  showError("");
  at("drawn").hidden = true;
  at("results").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => { at("summary").textContent = "Searching… The first query also loads the encoders."; }, 800);
  const how = { k: K, space: state.space, only: state.only };
  try {
    let answer;
    if (query.kind === "words") answer = await ask("search", { q: query.words, ...how });
    else if (query.kind === "item") answer = await ask("like", { id: query.id, ...how });
    else answer = await ask("picture", how, { method: "POST", body: query.file, headers: { "content-type": "application/octet-stream" } });
    if (number !== state.asked) return; // superseded by a newer query
    show(answer);
  } catch (error) {
    if (number === state.asked) {
      if (query.kind === "file") clearImage();
      show({ hits: [], seconds: null });
      showError(error.message);
    }
  } finally {
    clearTimeout(slow);
    if (number === state.asked) at("results").removeAttribute("aria-busy");
  }
}

function searchText(words) {
  words = words.trim();
  if (!words) { at("q").focus(); return; }
  clearImage();
  at("q").value = words;
  state.query = { kind: "words", words };
  search();
}

function searchFile(file) {
  if (!file) return;
  showError("");
  if (file.size > state.about.max_upload) {
    showError(`The file has ${Math.round(file.size / 1e6)} MB; the limit is ${state.about.max_upload / 1e6} MB.`);
    return;
  }
  showChip(URL.createObjectURL(file), file.name || "your image");
  state.query = { kind: "file", file };
  search();
}

function searchItem(item) {
  at("dialog").close();
  if (item.modality === "text") { searchText(item.text); return; }
  showChip(thumb(item.id, 160), item.caption || item.id);
  state.query = { kind: "item", id: item.id };
  search();
}

function showChip(source, label) {
  at("q").value = "";
  at("chip-image").src = source;
  at("chip-label").textContent = label;
  at("chip").hidden = false;
}

function clearImage() {
  at("chip").hidden = true;
  at("file").value = "";
  if (state.query && state.query.kind !== "words") state.query = null;
}

// ---- results

function thumb(id, size) {
  return address("thumb", { id, size });
}

function show(answer) {
  state.hits = answer.hits;
  const ten = answer.hits.slice(0, 10);
  const images = ten.filter((hit) => hit.modality === "image").length;
  at("results").replaceChildren(...answer.hits.map((hit, i) => make("li", {}, card(hit, i + 1))));
  at("empty").replaceChildren();
  at("summary").textContent = ten.length
    ? `${images} images and ${ten.length - images} texts in the top ${ten.length}, ${Math.max(1, Math.round(answer.seconds * 1000))} ms`
    : "";
  if (!answer.hits.length && answer.seconds !== null) at("empty").textContent = "The index contains no such items.";
  at("draw").hidden = !(state.about.generate && state.query && state.query.kind === "words");
  drawMap();
}

function card(hit, rank) {
  const name = hit.modality === "image" ? "Image" : "Text";
  const face = make("span", { className: "face" }, make("span", { className: "rank", textContent: rank }));
  if (hit.missing) {
    face.append("The file no longer exists.");
  } else if (hit.modality === "image") {
    face.append(make("img", { src: thumb(hit.id, 320), alt: "", loading: rank > 8 ? "lazy" : "eager" }));
  } else {
    face.append(make("span", { className: hit.text.length < 60 ? "words short" : "words", textContent: hit.text }));
  }
  const title = hit.modality === "image" ? hit.caption || hit.id : hit.owner ? `caption of ${hit.owner.split("/").pop()}` : hit.id;
  const score = make("output", { textContent: hit.score.toFixed(3), title: `cosine ${hit.cosine.toFixed(3)}` });
  const foot = make("span", { className: "foot" },
    make("span", { className: hit.modality === "image" && hit.caption ? "title" : "title soft", textContent: title }),
    make("span", { className: "meta" }, make("span", { className: "kind", textContent: name }), score));
  const kind = `card ${hit.modality}${hit.missing ? " missing" : ""}`;
  const button = make("button", { type: "button", className: kind }, face, foot);
  button.setAttribute("aria-label", `${rank}. ${name}: ${hit.modality === "image" ? hit.caption || hit.id : hit.text.slice(0, 120)}, score ${hit.score.toFixed(3)}`);
  button.addEventListener("click", () => open(hit.id));
  button.addEventListener("focus", () => markHere(state.points.findIndex((p) => p.id === hit.id)));
  return button;
}

async function open(id) {
  let item;
  try {
    item = await ask("item", { id });
  } catch (error) { showError(error.message); return; }
  const picture = at("dialog-image");
  at("dialog-missing").hidden = true;
  picture.hidden = !item.picture;
  picture.alt = item.caption || item.text || item.id;
  if (item.picture) picture.src = thumb(id, 960);
  else picture.removeAttribute("src");
  at("dialog-title").textContent = item.modality === "image" ? item.caption || "Image" : item.owner ? "Caption" : "Text";
  at("dialog-text").textContent = item.text;
  at("dialog-id").textContent = item.owner ? `describes ${item.owner}` : item.id;
  at("dialog-like").onclick = () => searchItem(item);
  at("dialog").showModal();
}

// ---- map

function place(point) {
  return [22 + point.x * 556, 438 - point.y * 416];
}

async function loadMap() {
  try {
    const answer = await ask("map", { space: state.space });
    state.points = answer.points.map(([id, modality, label, x, y]) => ({ id, modality, label, x, y }));
  } catch (error) { showError(error.message); return; }
  state.here = -1;
  drawMap();
}

function drawMap() {
  const found = new Set(state.hits.map((hit) => hit.id));
  const marks = [], rings = [];
  for (const point of state.points) {
    const [x, y] = place(point);
    marks.push(point.modality === "image"
      ? draw("circle", { class: "image", cx: x, cy: y, r: 4 })
      : draw("path", { class: "text", d: `M${x} ${y - 4.8}l4.8 4.8-4.8 4.8-4.8-4.8Z` }));
    if (found.has(point.id)) rings.push(draw("circle", { class: "found", cx: x, cy: y, r: 8 }));
  }
  at("map").replaceChildren(...marks, ...rings);
  markHere(state.here);
}

function markHere(i) {
  at("map").querySelector(".here")?.remove();
  state.here = i;
  if (i < 0 || i >= state.points.length) return;
  const point = state.points[i];
  const [x, y] = place(point);
  at("map").append(draw("circle", { class: "here", cx: x, cy: y, r: 11 }));
  at("map-label").textContent = `${point.modality === "image" ? "Image" : "Text"}: ${point.label}`;
}

function nearestPoint(event) {
  const box = at("map").getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * 600, y = (event.clientY - box.top) / box.height * 460;
  const reach = 24 * 600 / box.width; // 24 CSS pixels, for touch input
  let best = -1, least = reach * reach;
  state.points.forEach((point, i) => {
    const [px, py] = place(point);
    const distance = (px - x) ** 2 + (py - y) ** 2;
    if (distance < least) { least = distance; best = i; }
  });
  return best;
}

function step(dx, dy) {
  if (!state.points.length) return;
  if (state.here < 0) { markHere(0); return; }
  const [x0, y0] = place(state.points[state.here]);
  let best = -1, least = Infinity;
  state.points.forEach((point, i) => {
    const [x, y] = place(point);
    const along = (x - x0) * dx + (y - y0) * dy, aside = Math.abs((x - x0) * dy) + Math.abs((y - y0) * dx);
    if (i === state.here || along <= 0 || aside > 2 * along) return;
    if (along + 2 * aside < least) { least = along + 2 * aside; best = i; }
  });
  if (best >= 0) markHere(best);
}

// ---- spaces and bias

function showBias() {
  const bias = state.about.bias[state.space] || {};
  const gauges = [["text", "text queries"], ["image", "image queries"]].filter(([kind]) => kind in bias).map(([kind, words]) => {
    const value = bias[kind];
    const svg = draw("svg", { viewBox: "0 0 92 14", "aria-hidden": "true" });
    const x = 46 + Math.max(-1, Math.min(1, value / 0.5)) * 40;
    svg.append(draw("line", { class: "track", x1: 4, x2: 88, y1: 7, y2: 7 }), draw("line", { class: "zero", x1: 46, x2: 46, y1: 1, y2: 13 }),
      draw("circle", { class: Math.abs(value) > 0.05 ? "dot far" : "dot", cx: x, cy: 7, r: 5 }));
    const signed = `${value < -0.0005 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
    return make("span", { className: "gauge" }, make("span", { textContent: words }), svg, make("b", { textContent: signed }));
  });
  const words = gauges.length
    ? `${MEANING[state.space]} Modality bias: 0 = balanced; above 0 = favours the query's modality.`
    : "The index has too few items of one modality to measure the bias.";
  at("bias").replaceChildren(...gauges, make("p", { textContent: words }));
}

function setUp(about) {
  state.about = about;
  document.title = `${about.name} · search`;
  at("name").textContent = about.name;
  at("counts").textContent = `${about.counts.image.toLocaleString("en")} images, ${about.counts.text.toLocaleString("en")} texts`;
  for (const name of Object.keys(NAMES)) {
    const input = make("input", { type: "radio", name: "space", value: name, checked: name === "aligned", disabled: !about.spaces.includes(name) });
    input.addEventListener("change", () => { state.space = name; showBias(); loadMap(); search(); });
    at("spaces").append(make("label", { title: MEANING[name] }, input, make("span", { textContent: NAMES[name] })));
  }
  showBias();
}

function showExamples() {
  const seen = new Set();
  const texts = state.points.filter((p) => p.modality === "text" && p.label.length < 40 && !seen.has(p.label) && seen.add(p.label));
  const some = [0.1, 0.3, 0.5, 0.7, 0.9].map((share) => texts[Math.floor(share * texts.length)]).filter(Boolean);
  const tries = new Set(some.map((point) => point.label));
  const list = make("ul", { className: "tries" }, ...[...tries].map((words) => {
    const button = make("button", { type: "button", className: "button quiet", textContent: words });
    button.addEventListener("click", () => searchText(words));
    return make("li", {}, button);
  }));
  at("empty").replaceChildren(make("p", { textContent: "Enter a text, drop an image anywhere on this page, or select a point on the map. Results contain images and texts in one list." }), ...(tries.size ? [list] : []));
}

// ---- events

function listen() {
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!at("q").value.trim() && state.query && state.query.kind !== "words") search();
    else searchText(at("q").value);
  });
  at("file").addEventListener("change", () => searchFile(at("file").files[0]));
  at("chip-clear").addEventListener("click", () => { clearImage(); at("q").focus(); });
  for (const input of at("only").querySelectorAll("input")) {
    input.addEventListener("change", () => { state.only = input.value; search(); });
  }
  at("dialog-image").addEventListener("error", () => { at("dialog-image").hidden = true; at("dialog-missing").hidden = false; });
  at("dialog").addEventListener("click", (event) => { if (event.target === at("dialog")) at("dialog").close(); });
  at("map").addEventListener("click", (event) => { const i = nearestPoint(event); if (i >= 0) { markHere(i); open(state.points[i].id); } });
  at("map").addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") { const i = nearestPoint(event); if (i >= 0 && i !== state.here) markHere(i); } });
  at("map").addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) { event.preventDefault(); step(...moves[event.key]); }
    if (event.key === "Enter" && state.here >= 0) open(state.points[state.here].id);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); at("q").focus(); }
  });
  let depth = 0;
  const over = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragenter", (event) => { if (over(event)) { depth++; at("drop").hidden = false; } });
  document.addEventListener("dragleave", () => { if (--depth <= 0) { depth = 0; at("drop").hidden = true; } });
  document.addEventListener("dragover", (event) => { if (over(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    depth = 0;
    at("drop").hidden = true;
    searchFile(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
    if (file) { event.preventDefault(); searchFile(file); }
  });
  at("draw").addEventListener("click", generate);
}

async function generate() {
  const words = state.query.words;
  showError("");
  at("draw").disabled = true;
  at("draw").textContent = "Generating…";
  try {
    const response = await fetch(address("generate", { q: words, seed: Math.floor(Math.random() * 1e6) }), { method: "POST" });
    if (!response.ok) throw new Error((await response.json()).error);
    at("drawn-image").src = URL.createObjectURL(await response.blob());
    at("drawn-image").alt = `generated image: ${words}`;
    at("drawn-label").textContent = `Generated from the aligned vector of “${words}”.`;
    at("drawn").hidden = false;
  } catch (error) { showError(error.message); }
  at("draw").disabled = false;
  at("draw").textContent = "Generate image";
}

async function start() {
  listen();
  try {
    setUp(await ask("about"));
    await loadMap();
    showExamples();
    document.body.dataset.ready = "true";
  } catch (error) { showError(error.message); }
}

start();
