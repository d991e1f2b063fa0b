"use strict";
// Text from the index is inserted with textContent, never as markup.

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const NAMES = { aligned: "Aligned", raw: "Raw", centred: "Centred" };
const MEANING = {
  aligned: "Images and texts share one space, so a query finds the closest of both.",
  raw: "The encoders' own vectors: images lie in one place and texts in another, so a query finds its own modality first.",
  centred: "The raw vectors, with the centre of the images moved onto the centre of the texts. It needs no training.",
};
const HOW = { image: "by image", text: "by caption", both: "by both" };
const PLACEHOLDER = at("q").placeholder;
const K = 20, WHITE = 235, SHARE = 0.2; // an image is on white ground if this share of its border is nearly white
const state = { about: null, query: null, space: "aligned", only: "", compare: false, results: [], points: [], mapped: null,
  here: -1, asked: 0, ready: false, seconds: 0 };

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

// Every URL of the API; relative to the page, which may have any root path.
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

// ---- address of the page: query, filter, space

function parameters() {
  const { query } = state, found = new URLSearchParams();
  if (query?.kind === "words") found.set("q", query.words);
  if (query?.kind === "item") found.set("similar", query.id);
  if (state.only) found.set("only", state.only);
  if (state.space !== "aligned") found.set("space", state.space);
  if (state.compare) found.set("compare", "1");
  return found.toString();
}

function remember() {
  const search = parameters();
  if (search !== location.search.slice(1)) history.pushState(null, "", search ? `?${search}` : location.pathname);
  showTitle();
}

function showTitle() {
  const { query } = state, name = document.body.dataset.name;
  document.title = query?.words ? `${query.words} · ${name}` : query ? `Similar images · ${name}` : name;
}

async function restore() {
  const given = new URLSearchParams(location.search);
  const space = given.get("space");
  state.only = ["images", "texts"].includes(given.get("only")) ? given.get("only") : "";
  state.space = state.about.spaces.includes(space) ? space : "aligned";
  state.compare = given.get("compare") === "1" || state.space !== "aligned";
  for (const input of document.querySelectorAll("input[type=radio]")) input.checked = input.value === state[input.name];
  showPanel();
  clearImage();
  state.query = null;
  at("q").value = given.get("q") || "";
  if (given.get("similar")) await chooseItem(given.get("similar"));
  else if (given.get("q")) state.query = { kind: "words", words: given.get("q") };
  showTitle();
  if (state.query) await search();
  else showExamples();
}

async function chooseItem(id) {
  state.query = { kind: "item", id };
  showChip(thumb(id, 160), id);
  const item = await ask("item", { id }).catch(() => null);
  if (item && state.query?.id === id) at("chip-label").textContent = item.caption || id;
}

// ---- search

async function request(offset) {
  const { query } = state, how = { k: K, offset, space: state.space, only: state.only };
  if (query.kind === "words") return ask("search", { q: query.words, ...how });
  if (query.kind === "item") return ask("similar", { id: query.id, ...how });
  const both = query.words ? { q: query.words, image_weight: at("weight").value } : {};
  return ask("search/image", { ...how, ...both }, { method: "POST", body: query.file, headers: { "content-type": "application/octet-stream" } });
}

async function search() {
  const { query } = state;
  if (!query) return;
  const number = ++state.asked;
  showError("");
  at("weight-row").hidden = !(query.kind === "file" && query.words);
  at("drawn").hidden = true;
  at("results").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => { at("summary").textContent = state.ready ? "Searching…" : "Loading the encoders…"; }, 500);
  try {
    const answer = await request(0);
    if (number === state.asked) show(answer); // else superseded by a newer query
  } catch (error) {
    if (number === state.asked) {
      if (query.kind === "file") clearImage();
      show({ results: [], seconds: null });
      showError(error.message);
    }
  } finally {
    clearTimeout(slow);
    if (number === state.asked) at("results").removeAttribute("aria-busy");
  }
}

async function showMore() {
  const number = state.asked, button = at("more");
  button.disabled = true;
  try {
    const answer = await request(state.results.length);
    if (number !== state.asked) return;
    const first = append(answer);
    at("results").children[first]?.querySelector("button")?.focus();
  } catch (error) { showError(error.message); }
  finally { button.disabled = false; }
}

