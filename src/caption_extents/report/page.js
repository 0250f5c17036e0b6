"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const rate = data.frame_rate, count = data.sample_count;
const DOUBT = 0.9;

function element(tag, properties = {}, children = []) {
  // Text is only ever set as text: names and OCR results never become markup.
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/* Where samples are: the same arithmetic as chunks/plan.py. */
function levelOf(sample) { return sample % 16 === 0 ? 16 : sample % 4 === 0 ? 4 : 1; }
function chunkOf(sample) {
  const level = levelOf(sample), place = sample / level;
  const rank = level === 16 ? place : place - Math.floor(place / 4) - 1;
  const start = rank - (rank % 32);
  const first = level === 16 ? level * start : level * (start + Math.floor(start / 3) + 1);
  return { level, first, position: rank % 32 };
}

/* Showing samples: a video element for each level, so that neighbours need no new file. */
const view = byId("view");
view.style.aspectRatio = `${data.width} / ${data.height}`;
const players = {};
for (const level of [16, 4, 1]) {
  const video = element("video", { muted: true, playsInline: true, preload: "auto" });
  view.append(video);
  players[level] = { video, chunk: -1, queue: Promise.resolve() };
}
function happened(target, name) {
  return new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true });
    target.addEventListener("error", () => reject(new Error(`cannot play ${target.src}`)), { once: true });
  });
}
async function place(player, sample) {
  const { level, first, position } = chunkOf(sample);
  if (player.chunk !== first) {
    player.chunk = first;
    const loaded = happened(player.video, "loadeddata");
    player.video.src = `modulo_${level}/chunk_${String(first).padStart(10, "0")}.webm`;
    await loaded;
  }
  const time = (position + 0.5) / rate;
  if (Math.abs(player.video.currentTime - time) > 1e-6) {
    const sought = happened(player.video, "seeked");
    player.video.currentTime = time;
    await sought;
  }
}
let wanted = 0;
function display(sample) {
  const player = players[levelOf(sample)];
  player.queue = player.queue.then(async () => {
    if (sample !== wanted && !coarser(wanted).includes(sample)) return;
    await place(player, sample);
    for (const other of Object.values(players)) other.video.classList.toggle("shown", other === player);
    view.dataset.sample = sample;
  }).catch((error) => { player.chunk = -1; byId("where").textContent = error.message; });
  return player.queue;
}
function coarser(sample) {
  return [sample - (sample % 16), sample - (sample % 4)].filter((s) => s !== sample);
}
async function show(sample, coarseFirst = false) {
  wanted = Math.max(0, Math.min(count - 1, sample));
  const mine = wanted;
  byId("slider").value = mine;
  cursor.style.left = `${(100 * (mine + 0.5)) / count}%`;
  byId("where").textContent = `sample ${mine}, ${clock(secondsOf(mine))}`;
  markCurrent();
  if (coarseFirst) {
    for (const sample of coarser(mine)) {
      if (mine !== wanted) return;
      await display(sample);
    }
  }
  if (mine === wanted) await display(mine);
}

/* Captions and corrections. A caption is never altered: an edit puts another in its place, so that the list before the
   edit is all that undoing takes, and the rows of all others stay as they are. */
let captions = data.captions.map((caption) => ({ ...caption, edited: false }));
const history = [];
let current = -1;
function secondsOf(sample) { return data.first_sample_seconds + sample / rate; }
function clock(seconds) {
  const ms = Math.round(seconds * 1000), pad = (n, size) => String(n).padStart(size, "0");
  return `${pad(Math.floor(ms / 3600000), 2)}:${pad(Math.floor(ms / 60000) % 60, 2)}:` +
    `${pad(Math.floor(ms / 1000) % 60, 2)},${pad(ms % 1000, 3)}`;
}
function remember(changed) {
  history.push(captions);
  captions = changed;
  byId("undo").disabled = false;
}
function change(out, into) {
  // Captions of the list give way to others.
  remember([...captions.filter((c) => !out.includes(c)), ...into].sort((a, b) => a.start_frame - b.start_frame));
  renderCaptions();
}
function retimed(caption, start, end) {
  return { ...caption, start_frame: start, end_frame: end, edited: true,
    start_seconds: start === caption.start_frame ? caption.start_seconds : secondsOf(start),
    end_seconds: end === caption.end_frame ? caption.end_seconds : secondsOf(end) };
}
function retime(caption, start, end) {
  if (start < end && free(start, end, caption)) change([caption], [retimed(caption, start, end)]);
}
function meant(after) {
  // Outside of all captions, the end that is moved here is that of the next one, or of the one before.
  if (current >= 0) return captions[current];
  return after ? captions.find((c) => c.start_frame > wanted) : captions.findLast((c) => c.end_frame <= wanted);
}
const actions = {
  start: () => {
    const caption = meant(true);
    if (caption) retime(caption, wanted, caption.end_frame);
  },
  end: () => {
    const caption = meant(false);
    if (caption) retime(caption, caption.start_frame, wanted + 1);
  },
  split: () => {
    const caption = captions[current];
    if (!caption || wanted <= caption.start_frame) return;
    change([caption], [retimed(caption, caption.start_frame, wanted),
      { ...retimed(caption, wanted, caption.end_frame), thumbs: [] }]);
  },
  merge: () => {
    const caption = captions[current], next = captions[current + 1];
    if (!caption || !next) return;
    const text = next.text && next.text !== caption.text
      ? [caption.text, next.text].filter(Boolean).join("\n") : caption.text;
    change([caption, next], [{ ...caption, text, end_frame: next.end_frame, end_seconds: next.end_seconds, edited: true }]);
  },
  remove: () => {
    if (current >= 0) change([captions[current]], []);
  },
  add: () => {
    if (free(wanted, wanted + 1, null))
      change([], [{ start_frame: wanted, end_frame: wanted + 1, start_seconds: secondsOf(wanted),
        end_seconds: secondsOf(wanted + 1), text: "", confidence: 1, thumbs: [], edited: true }]);
  },
};
function free(start, end, except) {
  return captions.every((c) => c === except || c.end_frame <= start || c.start_frame >= end);
}
function undo() {
  if (!history.length) return;
  captions = history.pop();
  renderCaptions();
}
function atSample(sample) {
  return captions.findIndex((c) => c.start_frame <= sample && sample < c.end_frame);
}
let marked = [];  // a filter may have taken them off the page
function markCurrent() {
  current = atSample(wanted);
  for (const item of marked) item.classList.remove("current");
  marked = document.querySelectorAll(`[data-index="${current}"]`);
  for (const item of marked) item.classList.add("current");
}

