"use strict";
// Text of models and data is put on the page as text; HTML is what Python made, with all text in it escaped.
const at = (id) => document.getElementById(id);
const held = JSON.parse(at("held").textContent);
const named = new Map(held.columns.map((column) => [column.id, column]));

const element = (tag, traits = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(traits)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

// What is packed

const unpacked = (script) => {
  const text = atob(JSON.parse(script.textContent));
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream);
};
const numbers = async (id, Type) => new Type(await unpacked(at(id)).arrayBuffer());

const chunkOf = new Map(); // for each feature in full its script, and its place there
for (const script of document.querySelectorAll("script[data-features]")) {
  script.dataset.features.split(",").forEach((i, place) => chunkOf.set(Number(i), { script, place }));
}
const opened = new Map(); // chunks that were unpacked last
const full = async (index) => {
  const found = chunkOf.get(index);
  if (!found) return null;
  if (!opened.has(found.script)) {
    if (opened.size >= 8) opened.delete(opened.keys().next().value);
    opened.set(found.script, unpacked(found.script).json());
  }
  const parts = await opened.get(found.script);
  return Object.fromEntries(Object.entries(parts).map(([name, list]) => [name, list[found.place]]));
};

// What is shown

const state = { text: "", column: held.sort, descending: true, minimum: null, marked: false, page: 0, feature: null };
const values = {}; // for each column a number for each feature
let heads = []; // for each feature the words that it fires most on or pushes up, as places in `words`
let words = [];

const storage = `workbench-browser-${held.key}`;
const remembered = () => {
  try {
    const kept = JSON.parse(localStorage.getItem(storage));
    return Array.isArray(kept) ? kept.filter(Number.isInteger) : held.marks;
  } catch {
    return held.marks; // a page from a disk may be refused a memory
  }
};
const marks = new Set(remembered());
const mark = (index) => {
  if (!marks.delete(index)) marks.add(index);
  try {
    localStorage.setItem(storage, JSON.stringify([...marks].sort((a, b) => a - b)));
  } catch {
    // the bookmark lasts as long as the page
  }
  drawTable();
  drawMark();
  if (state.marked) drawMap();
};

const searched = () => {
  const wanted = state.text.trim().toLowerCase();
  const every = Array.from({ length: held.features }, (_, i) => i);
  if (!wanted) return every;
  if (/^[0-9]+$/.test(wanted) && Number(wanted) < held.features) return [Number(wanted)];
  const hit = new Set(words.flatMap((word, i) => (word.includes(wanted) ? [i] : [])));
  return every.filter((i) => heads[i].some((word) => hit.has(word)));
};
const found = () => {
  const by = values[state.column];
  const least = state.minimum === null ? null : Math.fround(state.minimum);
  const side = state.descending ? -1 : 1;
  return searched()
    .filter((i) => (!state.marked || marks.has(i)) && (least === null || by[i] >= least))
    .sort((a, b) => (Number.isNaN(by[a]) - Number.isNaN(by[b])) || side * (by[a] - by[b]) || a - b);
};
const isAsked = () => Boolean(state.text.trim()) || state.marked || state.minimum !== null;
const shown = (value) => {
  if (Number.isNaN(value)) return "–";
  const short = Number(value.toPrecision(4));
  return short && Math.abs(short) < 1e-4 ? short.toExponential() : String(short);
};

// The table

