"use strict";
// One chart: lines over updates as SVG, with ticks, a cursor that all charts share, and a range that is dragged.

const MARGIN = { left: 58, right: 14, top: 12, bottom: 24 };

function make(name, attributes, parent) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (parent) parent.append(node);
  return node;
}

// A number in few characters, in the unit of its chart.
function said(value, unit) {
  if (value === null || value === undefined || Number.isNaN(value)) return "no number";
  if (unit === "share") return `${trimmed(100 * value, 3)} %`;
  if (unit === "bytes") return value >= 1e9 ? `${trimmed(value / 1e9, 4)} GB` : `${trimmed(value / 1e6, 4)} MB`;
  return trimmed(value, 4);
}

function trimmed(value, digits) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(Math.max(0, digits - 2)).replace(/\.?0+e/, "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

// Round numbers from low to high, about as many as asked for.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const found = [];
  for (let i = first; i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Powers of ten with their 2 and 5 where there is room; of less than a decade, round numbers.
function logTicks(low, high) {
  if (high / low < 8) return ticks(low, high, 5).filter((value) => value > 0);
  const decades = Math.log10(high / low);
  const factors = decades > 4 ? [1] : decades > 2 ? [1, 3] : [1, 2, 5];
  const every = Math.max(1, Math.ceil(decades / 6));
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += every) {
    for (const factor of factors) found.push(Number(`${factor}e${power}`));
  }
  return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

// Exponential moving average without the pull towards zero at its start; what is no number is left out.
function smoothed(values, weight) {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

// The index of the step nearest to one that is asked for.
function nearest(steps, step) {
  let low = 0;
  let high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle;
    else high = middle;
  }
  return Math.abs(steps[low] - step) <= Math.abs(steps[high] - step) ? low : high;
}

class Chart {
  // spec: title, unit, best, noisy, lines; view: what all charts share (smoothing, log, range, cursor, hidden, extent, changed).
  constructor(parent, spec, view) {
    this.spec = spec;
    this.view = view;
    this.figure = document.createElement("figure");
    this.figure.className = "chart";
    this.figure.dataset.title = spec.title;
    const caption = document.createElement("figcaption");
    caption.append(spec.title, this.names());
    this.svg = make("svg", { role: "img", tabindex: 0 });
    this.readout = document.createElement("div");
    this.readout.className = "readout";
    this.readout.hidden = true;
    this.readout.setAttribute("aria-live", "polite");
    this.figure.append(caption, this.svg, this.readout);
    parent.append(this.figure);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  // A legend of its own, where the lines are not the runs that the toolbar lists.
  names() {
    const names = document.createElement("span");
    names.className = "names";
    if (this.spec.lines.some((line) => line.colour !== line.run)) {
      for (const line of this.spec.lines) {
        const name = document.createElement("span");
        const swatch = document.createElement("span");
        swatch.className = `swatch c${line.colour % 8}`;
        name.append(swatch, line.label);
        names.append(name);
      }
    }
    return names;
  }

  get lines() {
    return this.spec.lines.filter((line) => !this.view.hidden.has(line.run));
  }

  smooths() {
    return this.spec.noisy && this.view.smoothing > 0;
  }

  draw() {
    const width = this.figure.clientWidth - 20;
    const height = 230;
    if (width <= 0) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    this.box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
    this.drawn = this.lines.map((line) => ({ ...line, shown: this.smooths() ? smoothed(line.values, this.view.smoothing) : line.values }));
    this.scale();
    this.drawAxes();
    const clip = `clip-${this.spec.title.replace(/\W+/g, "-")}`;
    const { left, right, top, bottom } = this.box;
    make("rect", { x: left - 5, y: top - 5, width: right - left + 11, height: bottom - top + 6 }, make("clipPath", { id: clip }, make("defs", {}, this.svg)));
    const inside = make("g", { "clip-path": `url(#${clip})` }, this.svg);
    for (const line of this.drawn) this.drawLine(line, inside);
    if (this.spec.best) for (const line of this.drawn) this.drawBest(line);
    this.cursor = make("line", { class: "cursor", y1: top, y2: bottom, x1: 0, x2: 0, visibility: "hidden" }, this.svg);
    this.chosen = make("rect", { class: "chosen", y: top, height: bottom - top, x: 0, width: 0 }, this.svg);
    this.svg.setAttribute("aria-label", this.described());
    this.drawCursor();
  }

  // The domain of both axes, and what takes a value to its place.
  scale() {
    const [first, last] = this.view.range ?? this.view.extent;
    const within = (line, values) => values.filter((value, i) => value !== null && line.steps[i] >= first && line.steps[i] <= last);
    let seen = this.drawn.flatMap((line) => within(line, line.shown));
    const raw = this.drawn.flatMap((line) => (this.smooths() ? middle(within(line, line.values)) : [...within(line, line.low ?? []), ...within(line, line.high ?? [])]));
    seen = seen.concat(raw);
    const positive = seen.filter((value) => value > 0);
    this.isLog = this.view.log && positive.length > 0;
    if (this.isLog) seen = positive;
    let low = seen.reduce((a, b) => Math.min(a, b), Infinity);
    let high = seen.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!Number.isFinite(low)) [low, high] = [0, 1];
    if (low === high) [low, high] = this.isLog ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
    const flat = this.isLog ? Math.log : (value) => value;
    const room = (flat(high) - flat(low)) * 0.06;
    const [from, to] = [flat(low) - room, flat(high) + room];
    const { left, right, top, bottom } = this.box;
    const span = last - first || 1;
    this.y = (value) => bottom - ((flat(value) - from) / (to - from)) * (bottom - top);
    this.x = (step) => left + ((step - first) / span) * (right - left);
    this.step = (x) => first + ((x - left) / (right - left)) * span;
    const bare = this.isLog ? Math.exp : (value) => value;
    this.domain = { first, last, low: bare(from), high: bare(to) };
  }

  drawAxes() {
    const { left, right, top, bottom } = this.box;
    const { first, last, low, high } = this.domain;
    const rules = make("g", { class: "rules" }, this.svg);
    for (const value of this.isLog ? logTicks(low, high) : ticks(low, high, 5)) {
      const y = this.y(value).toFixed(1);
      make("line", { x1: left, x2: right, y1: y, y2: y }, rules);
      make("text", { x: left - 8, y: Number(y) + 4, "text-anchor": "end" }, this.svg).textContent = said(value, this.spec.unit);
    }
    make("line", { x1: left, x2: right, y1: bottom, y2: bottom }, rules);
    for (const step of ticks(first, last, Math.max(2, Math.floor((right - left) / 70)))) {
      if (step !== Math.round(step)) continue;
      make("text", { x: this.x(step).toFixed(1), y: bottom + 17, "text-anchor": "middle" }, this.svg).textContent = step.toLocaleString("en");
    }
  }

  drawLine(line, parent) {
    const group = make("g", { class: `c${line.colour % 8} d${Math.floor(line.colour / 8) % 3}`, "data-run": line.run, "data-label": line.label }, parent);
    if (line.low) make("path", { class: "range", d: this.area(line) }, group);
    else if (this.smooths()) make("path", { class: "raw", d: this.path(line.steps, line.values) }, group);
    make("path", { class: "line", d: this.path(line.steps, line.shown) }, group);
    if (line.steps.length <= 40) {
      line.shown.forEach((value, i) => {
        if (this.fits(value)) make("circle", { cx: this.x(line.steps[i]).toFixed(1), cy: this.y(value).toFixed(1), r: line.steps.length <= 15 ? 3 : 2 }, group);
      });
    }
  }

  drawBest(line) {
    const better = this.spec.best === "highest" ? (a, b) => a > b : (a, b) => a < b;
    let best = -1;
    line.values.forEach((value, i) => {
      if (value !== null && (best < 0 || better(value, line.values[best]))) best = i;
    });
    if (best < 0 || !this.fits(line.values[best]) || line.steps[best] < this.domain.first || line.steps[best] > this.domain.last) return;
    const [x, y] = [this.x(line.steps[best]), this.y(line.values[best])];
    const group = make("g", { class: `c${line.colour % 8}`, "data-run": line.run }, this.svg);
    make("circle", { class: "best", cx: x.toFixed(1), cy: y.toFixed(1), r: 5 }, group);
    const words = `best ${said(line.values[best], this.spec.unit)} at ${line.steps[best].toLocaleString("en")}`;
    make("title", {}, group).textContent = words;
    if (this.drawn.length > 1) return; // labels of several would lie on one another; the table has the numbers
    const anchor = x > (this.box.left + this.box.right) / 2 ? "end" : "start";
    const above = y - this.box.top > 26;
    make("text", { class: "best", x: x.toFixed(1), y: (y + (above ? -11 : 20)).toFixed(1), "text-anchor": anchor }, group).textContent = words;
  }

  fits(value) {
    return value !== null && value !== undefined && (!this.isLog || value > 0);
  }

  path(steps, values) {
    let pen = "M";
    let drawn = "";
    steps.forEach((step, i) => {
      if (!this.fits(values[i])) pen = "M";
      else {
        drawn += `${pen}${this.x(step).toFixed(1)} ${this.y(values[i]).toFixed(1)}`;
        pen = "L";
      }
    });
    return drawn;
  }

  area(line) {
    const whole = line.steps.map((_, i) => i).filter((i) => this.fits(line.low[i]) && this.fits(line.high[i]));
    const there = whole.map((i) => `${this.x(line.steps[i]).toFixed(1)} ${this.y(line.high[i]).toFixed(1)}`);
    const back = whole.reverse().map((i) => `${this.x(line.steps[i]).toFixed(1)} ${this.y(line.low[i]).toFixed(1)}`);
    return whole.length ? `M${there.concat(back).join("L")}Z` : "";
  }

  // What a screen reader says in place of the picture.
  described() {
    const ends = this.drawn.map((line) => {
      const values = line.values.filter((value) => value !== null);
      return `${line.label} from ${said(values[0], this.spec.unit)} to ${said(values.at(-1), this.spec.unit)}`;
    });
    return `${this.spec.title} over updates: ${ends.join("; ") || "no run is shown"}`;
  }

  drawCursor() {
    const step = this.view.cursor;
    const shown = this.box && step !== null && step >= this.domain.first && step <= this.domain.last;
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", shown ? "visible" : "hidden");
    if (shown) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(step).toFixed(1));
    const reads = shown && this.view.reader === this && this.drawn.length > 0;
    this.readout.hidden = !reads;
    if (reads) this.read(step);
  }

  read(step) {
    const rows = this.drawn.filter((line) => line.steps.length).map((line) => [line, nearest(line.steps, step)]);
    const title = document.createElement("p");
    title.textContent = `update ${rows[0][0].steps[rows[0][1]].toLocaleString("en")}`;
    const list = document.createElement("ul");
    for (const [line, i] of rows) {
      const row = document.createElement("li");
      const name = document.createElement("span");
      name.className = "name";
      const swatch = document.createElement("span");
      swatch.className = `swatch c${line.colour % 8}`;
      name.append(swatch, this.spec.lines.length > 1 ? line.label : this.smooths() ? "smoothed" : "");
      const value = document.createElement("strong");
      value.textContent = said(line.shown[i], this.spec.unit);
      row.append(name, value);
      list.append(row);
      if (this.smooths() && this.spec.lines.length === 1) {
        const raw = row.cloneNode(true);
        raw.querySelector(".name").lastChild.textContent = line.low ? "mean" : "measured";
        raw.querySelector("strong").textContent = said(line.values[i], this.spec.unit);
        list.append(raw);
      }
    }
    this.readout.replaceChildren(title, list);
    const x = this.x(step);
    const room = this.figure.clientWidth;
    const width = this.readout.offsetWidth;
    this.readout.style.left = `${Math.max(4, x + 22 + width > room ? x - width - 2 : x + 22)}px`;
    this.readout.style.top = "44px";
  }

  listen() {
    const at = (event) => {
      const left = this.svg.getBoundingClientRect().left;
      return Math.min(this.box.right, Math.max(this.box.left, event.clientX - left));
    };
    let from = null;
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = at(event);
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointermove", (event) => {
      this.point(this.step(at(event)));
      if (from === null) return;
      const [left, right] = [from, at(event)].sort((a, b) => a - b);
      this.chosen.setAttribute("x", left);
      this.chosen.setAttribute("width", right - left);
    });
    this.svg.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const [left, right] = [from, at(event)].sort((a, b) => a - b);
      from = null;
      this.chosen.setAttribute("width", 0);
      if (right - left > 6) this.view.look([this.step(left), this.step(right)]);
    });
    this.svg.addEventListener("pointercancel", () => {
      from = null;
      this.chosen.setAttribute("width", 0);
    });
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("dblclick", () => this.view.look(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  point(step) {
    this.view.reader = step === null ? null : this;
    this.view.cursor = step === null ? null : Math.round(step);
    this.view.pointed();
  }

  key(event) {
    const { first, last } = this.domain;
    const now = this.view.cursor ?? Math.round((first + last) / 2);
    const stride = Math.max(1, Math.round((last - first) / 60));
    const moves = { ArrowLeft: -stride, ArrowRight: stride, Home: first - now, End: last - now };
    if (event.key in moves) this.point(Math.min(last, Math.max(first, now + moves[event.key])));
    else if (event.key === "+" || event.key === "=") this.zoom(now, 0.5);
    else if (event.key === "-") this.zoom(now, 2);
    else if (event.key === "Escape") this.view.look(null);
    else return;
    event.preventDefault();
  }

  zoom(centre, factor) {
    const [whole, end] = this.view.extent;
    const half = ((this.domain.last - this.domain.first) / 2) * factor;
    const range = [Math.max(whole, centre - half), Math.min(end, centre + half)];
    this.view.look(range[0] <= whole && range[1] >= end ? null : range);
  }
}

// Values without the farthest one in fifty at each end, so that a spike does not flatten everything else.
function middle(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const cut = Math.floor(sorted.length / 50);
  return sorted.slice(cut, sorted.length - cut);
}
