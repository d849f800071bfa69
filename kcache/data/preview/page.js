// The page of `kcache preview`: cards of samples, found by words and filters, and each sample with its neighbours.

const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 120;
const rows = [];
const sheets = new Map();
const state = { page: 0, filter: "all", found: [], open: null };
const node = (id) => document.getElementById(id);

// What is counted: a name, what it means, and whether a row is such.
const FILTERS = {
  all: ["All", "", () => true],
  same: ["Same file", "The picture files are equal byte by byte. Training sees such a picture more often than others; unless that is meant, keep one of each.", (row) => "same" in row],
  almost: ["Almost equal", "The image embeddings point almost the same way (cosine 0.985 or more): other sizes or crops of one picture, frames of one film, or pictures that CLIP cannot tell apart.", (row) => "almost" in row],
  cut: ["Cut captions", "A caption fills all tokens of the text encoder (77, for Kandinsky 2.2). What came after them was cut, and training never sees it: put what matters first.", (row) => "cut" in row],
  aside: ["Set aside", "These could not be encoded, for the reason on each card, and training never sees them. Mend the files and run kcache encode again.", (row) => "aside" in row],
  outlier: ["Unusual norm", "The image embedding is far longer or shorter than most: often an empty, broken or very odd picture. Look at them; most are worth leaving out.", (row) => "outlier" in row],
  mute: ["No caption", "These have no caption, or an empty one: the model learns to make them from nothing.", (row) => !row.captions.some((caption) => caption.trim())],
  bare: ["No features", "These are in the cache without features, and were not set aside: an encode was cut off or left them out. Run kcache encode again.", (row) => !("aside" in row) && (data.hasPictures || data.hasNeighbours) && !("at" in row) && !("near" in row)],
};