const keepFocus = (draw) => {
  const held = document.activeElement?.dataset.key;
  draw();
  if (held) document.querySelector(`[data-key="${held}"]`)?.focus({ preventScroll: true });
};
const star = (index) => {
  const is = marks.has(index);
  const traits = { type: "button", class: "star", "data-mark": index, "data-key": `mark-${index}` };
  const told = { "aria-pressed": is, "aria-label": `bookmark feature ${index}` };
  return element("button", { ...traits, ...told }, is ? "★" : "☆");
};
const row = (index) => {
  const traits = chunkOf.has(index) ? { class: "go" } : { class: "go part", title: "numbers alone" };
  const which = { type: "button", "data-feature": index, "data-key": `go-${index}` };
  const go = element("button", { ...traits, ...which }, `${index}`);
  const first = element("th", { scope: "row" }, star(index), go);
  const cells = held.columns.map(({ id }) => element("td", { class: "n" }, shown(values[id][index])));
  return element("tr", { "data-row": index }, first, ...cells);
};
const head = ({ id, name }) => {
  const order = id === state.column ? (state.descending ? "descending" : "ascending") : "none";
  const arrow = { descending: " ↓", ascending: " ↑", none: "" }[order];
  const button = element("button", { type: "button", "data-sort": id, "data-key": `sort-${id}` }, name + arrow);
  return element("th", { scope: "col", class: "n", "aria-sort": order }, button);
};
const drawTable = () => keepFocus(() => {
  const every = found();
  state.page = Math.max(0, Math.min(state.page, Math.ceil(every.length / held.rows) - 1));
  const start = state.page * held.rows;
  const some = every.slice(start, start + held.rows);
  at("heads").replaceChildren(element("th", { scope: "col" }, "feature"), ...held.columns.map(head));
  at("rows").replaceChildren(...some.map(row));
  at("where").textContent = every.length
    ? `${start + 1} to ${start + some.length} of ${every.length}`
    : "none found";
  at("previous").disabled = start === 0;
  at("next").disabled = start + some.length >= every.length;
  markRow();
});
const markRow = () => {
  for (const line of at("rows").children) {
    const is = Number(line.dataset.row) === state.feature;
    line.classList.toggle("shown", is);
    line.querySelector(".go").setAttribute("aria-current", is);
  }
};

// The map: the figure that Python made, with other points

const kind = document.createElement("canvas").getContext("webgl") ? "scattergl" : "scatter";
const points = (trace, members) => {
  const [x, y] = ["map-x", "map-y"].map((id) => values[at(id).value]);
  const along = (column) => Float32Array.from(members, (i) => column[i]);
  return { ...trace, type: kind, x: along(x), y: along(y), customdata: Int32Array.from(members) };
};
const drawMap = async () => {
  const some = new Set(isAsked() ? found() : values[state.column].keys());
  const others = [...values[state.column].keys()].filter((i) => !some.has(i));
  const one = state.feature === null ? [] : [state.feature];
  const members = { others, found: [...some], shown: one };
  const data = held.map.data.map((trace) => points(trace, members[trace.name] ?? []));
  const layout = structuredClone(held.map.layout);
  for (const axis of ["x", "y"]) {
    const { axis: title, log } = named.get(at(`map-${axis}`).value);
    layout[`${axis}axis`] = { ...layout[`${axis}axis`], title: { text: title }, type: log ? "log" : "linear" };
  }
  layout.uirevision = at("map-x").value + at("map-y").value; // zooming lasts while the axes stay the same
  await Plotly.react(at("map"), data, layout, held.config);
};

// One feature

const part = (name, html) => {
  const made = element("div");
  made.innerHTML = html;
  return name ? [element("h3", {}, name), made] : [made];
};
const plot = async (name, figure) => {
  const box = element("div", { role: "img", "aria-label": name });
  box.style.height = `${figure.layout.height}px`;
  at("feature").append(element("h3", {}, name), box);
  await Plotly.newPlot(box, figure.data, figure.layout, held.config);
};
const numbersOnly = (index) => {
  const pairs = held.columns.flatMap(({ id, name }) => [
    element("dt", {}, name),
    element("dd", {}, shown(values[id][index])),
  ]);
  const why = "This feature is not in the file in full, which was to stay small: workbench browse RUN shows it.";
  return [element("p", { class: "not-full" }, why), element("dl", { class: "numbers" }, ...pairs)];
};
const drawFeature = async () => {
  const index = state.feature;
  const told = await full(index);
  if (index !== state.feature) return; // another one was opened meanwhile
  document.querySelectorAll("#feature .js-plotly-plot").forEach((old) => Plotly.purge(old));
  at("title").textContent = `Feature ${index}`;
  at("number").value = index;
  drawMark();
  if (!told) {
    at("feature").replaceChildren(...numbersOnly(index));
    return;
  }
  const { summary, passages, neighbours, figures } = told;
  at("feature").replaceChildren(
    ...part("", summary), ...part("Passages", passages), ...part("Neighbours", neighbours),
  );
  for (const [name, figure] of Object.entries(figures)) {
    if (index !== state.feature) return;
    await plot(name, figure);
  }
};
const drawMark = () => {
  const is = marks.has(state.feature);
  at("mark").textContent = is ? "★ bookmarked" : "☆ bookmark";
  at("mark").setAttribute("aria-pressed", is);
};
const isFeature = (index) => Number.isInteger(index) && index >= 0 && index < held.features;
const open = (index) => {
  if (isFeature(index)) location.hash = index; // so that the back button goes back
};
const follow = () => {
  const index = Number(location.hash.slice(1));
  if (!location.hash || !isFeature(index) || index === state.feature) return Promise.resolve();
  state.feature = index;
  markRow();
  return Promise.all([drawFeature(), drawMap()]);
};

