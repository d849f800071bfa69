// The page: charts in their sections, the controls that all of them share, the pictures, and tables that sort.

const data = JSON.parse(document.getElementById("data").textContent);
const charts = [];

const view = {
  smoothing: gentle(),
  log: false,
  range: null,
  cursor: null,
  reader: null,
  hidden: new Set(),
  extent: extent(),
  look(range) {
    const [first, last] = range ?? [0, 0];
    view.range = range && last - first >= 1 ? range : null;
    document.getElementById("whole").disabled = view.range === null;
    redraw();
  },
  pointed() {
    for (const chart of charts) chart.drawCursor();
  },
};

// The first and the last update of any line.
function extent() {
  let [first, last] = [Infinity, 0];
  for (const { steps } of data.charts.flatMap((chart) => chart.lines)) {
    first = Math.min(first, steps[0] ?? first);
    last = Math.max(last, steps.at(-1) ?? last);
  }
  return [Number.isFinite(first) ? first : 0, last];
}

// What shows the course of a curve: a long one is seen through more of its noise.
function gentle() {
  const longest = Math.max(0, ...data.charts.flatMap((chart) => chart.lines.map((line) => (chart.noisy ? line.steps.length : 0))));
  return longest > 300 ? 0.9 : 0.6;
}

function redraw() {
  for (const chart of charts) chart.draw();
}

function addCharts() {
  for (const parent of document.querySelectorAll(".charts")) {
    for (const spec of data.charts.filter((chart) => chart.section === parent.dataset.section)) charts.push(new Chart(parent, spec, view));
  }
  redraw();
}

function addControls() {
  const smoothing = document.getElementById("smoothing");
  const smooth = (weight) => {
    view.smoothing = weight;
    smoothing.parentElement.querySelector("output").textContent = weight.toFixed(2);
  };
  smoothing.value = String(view.smoothing);
  smooth(view.smoothing);
  smoothing.addEventListener("input", () => {
    smooth(Number(smoothing.value));
    redraw();
  });
  const log = document.getElementById("log");
  log.addEventListener("change", () => {
    view.log = log.checked;
    redraw();
  });
  document.getElementById("whole").addEventListener("click", () => view.look(null));
  for (const key of document.querySelectorAll(".key")) {
    key.addEventListener("click", () => {
      const run = Number(key.dataset.run);
      if (!view.hidden.delete(run)) view.hidden.add(run);
      key.setAttribute("aria-pressed", String(!view.hidden.has(run)));
      redraw();
    });
  }
}

// One slider through the updates at which any run made pictures; each run shows its last ones up to there.
function addPictures() {
  const section = document.getElementById("pictures");
  if (!section) return;
  const steps = [...new Set(data.pictures.flat().map((grid) => grid.step))].sort((a, b) => a - b);
  const slider = document.getElementById("update");
  const figures = data.pictures.map((grids, run) => ({ grids, ...addFigure(section.querySelector(".grids"), grids, run) }));
  slider.max = String(steps.length - 1);
  const show = () => {
    const step = steps[Number(slider.value)];
    const words = step.toLocaleString("en");
    section.querySelector("output").textContent = words;
    slider.setAttribute("aria-valuetext", `update ${words}`);
    for (const { grids, picture, caption, list } of figures) {
      const grid = grids.findLast((candidate) => candidate.step <= step) ?? grids[0];
      if (grid) showGrid(grid, picture, caption, list);
    }
  };
  slider.addEventListener("input", show);
  slider.value = slider.max;
  show();
}

function addFigure(parent, grids, run) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const picture = document.createElement("img");
  const list = document.createElement("ul");
  figure.append(caption, picture, list);
  figure.hidden = grids.length === 0;
  figure.dataset.run = String(run);
  parent.append(figure);
  return { picture, caption, list };
}

function showGrid(grid, picture, caption, list) {
  const run = Number(picture.parentElement.dataset.run);
  const swatch = document.createElement("span");
  swatch.className = `swatch c${run % 8} d${Math.floor(run / 8) % 3}`;
  caption.replaceChildren(...(data.runs.length > 1 ? [swatch, `${data.runs[run]}, `] : []), `update ${grid.step.toLocaleString("en")}`);
  picture.src = grid.src;
  const captions = [...new Set(grid.cells.map((cell) => cell.caption).filter(Boolean))];
  picture.alt = `Validation pictures after update ${grid.step}: ${captions.join("; ")}`;
  list.replaceChildren(
    ...captions.map((words) => {
      const item = document.createElement("li");
      item.textContent = words;
      return item;
    }),
  );
}

function addSorting() {
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => compared(a.cells[column].dataset.value, b.cells[column].dataset.value, descending));
        table.tBodies[0].append(...rows);
      });
    });
  }
}

// Numbers as numbers, names as names, and what is missing last.
function compared(a, b, descending) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const order = Number.isNaN(Number(a)) || Number.isNaN(Number(b)) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return descending ? -order : order;
}

addControls();
addCharts();
addPictures();
addSorting();
