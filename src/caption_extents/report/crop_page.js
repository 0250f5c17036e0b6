"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const stage = byId("stage"), EDGE = 8, LEAST = 0.01;
let region = data.region;

function draw() {
  const [left, top, right, bottom] = region;
  Object.assign(byId("region").style, { left: `${left * 100}%`, top: `${top * 100}%`,
    width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%` });
  byId("option").textContent = `--crop ${region.join(",")}`;
}
function show(index) {
  byId("picture").src = `pictures/${index}.jpg`;
  byId("number").textContent = `picture ${index + 1} of ${data.pictures}`;
}
const within = (value) => Math.min(1, Math.max(0, value));
const rounded = (value) => Math.round(value * 1e4) / 1e4;
function at(event) {
  const box = stage.getBoundingClientRect();
  return { x: within((event.clientX - box.left) / box.width), y: within((event.clientY - box.top) / box.height), box };
}
function gripped({ x, y, box }) {
  // Which sides are held: those near the pointer; all of them inside; none elsewhere.
  const near = (a, b, size) => Math.abs(a - b) * size <= EDGE;
  const [left, top, right, bottom] = region, dx = EDGE / box.width, dy = EDGE / box.height;
  if (x < left - dx || x > right + dx || y < top - dy || y > bottom + dy) return null;
  const sides = [near(x, left, box.width), near(y, top, box.height), near(x, right, box.width), near(y, bottom, box.height)];
  return sides.some(Boolean) ? sides : [true, true, true, true];
}
let drag = null;
stage.addEventListener("pointerdown", (event) => {
  const start = at(event);
  drag = { start, before: [...region], sides: gripped(start) };
  stage.setPointerCapture(event.pointerId);
  event.preventDefault();
});
stage.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const now = at(event), { start, before, sides } = drag;
  let next;
  if (!sides) next = [start.x, start.y, now.x, now.y];
  else {
    let dx = now.x - start.x, dy = now.y - start.y;
    if (sides.every(Boolean)) {
      dx = Math.min(1 - before[2], Math.max(-before[0], dx));
      dy = Math.min(1 - before[3], Math.max(-before[1], dy));
    }
    next = before.map((value, side) => (sides[side] ? within(value + (side % 2 ? dy : dx)) : value));
  }
  const [x1, y1, x2, y2] = next;
  const sorted = [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)].map(rounded);
  if (sorted[2] - sorted[0] >= LEAST && sorted[3] - sorted[1] >= LEAST) region = sorted;
  draw();
});
stage.addEventListener("pointerup", () => { drag = null; });
byId("which").max = data.pictures - 1;
byId("which").addEventListener("input", (event) => show(Number(event.target.value)));
byId("done").addEventListener("click", async () => {
  const answer = await fetch("region", { method: "POST", body: JSON.stringify(region) });
  byId("state").textContent = answer.ok ? "Done; this page can be closed." : `That did not work: ${await answer.text()}`;
  byId("done").disabled = answer.ok;
});
draw();
show(0);