// What the reader does

const ask = (change) => {
  Object.assign(state, { page: 0, ...change });
  drawTable();
  drawMap();
};
const sortBy = (column) => ask({ column, descending: column !== state.column || !state.descending });
const turn = (step) => {
  state.page += step;
  drawTable();
};
const isNarrow = matchMedia("(max-width: 1000px)");
const go = (index, inside) => {
  open(index);
  if (inside) at("title").focus();
  else if (isNarrow.matches) at("title").scrollIntoView();
};
const listen = () => {
  const later = (act) => {
    let timer;
    return () => { clearTimeout(timer); timer = setTimeout(act, 200); };
  };
  at("search").addEventListener("input", later(() => ask({ text: at("search").value })));
  at("minimum").addEventListener("input", later(() => {
    const given = at("minimum").valueAsNumber;
    ask({ minimum: Number.isNaN(given) ? null : given });
  }));
  at("marked-only").addEventListener("change", () => ask({ marked: at("marked-only").checked }));
  at("previous").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  at("mark").addEventListener("click", () => mark(state.feature));
  at("number").addEventListener("change", () => {
    open(at("number").valueAsNumber);
    if (!isFeature(at("number").valueAsNumber)) at("number").value = state.feature;
  });
  for (const id of ["map-x", "map-y"]) at(id).addEventListener("change", drawMap);
  document.querySelector("main").addEventListener("click", ({ target }) => {
    const { sort, mark: marked } = target.closest("button")?.dataset ?? {};
    const line = target.closest("button.go, tr[data-row]");
    if (sort) sortBy(sort);
    else if (marked) mark(Number(marked));
    else if (line) go(Number(line.dataset.feature ?? line.dataset.row), Boolean(target.closest("#feature")));
  });
  at("map").on("plotly_click", ({ points: [point] }) => go(point.customdata));
  addEventListener("hashchange", follow);
};

const start = async () => {
  const [every, counts, ids] = await Promise.all([
    numbers("values", Float32Array), numbers("counts", Uint32Array), numbers("head-words", Uint32Array),
  ]);
  words = await unpacked(at("words")).json();
  held.columns.forEach(({ id }, i) => {
    values[id] = every.subarray(i * held.features, (i + 1) * held.features);
  });
  let end = 0;
  heads = Array.from(counts, (count) => ids.subarray(end, (end += count)));
  for (const axis of ["x", "y"]) {
    at(`map-${axis}`).append(...held.columns.map(({ id, name }) => element("option", { value: id }, name)));
    at(`map-${axis}`).value = `map_${axis}`;
  }
  at("number").max = held.features - 1;
  if (chunkOf.size < held.features) at("caption").append(" Of features in grey the numbers alone are here.");
  drawTable();
  await drawMap();
  listen();
  if (!isFeature(Number(location.hash.slice(1))) || !location.hash) {
    history.replaceState(null, "", `#${found()[0]}`);
  }
  await follow();
};
start().catch((error) => {
  at("wrong").textContent = `This page cannot be shown: ${error.message}. It wants a web browser of 2023 or later.`;
  at("wrong").hidden = false;
});