function searchText(words) {
  words = words.trim();
  if (!words) { at("q").focus(); return; }
  clearImage();
  at("q").value = words;
  state.query = { kind: "words", words };
  remember();
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
  remember();
  search();
}

// Search by what was entered: an uploaded image with the words beside it, or the words.
function searchEntered() {
  const words = at("q").value.trim(), { query } = state;
  if (query?.kind === "file") state.query = { ...query, words };
  else if (words || !query || query.kind === "words") { searchText(words); return; }
  remember();
  search();
}

async function searchItem(item) {
  at("dialog").close();
  if (item.modality === "text") { searchText(item.text); return; }
  await chooseItem(item.id);
  remember();
  search();
}

function showChip(source, label) {
  at("q").value = "";
  at("chip-image").src = source;
  at("chip-label").textContent = label;
  at("chip").hidden = false;
  at("q").placeholder = "Add a text to the image";
}

function clearImage() {
  at("chip").hidden = at("weight-row").hidden = true;
  at("q").placeholder = PLACEHOLDER;
  at("file").value = "";
  if (state.query && state.query.kind !== "words") state.query = null;
}

// ---- results

function thumb(id, size) {
  return address("thumb", { id, size });
}

function show(answer) {
  state.results = [];
  at("results").replaceChildren();
  at("empty").replaceChildren();
  at("summary").textContent = "";
  at("results-title").textContent = state.query ? "Results" : "Search";
  at("more").hidden = true;
  if (answer.results.length) append(answer);
  else if (answer.seconds !== null) at("empty").textContent = nothing();
  at("draw").hidden = !(state.about.generate && state.query?.kind === "words");
  drawMap();
}

function nothing() {
  const { image, text } = state.about.counts;
  if (state.only === "images" && !image) return "The index contains no images.";
  if (state.only === "texts" && !text) return "The index contains no texts.";
  return "The index is empty.";
}

// Add results to the list; returns the position of the first new entry.
function append(answer) {
  const list = at("results"), first = list.children.length, before = state.results.length;
  answer.results.forEach((result, i) => {
    if (result.weak && !list.querySelector(".weak-line")) list.append(weakLine(before + i === 0));
    list.append(make("li", {}, card(result, before + i + 1)));
  });
  state.results.push(...answer.results);
  at("more").hidden = !answer.more;
  if (!before) state.chance = answer.chance ?? null;
  showSummary(answer.seconds);
  if (before) drawMap();
  return first;
}

function weakLine(first) {
  const words = first
    ? "All results are weak: a query without an answer scores as high."
    : "Weak from here: a query without an answer scores as high.";
  return make("li", { className: first ? "weak-line none" : "weak-line" }, make("span", { textContent: words }));
}

function showSummary(seconds) {
  state.seconds = seconds;
  const { results } = state, ten = results.slice(0, 10), good = results.filter((result) => !result.weak).length;
  const by = (kind) => ten.filter((result) => result.matched === kind).length;
  const both = by("both") ? `, ${by("both")} by both` : "";
  const counts = state.compare
    ? `the first ${ten.length}: ${by("image")} found by the image, ${by("text")} by a text${both}`
    : good < results.length ? `${good || "none"} of ${results.length} not weak` : `${results.length} shown`;
  const doubt = state.chance > 0.05
    ? `; ${good ? "possibly " : ""}no good match: ${Math.round(state.chance * 100)} % of queries without an answer find something as close` : "";
  at("summary").textContent = `${counts}, ${Math.max(1, Math.round(seconds * 1000))} ms${doubt}`;
}