const cursor = element("b");
const rows = new WeakMap();  // of captions that were shown once
function renderCaptions() {
  const track = byId("track");
  track.replaceChildren(...captions.map((caption, index) => {
    const mark = element("i", { className: caption.confidence < DOUBT ? "doubt" : "" });
    mark.dataset.index = index;
    mark.style.left = `${(100 * caption.start_frame) / count}%`;
    mark.style.width = `${(100 * (caption.end_frame - caption.start_frame)) / count}%`;
    return mark;
  }), cursor);
  const text = byId("filter").value.toLowerCase(), which = byId("which").value;
  const chosen = captions.map((caption, index) => ({ caption, index })).filter(({ caption }) =>
    (caption.text || "").toLowerCase().includes(text) &&
    (which === "all" || (which === "doubt" ? caption.confidence < DOUBT : caption.edited)));
  if (byId("order").value === "doubt") chosen.sort((a, b) => a.caption.confidence - b.caption.confidence);
  byId("captions").replaceChildren(...chosen.map(({ caption, index }) => {
    const row = rows.get(caption) || renderCaption(caption);
    row.dataset.index = index;
    return row;
  }));
  byId("count").textContent = `${chosen.length} of ${captions.length}`;
  byId("undo").disabled = history.length === 0;
  markCurrent();
}
function renderTimes(caption) {
  return element("div", { className: "times" }, [
    element("div", { textContent: `${clock(caption.start_seconds)} to ${clock(caption.end_seconds)}` }),
    element("div", { className: "soft", textContent:
      `samples ${caption.start_frame}\u2013${caption.end_frame - 1}, confidence ${caption.confidence.toFixed(2)}` +
      (caption.text_confidence == null ? "" : `, text ${caption.text_confidence.toFixed(2)}`) +
      (caption.edited ? ", corrected" : "") }),
  ]);
}
function renderCaption(caption) {
  const item = element("li", { className: "caption", tabIndex: 0 });
  rows.set(caption, item);
  item.classList.toggle("doubt", caption.confidence < DOUBT);
  let times = renderTimes(caption);
  const thumbs = element("div", { className: "thumbs" },
    caption.thumbs.map((source) => element("img", { src: source, alt: "" })));
  const area = element("textarea", { value: caption.text || "", rows: Math.max(1, (caption.text || "").split("\n").length),
    placeholder: "text", ariaLabel: "Text" });
  area.addEventListener("change", () => {
    // In this row: the focus is on its way to another one, or a button here is being clicked.
    const written = { ...caption, text: area.value, edited: true };
    remember(captions.map((c) => (c === caption ? written : c)));
    rows.delete(caption);
    rows.set(caption = written, item);
    const corrected = renderTimes(caption);
    times.replaceWith(corrected);
    times = corrected;
  });
  const buttons = [["start", "Starts here"], ["end", "Ends here"], ["split", "Split here"], ["merge", "Merge with next"],
    ["remove", "Remove"]].map(([name, label]) => {
    const button = element("button", { textContent: label });
    button.addEventListener("click", (event) => { event.stopPropagation(); actions[name](); });
    return button;
  });
  item.append(times, thumbs, area, element("div", { className: "row actions" }, buttons));
  item.addEventListener("click", (event) => {
    if (event.target !== area && (wanted < caption.start_frame || wanted >= caption.end_frame)) show(caption.start_frame, true);
  });
  return item;
}