function make(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

const number = (value) => value.toLocaleString("en");
const first = (row) => row.captions.find((caption) => caption.trim()) ?? "(no caption)";

// --- rows: on the page, or from the scripts beside it, one after the other

function addRows(some) {
  for (const row of some) {
    row.index = rows.length;
    row.text = `${row.id}\n${row.captions.join("\n")}`.toLocaleLowerCase();
    rows.push(row);
  }
}

function load(parts) {
  if (!parts.length) {
    start();
    return;
  }
  node("count").textContent = `Loading: ${number(rows.length)} of ${number(data.count)}`;
  const script = document.createElement("script");
  script.src = parts[0];
  script.onload = () => load(parts.slice(1));
  script.onerror = () => {
    node("count").textContent = `${parts[0]} is not beside this page: move the page and its folder together.`;
  };
  document.head.append(script);
}

// --- pictures: tiles of sheets, which are loaded when one of their tiles is to be seen

function sheet(at) {
  if (!sheets.has(at)) {
    const image = new Image();
    image.src = data.sheets[at];
    sheets.set(at, image.decode().then(() => image));
    if (sheets.size > 24) sheets.delete(sheets.keys().next().value);
  }
  return sheets.get(at);
}

function picture(row) {
  if (!row.at) return make("span", "none", row.aside ? "set aside" : "no picture");
  const canvas = make("canvas");
  canvas.width = canvas.height = data.tile;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Picture of ${row.id}`);
  canvas.row = row;
  watcher.observe(canvas);
  return canvas;
}

async function paint(canvas) {
  const [at, place] = canvas.row.at;
  const [x, y] = [(place % data.across) * data.tile, Math.floor(place / data.across) * data.tile];
  try {
    canvas.getContext("2d").drawImage(await sheet(at), x, y, data.tile, data.tile, 0, 0, data.tile, data.tile);
    canvas.dataset.painted = "";
  } catch {
    canvas.replaceWith(make("span", "none", `${data.sheets[at].slice(0, 60)} is not beside this page`));
  }
}

const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      paint(target);
    }
  },
  { rootMargin: "400px" },
);

// --- cards

function flags(row) {
  const names = Object.keys(FILTERS).filter((name) => name !== "all" && FILTERS[name][2](row));
  return make("span", "flags", ...names.map((name) => make("span", "flag", FILTERS[name][0])));
}

function card(row, similarity) {
  const caption = make("span", "caption", first(row));
  caption.dir = "auto";
  const more = row.captions.length > 1 ? ` · ${row.captions.length} captions` : "";
  const below = similarity === undefined ? row.id + more : `${similarity.toFixed(3)} · ${row.id}`;
  const words = make("span", "words", caption, make("span", "id", below));
  if (similarity === undefined) words.append(flags(row));
  if (row.aside && similarity === undefined) words.append(make("span", "id", row.aside));
  const made = make("button", "sample", picture(row), words);
  made.type = "button";
  made.title = row.id;
  made.addEventListener("click", () => show(row));
  return made;
}

function drawCards() {
  const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const from = state.page * PAGE;
  node("cards").classList.toggle("wordy", !data.hasPictures);
  watcher.disconnect();
  node("cards").replaceChildren(...state.found.slice(from, from + PAGE).map((row) => card(row)));
  node("where").textContent = `Page ${number(state.page + 1)} of ${number(pages)}`;
  node("previous").disabled = state.page === 0;
  node("next").disabled = state.page === pages - 1;
  document.querySelector(".pager").hidden = pages === 1;
  const found = state.found.length;
  node("count").textContent = found ? `${number(found)} of ${number(rows.length)}` : "Nothing fits. Try fewer words, or All.";
}

// --- search and filters

// Words, "words together" and -words, as tests of a row's text.
function query(text) {
  const terms = [...text.toLocaleLowerCase().matchAll(/([-−]?)(?:"([^"]*)"|(\S+))/g)];
  const wanted = terms.map(([, minus, together, word]) => [Boolean(minus), together ?? word]).filter(([, term]) => term && term !== '"');
  return (row) => wanted.every(([without, term]) => row.text.includes(term) !== without);
}

function find() {
  const fits = query(node("search").value);
  const [, meaning, belongs] = FILTERS[state.filter];
  state.found = rows.filter((row) => belongs(row) && fits(row));
  // What belongs together stands together.
  if (state.filter === "same" || state.filter === "almost") state.found.sort((a, b) => a[state.filter] - b[state.filter]);
  state.page = 0;
  node("meaning").textContent = meaning;
  node("meaning").hidden = !meaning;
  for (const button of node("filters").children) button.setAttribute("aria-pressed", String(button.dataset.filter === state.filter));
  drawCards();
}

function addFilters() {
  for (const [name, [title, , belongs]] of Object.entries(FILTERS)) {
    const count = rows.filter(belongs).length;
    if (name !== "all" && count === 0) continue;
    const button = make("button", "", title, make("span", "", number(count)));
    button.type = "button";
    button.dataset.filter = name;
    button.addEventListener("click", () => {
      state.filter = name;
      find();
    });
    node("filters").append(button);
  }
}

// --- one sample

function facts(row) {
  const list = make("dl");
  const add = (what, said) => list.append(make("dt", "", what), make("dd", "", said));
  add("id", row.id);
  if (row.size) add("picture file", `${number(row.size[0])} × ${number(row.size[1])} pixels`);
  if (row.norm !== undefined) add("norm", row.norm === null ? "no number" : String(row.norm));
  if (row.aside) add("set aside", row.aside);
  for (const i of row.cut ?? []) add("cut", `caption ${i + 1} fills all tokens`);
  return list;
}

function show(row) {
  state.open = row;
  const captions = row.captions.map((caption) => {
    const item = make("li", "", caption.trim() ? caption : "(empty caption)");
    item.dir = "auto";
    return item;
  });
  const words = make("div", "", make("ol", "", ...captions), flags(row), facts(row));
  const about = make("div", row.at ? "about" : "about wordy", ...(row.at ? [picture(row)] : []), words);
  const inside = document.querySelector("#detail .inside");
  inside.replaceChildren(about);
  if (row.near?.length) {
    const near = make("div", data.hasPictures ? "near" : "near wordy");
    near.append(...row.near.filter(([i]) => rows[i]).map(([i, similarity]) => card(rows[i], similarity)));
    inside.append(make("h2", "", "Nearest by image embedding"), near);
  }
  const place = state.found.indexOf(row);
  node("before").disabled = place <= 0;
  node("after").disabled = place < 0 || place === state.found.length - 1;
  if (!node("detail").open) node("detail").showModal();
  node("detail").scrollTop = 0;
}

function step(by) {
  const place = state.found.indexOf(state.open);
  const other = place < 0 ? undefined : state.found[place + by];
  if (other) show(other);
}

function addControls() {
  node("search").addEventListener("input", find);
  const turn = (by) => {
    state.page += by;
    drawCards();
    scrollTo({ top: 0 });
  };
  node("previous").addEventListener("click", () => turn(-1));
  node("next").addEventListener("click", () => turn(1));
  node("before").addEventListener("click", () => step(-1));
  node("after").addEventListener("click", () => step(1));
  node("close").addEventListener("click", () => node("detail").close());
  node("detail").addEventListener("click", (event) => {
    if (event.target === node("detail")) node("detail").close();
  });
  document.addEventListener("keydown", (event) => {
    if (node("detail").open) {
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    } else if (event.key === "/" && document.activeElement !== node("search")) {
      event.preventDefault();
      node("search").focus();
    }
  });
}

function start() {
  addFilters();
  addControls();
  find();
}

addRows(data.rows);
load(data.parts);