function card(result, rank) {
  const image = result.modality === "image", name = image ? "Image" : "Text";
  const face = make("span", { className: "face" }, make("span", { className: "rank", textContent: rank }));
  if (result.missing) {
    face.append("The file no longer exists.");
  } else if (image) {
    const picture = make("img", { src: thumb(result.id, 320), alt: "", loading: rank > 8 ? "lazy" : "eager" });
    picture.addEventListener("load", () => dim(picture));
    picture.addEventListener("error", () => picture.replaceWith("The image cannot be displayed."));
    face.append(picture);
  } else {
    face.append(make("span", { className: result.text.length < 60 ? "words short" : "words", textContent: result.text }));
  }
  const score = make("output", { textContent: result.score.toFixed(3), title: `score; cosine before calibration: ${result.cosine.toFixed(3)}` });
  const how = image && result.text ? HOW[result.matched] : name;
  const foot = make("span", { className: "foot" }, make("span", { className: image && result.text ? "title" : "title soft", textContent: title(result) }),
    make("span", { className: "meta" }, make("span", { className: `kind ${result.matched}`, textContent: how }), score));
  const kind = `card ${result.modality}${result.missing ? " missing" : ""}${result.weak ? " weak" : ""}`;
  const button = make("button", { type: "button", className: kind }, face, foot);
  const words = image ? result.text || result.id : result.text.slice(0, 120);
  button.setAttribute("aria-label", `${rank}. ${name}: ${words}, score ${result.score.toFixed(3)}${result.weak ? ", weak match" : ""}`);
  button.addEventListener("click", () => open(result));
  button.addEventListener("focus", () => markHere(state.points.findIndex((p) => p.id === result.hit)));
  return button;
}

function title(result) {
  if (result.modality === "image") return result.text || result.id;
  if (!result.images) return result.file || result.id;
  const more = result.images > 1 ? ` and ${result.images - 1} more` : "";
  return `caption of ${result.file || result.image}${more}`;
}

// Mark images on a white ground, which the dark page shows on grey.
function dim(picture) {
  const side = 16, canvas = make("canvas", { width: side, height: side });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0, side, side);
  const { data } = context.getImageData(0, 0, side, side);
  let white = 0, count = 0;
  for (let i = 0; i < side * side; i++) {
    const x = i % side, y = Math.floor(i / side);
    if (x % (side - 1) && y % (side - 1)) continue;
    if (Math.min(data[4 * i], data[4 * i + 1], data[4 * i + 2]) > WHITE) white++;
    count++;
  }
  picture.parentElement?.classList.toggle("light", white / count > SHARE);
}

async function open(result) {
  let item;
  try {
    item = await ask("item", { id: result.id });
  } catch (error) { showError(error.message); return; }
  const picture = at("dialog-image"), image = item.modality === "image";
  at("dialog-missing").hidden = true;
  picture.hidden = !item.image;
  picture.alt = item.caption || item.text || item.id;
  if (item.image) picture.src = thumb(item.id, 960);
  else picture.removeAttribute("src");
  at("dialog-title").textContent = image ? result.text || item.caption || "Image" : item.owner ? "Caption" : "Text";
  at("dialog-text").textContent = image && item.text === at("dialog-title").textContent ? "" : item.text;
  at("dialog-id").textContent = item.owner ? `describes ${item.file || item.owner}` : item.file || item.id;
  at("dialog-like").onclick = () => searchItem(item);
  for (const id of ["dialog-original", "dialog-download"]) at(id).hidden = !item.image;
  if (item.image) {
    at("dialog-original").href = address("original", { id: item.image });
    at("dialog-download").href = address("original", { id: item.image, download: 1 });
  }
  at("dialog-copy").hidden = !item.path && !item.image;
  at("dialog-copy").textContent = item.path ? "Copy path" : "Copy link";
  at("dialog-copy").onclick = () => copy(item.path || new URL(at("dialog-original").href, location.href).href);
  at("copied").textContent = "";
  at("dialog").showModal();
}

async function copy(words) {
  try {
    await navigator.clipboard.writeText(words);
    at("copied").textContent = `Copied: ${words}`;
  } catch {
    at("copied").textContent = words; // no permission: select it by hand
  }
}

// ---- comparison of the spaces

function showPanel() {
  at("panel").hidden = !state.compare;
  at("columns").classList.toggle("two", state.compare);
  at("compare").setAttribute("aria-expanded", String(state.compare));
  showBias();
  loadMap();
  if (state.results.length) showSummary(state.seconds);
}