/* Exports. */
function save(name, type, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function corrections() {
  return JSON.stringify({ format: 1, tenant_id: data.tenant_id, video_id: data.video_id, version: data.version,
    run_id: data.run_id, frame_rate: data.frame_rate_text, sample_count: count,
    captions: captions.map(({ start_frame, end_frame, start_seconds, end_seconds, text }) =>
      ({ start_frame, end_frame, start_seconds, end_seconds, text: text || null })) }, null, 1);
}
function subtitles() {
  // What subtitle formats take for markup becomes its full-width likeness, as in captions/subtitles.py.
  const plain = (text) => text.replace(/[{}\\<>]/g, (c) => ({ "{": "\uff5b", "}": "\uff5d", "\\": "\uff3c",
    "<": "\uff1c", ">": "\uff1e" })[c]).replace(/\n+/g, "\n").trim();
  return captions.map((caption, index) => `${index + 1}\n${clock(caption.start_seconds)} --> ` +
    `${clock(caption.end_seconds)}\n${plain(caption.text || "") || `[caption ${index + 1}]`}\n`).join("\n");
}
byId("export-json").addEventListener("click", () => save(`${data.video_id}.corrections.json`, "application/json", corrections()));
byId("export-srt").addEventListener("click", () => save(`${data.video_id}.srt`, "application/x-subrip", subtitles()));

/* Moving about. */
let playing = false;
async function play() {
  playing = !playing;
  byId("play").textContent = playing ? "Pause" : "Play";
  let due = performance.now();
  while (playing && wanted < count - 1) {
    await show(wanted + 1);
    due = Math.max(due + 1000 / rate, performance.now());
    await new Promise((resolve) => setTimeout(resolve, due - performance.now()));
  }
  playing = false;
  byId("play").textContent = "Play";
}
function toCaption(step) {
  const starts = captions.map((c) => c.start_frame);
  const next = step > 0 ? starts.find((s) => s > wanted) : starts.findLast((s) => s < wanted);
  if (next !== undefined) show(next, true);
}
byId("slider").max = count - 1;
byId("slider").addEventListener("input", (event) => show(Number(event.target.value), true));
byId("track").addEventListener("click", (event) => {
  const box = byId("track").getBoundingClientRect();
  show(Math.floor(((event.clientX - box.left) / box.width) * count), true);
});
for (const [id, act] of Object.entries({ previous: () => toCaption(-1), next: () => toCaption(1),
  back: () => show(wanted - 1), forward: () => show(wanted + 1), play, undo, add: actions.add }))
  byId(id).addEventListener("click", act);
for (const id of ["filter", "which", "order"]) byId(id).addEventListener("input", renderCaptions);
const keys = { ArrowLeft: (shift) => show(wanted - (shift ? 10 : 1)), ArrowRight: (shift) => show(wanted + (shift ? 10 : 1)),
  ArrowUp: () => toCaption(-1), ArrowDown: () => toCaption(1), " ": play, "[": actions.start, "]": actions.end,
  s: actions.split, m: actions.merge, Delete: actions.remove, u: undo, "/": () => byId("filter").focus() };
document.addEventListener("keydown", (event) => {
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, input[type=search], select")) return;
  event.preventDefault();
  act(event.shiftKey);
});
window.addEventListener("beforeunload", (event) => { if (history.length) event.preventDefault(); });

/* What does not change. */
document.title = `${data.video_id}: captions`;
byId("title").textContent = `${data.video_id}, version ${data.version}`;
byId("facts").textContent = `${data.captions.length} captions in ${clock(count / rate)} of ${data.source}; ${count} samples of ` +
  `${data.width}\u00d7${data.height} pixels, ${data.frame_rate_text} a second; model ${data.model_version}` +
  (data.undecodable ? `; ${data.undecodable} samples could not be decoded` : "");
byId("labels").append(...Object.entries(data.label_counts).map(([label, number]) =>
  element("tr", {}, [element("th", { textContent: label }), element("td", { textContent: number })])));
function strip(values, full, className) {
  return element("div", { className: `strip ${className}` }, values.map((value) => {
    const cell = element("span");
    cell.style.opacity = Math.min(1, value / full);
    return cell;
  }));
}
function renderPipeline({ total_seconds, overlap, stages, timeline, implementation }) {
  byId("advice").textContent = `${implementation}, ${total_seconds.toFixed(1)} s; bottleneck: ${overlap.bottleneck}; ${overlap.advice}`;
  const last = Math.max(...Object.values(timeline.busy).map((values) => values.length));
  const full = (values) => [...values, ...Array(last - values.length).fill(0)];
  for (const [name, values] of Object.entries(timeline.busy)) {
    byId("stages").append(element("div", { textContent: `${name}, ${stages[name].busy_seconds.toFixed(1)} s busy` }),
      strip(full(values), stages[name].workers, "busy"));
    const held = timeline.queued[name];
    if (held) byId("stages").append(element("div", { className: "soft", textContent: `queue before ${name}` }),
      strip(full(held), Math.max(1, ...held), "queue"));
  }
}
if (data.metrics) renderPipeline(data.metrics);
renderCaptions();
show(captions.length ? captions[0].start_frame : 0);
