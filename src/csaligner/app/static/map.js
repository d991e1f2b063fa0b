"use strict";
// Map of the collection: points, results, and the image of the point under the pointer.

function place(point) {
  return [22 + point.x * 556, 438 - point.y * 416];
}

async function loadMap() {
  const space = state.space;
  if (!state.compare || state.mapped === space) return;
  state.mapped = space;
  try {
    const answer = await ask("map", { space });
    if (state.mapped !== space) return; // superseded
    state.points = answer.points.map(([id, modality, label, x, y]) => ({ id, modality, label, x, y }));
  } catch (error) { state.mapped = null; showError(error.message); return; }
  state.here = -1;
  drawMap();
}

function drawMap() {
  const found = new Set(state.results.map((result) => result.hit));
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

// Mark a point; tip: also show it beside the point.
function markHere(i, tip = false) {
  at("map").querySelector(".here")?.remove();
  at("tip").hidden = true;
  state.here = i;
  if (i < 0 || i >= state.points.length) return;
  const point = state.points[i];
  const [x, y] = place(point);
  at("map").append(draw("circle", { class: "here", cx: x, cy: y, r: 11 }));
  at("map-label").textContent = `${point.modality === "image" ? "Image" : "Text"}: ${point.label}`;
  if (!tip) return;
  const image = at("tip-image");
  image.hidden = point.modality !== "image";
  if (!image.hidden) image.src = thumb(point.id, 160);
  else image.removeAttribute("src");
  at("tip-label").textContent = point.label;
  at("tip").className = `tip${x > 300 ? " left" : ""}${y > 230 ? " up" : ""}`;
  at("tip").style.setProperty("--x", `${x / 6}%`);
  at("tip").style.setProperty("--y", `${y / 4.6}%`);
  at("tip").hidden = false;
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
  if (state.here < 0) { markHere(0, true); return; }
  const [x0, y0] = place(state.points[state.here]);
  let best = -1, least = Infinity;
  state.points.forEach((point, i) => {
    const [x, y] = place(point);
    const along = (x - x0) * dx + (y - y0) * dy, aside = Math.abs((x - x0) * dy) + Math.abs((y - y0) * dx);
    if (i === state.here || along <= 0 || aside > 2 * along) return;
    if (along + 2 * aside < least) { least = along + 2 * aside; best = i; }
  });
  if (best >= 0) markHere(best, true);
}

function listenToMap() {
  const map = at("map");
  map.addEventListener("click", (event) => { const i = nearestPoint(event); if (i >= 0) { markHere(i); open({ id: state.points[i].id }); } });
  map.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse") return;
    const i = nearestPoint(event);
    if (i < 0) at("tip").hidden = true;
    else if (i !== state.here || at("tip").hidden) markHere(i, true);
  });
  map.addEventListener("pointerleave", () => { at("tip").hidden = true; });
  map.addEventListener("blur", () => { at("tip").hidden = true; });
  map.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) { event.preventDefault(); step(...moves[event.key]); }
    if (event.key === "Escape") at("tip").hidden = true;
    if (event.key === "Enter" && state.here >= 0) open({ id: state.points[state.here].id });
  });
}