function showBias() {
  const bias = state.about.bias[state.space] || {};
  const gauges = [["text", "A text query"], ["image", "An image query"]].filter(([kind]) => kind in bias).map(([kind, words]) => {
    const value = bias[kind];
    const svg = draw("svg", { viewBox: "0 0 92 14", "aria-hidden": "true" });
    const x = 46 + Math.max(-1, Math.min(1, value / 0.5)) * 40;
    svg.append(draw("line", { class: "track", x1: 4, x2: 88, y1: 7, y2: 7 }), draw("line", { class: "zero", x1: 46, x2: 46, y1: 1, y2: 13 }),
      draw("circle", { class: Math.abs(value) > 0.05 ? "dot far" : "dot", cx: x, cy: 7, r: 5 }));
    const many = Math.abs(10 * value).toFixed(1), balanced = Math.abs(value) < 0.05;
    const finding = balanced ? "is balanced" : `gets ${many} ${kind}s too ${value > 0 ? "many" : "few"}`;
    return make("p", { className: "gauge", title: `modality bias at 10: ${value.toFixed(3)}` }, svg, make("span", {}, `${words} `, make("b", { textContent: finding })));
  });
  const words = gauges.length
    ? "Among the first 10 items found, compared with their share of the collection:"
    : "The index has too few items of one modality to measure the balance of the results.";
  at("meaning").textContent = MEANING[state.space];
  at("bias").replaceChildren(make("p", { className: "soft", textContent: words }), ...gauges);
}

function setUp(about) {
  state.about = about;
  const some = about.fused < about.counts.image ? `, ${about.fused.toLocaleString("en")}` : "";
  const fused = about.fused ? `${some} with captions` : "";
  at("counts").textContent = `${about.counts.image.toLocaleString("en")} images${fused}, ${about.counts.text.toLocaleString("en")} texts`;
  at("note").textContent = about.note ? `${about.note[0].toUpperCase()}${about.note.slice(1)}.` : "";
  for (const name of Object.keys(NAMES)) {
    const input = make("input", { type: "radio", name: "space", value: name, disabled: !about.spaces.includes(name) });
    input.addEventListener("change", () => { state.space = name; remember(); showPanel(); search(); });
    at("spaces").append(make("label", { title: MEANING[name] }, input, make("span", { textContent: NAMES[name] })));
  }
}

function showExamples() {
  show({ results: [], seconds: null });
  const list = make("ul", { className: "tries" }, ...state.about.examples.map((words) => {
    const button = make("button", { type: "button", className: "button quiet", textContent: words });
    button.addEventListener("click", () => searchText(words));
    return make("li", {}, button);
  }));
  at("empty").append(make("p", { textContent: "Enter a text, or drop an image anywhere on this page. Images and texts are found in one list." }),
    ...(state.about.examples.length ? [list] : []));
}

// ---- events

function listen() {
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    searchEntered();
  });
  at("file").addEventListener("change", () => searchFile(at("file").files[0]));
  at("chip-clear").addEventListener("click", () => {
    const words = at("q").value;
    clearImage();
    searchText(words);
  });
  at("weight").addEventListener("change", search);
  for (const input of at("only").querySelectorAll("input")) {
    input.addEventListener("change", () => { state.only = input.value; remember(); search(); });
  }
  at("compare").addEventListener("click", () => {
    state.compare = !state.compare;
    const moved = !state.compare && state.space !== "aligned";
    if (moved) state.space = "aligned";
    for (const input of at("spaces").querySelectorAll("input")) input.checked = input.value === state.space;
    remember();
    showPanel();
    if (moved) search();
  });
  at("more").addEventListener("click", showMore);
  window.addEventListener("popstate", restore);
  at("dialog-image").addEventListener("error", () => { at("dialog-image").hidden = true; at("dialog-missing").hidden = false; });
  at("dialog").addEventListener("click", (event) => { if (event.target === at("dialog")) at("dialog").close(); });
  listenToMap();
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); at("q").focus(); }
  });
  at("draw").addEventListener("click", generate);
  listenToDrops();
}

function listenToDrops() {
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

// Wait until the encoders are loaded.
async function waitUntilReady() {
  for (;;) {
    const { ready, error } = await ask("status");
    if (ready) {
      state.ready = true;
      at("loading").hidden = true;
      if (error) showError(error);
      return;
    }
    at("loading").hidden = false;
    await new Promise((done) => { setTimeout(done, 300); });
  }
}

async function start() {
  listen();
  try {
    setUp(await ask("about"));
    await Promise.all([waitUntilReady(), restore()]);
    document.body.dataset.ready = "true";
  } catch (error) { showError(error.message); }
}

start();
