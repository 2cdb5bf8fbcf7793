// A figure: one or two graphs under one set of controls. Every move of a slider computes everything again, at once.

const MODES = ["graph", "forward", "backward"];
const SPEEDS = [0.5, 1, 2, 4];
const QUIET = 700; // milliseconds without a move, after which the result is said
const figures = []; // of this page

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// A label that follows the language; `both` shows the other language beside it, as the seed's headings do.
function spoken(key, both = false) {
  const first = element("span", { "data-word": key }), second = both ? element("small", { "data-other": key }) : null;
  return element("span", { class: "rl-word" }, first, second ?? "");
}

function speak(root) {
  root.querySelectorAll("[data-word]").forEach((e) => {
    e.textContent = word(e.dataset.word);
    e.lang = LANGUAGES[language];
  });
  root.querySelectorAll("[data-other]").forEach((e) => {
    e.textContent = WORDS[e.dataset.other][1 - language];
    e.lang = LANGUAGES[1 - language];
  });
  for (const e of root.querySelectorAll("[data-aria]")) e.setAttribute("aria-label", word(e.dataset.aria));
}

class Figure {
  constructor(root, data, index) {
    Object.assign(this, { root, data, index, playing: null, speed: 1, full: false, selected: null });
    this.graphs = data.graphs.map(prepare);
    this.inputs = new Map();
    for (const graph of this.graphs) for (const given of graph.inputs) if (!this.inputs.has(given.name)) this.inputs.set(given.name, given);
    this.values = new Map([...this.inputs].map(([name, given]) => [name, given.value]));
    this.cuts = this.graphs.map((graph) => new Set(graph.cuts));
    this.mode = data.options.mode;
    this.batch = 1;
    this.build();
    this.draw();
    this.compute();
    this.toEnd();
    speak(this.root);
    this.update();
  }

  // ------------------------------------------------------------------------------------------------- building

  build() {
    this.root.classList.add("rl-figure");
    this.banner = element("p", { class: "rl-banner" });
    this.live = element("p", { class: "rl-live", "aria-live": "polite", role: "status" });
    this.said = element("p", { class: "rl-said", role: "status" });
    this.stage = element("div", { class: "rl-stage" });
    this.detail = element("div", { class: "rl-detail", "aria-live": "off" });
    this.curves = this.data.options.curves ? new Curves(this) : null;
    this.root.append(this.toolbar(), element("div", { class: "rl-top" }, this.sliders(), this.curves?.root ?? ""));
    this.root.append(this.banner, this.live, this.said, this.stage, this.hints(), this.detail, this.table());
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  button(key, action, both = false, attributes = {}) {
    return element("button", { type: "button", onclick: action, ...attributes }, spoken(key, both));
  }

  toolbar() {
    this.tabs = MODES.map((mode) => this.button(mode, () => this.setMode(mode), true, { "data-mode": mode, "aria-pressed": "false" }));
    this.playButton = this.button("play", () => this.toggle(), false, { class: "rl-play" });
    const speed = element("select", { "data-aria": "speed", onchange: (e) => (this.speed = Number(e.target.value)) },
      ...SPEEDS.map((s) => element("option", { value: s, selected: s === 1 }, `${s}×`)));
    const full = element("input", { type: "checkbox", onchange: (e) => this.setFull(e.target.checked) });
    const foldable = this.graphs.some((graph) => graph.folded.boxes.length < graph.full.boxes.length);
    return element("div", { class: "rl-toolbar", role: "toolbar", "data-aria": "controls" },
      element("div", { class: "rl-tabs", role: "group", "data-aria": "mode" }, ...this.tabs),
      element("div", { class: "rl-plays" }, this.button("back", () => this.go(-1)), this.playButton, this.button("step", () => this.go(1)),
        element("label", {}, spoken("speed"), " ", speed)),
      foldable ? element("label", { class: "rl-check" }, full, " ", spoken("full")) : null,
      this.button("reset", () => this.reset()));
  }

  sliders() {
    const box = element("div", { class: this.inputs.size > 6 ? "rl-sliders rl-many" : "rl-sliders" });
    this.controls = new Map();
    for (const [name, given] of this.inputs) {
      const id = `rl${this.index}-${name.replace(/\W/g, "_")}`;
      const range = element("input", { type: "range", id, min: given.low, max: given.high, step: given.step, "data-input": name });
      const number = element("input", { type: "number", step: "any", "aria-label": given.label, "data-number": name });
      range.addEventListener("input", () => this.set({ [name]: Number(range.value) }));
      number.addEventListener("change", () => Number.isFinite(number.valueAsNumber) && this.set({ [name]: number.valueAsNumber }));
      this.controls.set(name, { range, number });
      box.append(element("div", { class: "rl-slider" }, element("label", { for: id }, given.label), range, number));
    }
    const batch = element("input", { type: "number", min: 1, max: 100000, step: 1, value: 1, class: "rl-batch",
      onchange: (e) => this.setBatch(Math.max(1, Math.round(e.target.valueAsNumber || 1))) });
    this.batchField = batch;
    const extras = element("div", { class: "rl-extras" });
    if (this.data.options.batch) extras.append(element("label", {}, spoken("batch"), " ", batch));
    if (this.hasRatio()) {
      const jumps = [["1 − ε", (e) => 1 - e], ["1", () => 1], ["1 + ε", (e) => 1 + e]];
      extras.append(element("span", { class: "rl-jumps" }, spoken("ratio"), ...jumps.map(([text, target]) =>
        element("button", { type: "button", "data-ratio": text, onclick: () => this.setRatio(target(this.values.get("clip_coef"))) }, text))));
    }
    box.append(extras);
    return box;
  }

  hasRatio() {
    return ["logp", "old_logp", "clip_coef"].every((name) => this.inputs.has(name));
  }

  hints() {
    return element("p", { class: "rl-hints" }, spoken("choose"), " ", spoken("keys"));
  }

  table() {
    this.tableBody = element("tbody");
    const head = element("tr", {}, ...["node", "formula", "value", "gradient"].map((key) => element("th", { scope: "col" }, spoken(key))));
    this.details = element("details", { class: "rl-table", ontoggle: () => this.fillTable() }, element("summary", {}, spoken("table")),
      element("div", { class: "rl-scroll" }, element("table", {}, element("thead", {}, head), this.tableBody)));
    return this.details;
  }

  draw() {
    this.stage.replaceChildren();
    this.drawings = this.graphs.map((graph, g) => {
      const drawing = new Drawing(graph, this.full ? graph.full : graph.folded, `rl${this.index}-${g}${this.full ? "f" : ""}`);
      drawing.root.setAttribute("aria-label", `${graph.title}: ${graph.nodes[graph.loss].formula}`);
      const caption = element("figcaption", {}, element("b", {}, graph.title), " ", element("span", { class: "rl-value" }));
      this.stage.append(element("figure", { class: `rl-graph rl-colour${g % 2}` }, caption, element("div", { class: "rl-scroll", tabindex: 0 }, drawing.root)));
      drawing.value = caption.querySelector(".rl-value");
      for (const box of drawing.boxes) {
        const choose = () => this.select(g, box.n);
        box.group.addEventListener("click", choose);
        box.group.addEventListener("focus", choose);
        box.group.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && !this.pinned && this.select(g, box.n, false));
        box.group.addEventListener("pointerleave", () => !this.pinned && this.unselect());
      }
      return drawing;
    });
  }

  // --------------------------------------------------------------------------------------------------- state

  inputsOf(graph) {
    return graph.inputs.map((given) => this.values.get(given.name));
  }

  compute() {
    this.states = this.graphs.map((graph, g) => evaluate(graph, this.inputsOf(graph), this.cuts[g], 1 / this.batch));
    this.orders = this.mode === "graph" ? [] : this.drawings.map((d, g) => d.order(this.mode, this.states[g]));
    this.steps = Math.max(0, ...this.orders.map((order) => order.length));
    this.at = Math.min(this.at ?? 0, this.steps);
  }

  // What is seen changes at once; what is said, and takes as long, when the sliders rest.
  set(values) {
    for (const [name, value] of Object.entries(values)) this.values.set(name, value);
    const end = this.at === this.steps;
    this.compute();
    if (end) this.at = this.steps;
    this.paint();
    clearTimeout(this.saying);
    this.saying = setTimeout(() => this.say(), QUIET);
  }

  say() {
    this.describe();
    this.said.textContent = [...this.banner.children].map((part) => part.textContent).join("; ");
  }

  setBatch(n) {
    this.batch = n;
    this.set({});
  }

  setMode(mode) {
    this.stop();
    this.mode = mode;
    this.compute();
    this.toEnd();
    this.update();
  }

  setFull(full) {
    this.stop();
    this.full = full;
    this.selected = null;
    this.pinned = false;
    this.draw();
    this.compute();
    this.toEnd();
    this.update();
  }

  // logp and old_logp such that exp(logp - old_logp) is the target to the last bit: of those found on a few grids, the
  // place where the true value lies nearest to the target, so that every good exp rounds to it.
  setRatio(target) {
    let best = { error: Infinity };
    for (const old of [this.values.get("old_logp"), -1, -0.5, -2, -0.25, -4, -0.125, -0.0625]) {
      let logp = old + log(target);
      for (let i = 0; i < 16; i++) logp = nextAfter(logp, -Infinity);
      for (let i = 0; i < 32; i++, logp = nextAfter(logp, Infinity)) {
        if (logp > this.inputs.get("logp").high || exp(logp - old) !== target) continue;
        const error = expError(logp - old);
        if (error < best.error) best = { error, logp, old };
      }
    }
    if (best.error < 1) {
      this.set({ logp: best.logp, old_logp: best.old });
    } else {
      this.set({ logp: this.values.get("old_logp") + log(target) });
      this.live.textContent = word("nearBound");
    }
  }

  cut(g, n) {
    if (this.graphs[g].nodes[n].number) return;
    if (!this.cuts[g].delete(n)) this.cuts[g].add(n);
    this.set({});
    this.live.textContent = `${this.graphs[g].nodes[n].title}: ${word(this.cuts[g].has(n) ? "cut" : "passes")}`;
  }

  reset() {
    this.stop();
    this.values = new Map([...this.inputs].map(([name, given]) => [name, given.value]));
    this.cuts = this.graphs.map((graph) => new Set(graph.cuts));
    this.batch = this.batchField.value = 1;
    this.set({});
    this.toEnd();
    this.update();
  }

  // A click or the focus pins the panel; the mouse passing over only shows it.
  select(g, n, pin = true) {
    for (const other of figures) if (other !== this && other.selected) other.unselect(); // one panel on a page
    this.pinned = pin;
    this.selected = { g, n };
    this.update();
    const { top, bottom } = this.drawings[g].boxAt.get(n).group.getBoundingClientRect();
    this.detail.classList.toggle("rl-above", !pin && top > innerHeight * 0.55); // never under the mouse
    if (pin) scrollBy(0, Math.max(0, bottom + this.detail.offsetHeight + 12 - innerHeight)); // nor over its own box
  }

  unselect() {
    this.pinned = false;
    this.selected = null;
    this.update();
  }

  // ------------------------------------------------------------------------------------------------- playing

  toEnd() {
    this.at = this.steps;
  }

  go(by) {
    if (this.mode === "graph") return this.setMode("forward");
    this.stop();
    this.at = by > 0 && this.at === this.steps ? Math.min(1, this.steps) : Math.min(this.steps, Math.max(0, this.at + by));
    this.update();
    return this.announce();
  }

  toggle() {
    if (this.playing) return this.stop();
    if (this.mode === "graph") this.mode = "forward";
    this.compute();
    this.at = 0;
    this.tick();
    return this.update();
  }

  tick() {
    this.playing = setTimeout(() => {
      this.at = Math.min(this.at + 1, this.steps);
      this.announce();
      if (this.at < this.steps) this.tick();
      else this.stop();
      this.update();
    }, 900 / this.speed);
  }

  stop() {
    clearTimeout(this.playing);
    this.playing = null;
    this.playButton.firstChild.firstChild.dataset.word = "play";
    this.playButton.firstChild.firstChild.textContent = word("play");
  }

  announce() {
    for (const [g, drawing] of this.drawings.entries()) this.reveal(drawing, this.orders[g]?.[this.at - 1]);
    const says = this.drawings.map((drawing, g) => this.sentence(drawing, g)).filter(Boolean);
    this.live.textContent = `${word("stepOf", this.at, this.steps)}. ${says.join("; ")}`;
  }

  // On a narrow screen, bring the box of this step into its graph's window; the page itself stays where it is.
  reveal(drawing, n) {
    const box = drawing.boxAt.get(n), window = drawing.root.parentElement;
    if (!box || window.scrollWidth <= window.clientWidth) return;
    const scale = drawing.root.getBoundingClientRect().width / drawing.layout.width;
    window.scrollTo({ left: box.x * scale - window.clientWidth / 2, behavior: "instant" });
  }

  sentence(drawing, g) {
    const n = this.orders[g]?.[this.at - 1], state = this.states[g];
    if (n === undefined) return "";
    const node = this.graphs[g].nodes[n], prefix = this.graphs.length > 1 ? `${this.graphs[g].title}: ` : "";
    if (this.mode === "forward") return `${prefix}${node.title === node.formula ? node.title : node.formula} = ${show(state.values[n])}`;
    const given = drawing.contributions(n, state), total = show(state.gradients[n]);
    const out = drawing.into.get(n).filter((l) => drawing.flow(l, state) !== null && state.requires[l.source]).map((l) =>
      `${show(state.gradients[n])} × ${bracket(drawing.localOf(l, state))} = ${show(drawing.flow(l, state))} ${word("goesTo")} ${this.graphs[g].nodes[l.source].title}`);
    return `${prefix}${node.title}: ${given.length > 1 ? `${given.map((x, i) => (i ? bracket(x) : show(x))).join(" + ")} = ` : ""}${total} ${word("arrives")}${out.length ? `, ${out.join(", ")}` : ""}`;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key, box = event.target.closest?.(".rl-node");
    const g = this.drawings.findIndex((drawing) => drawing.root.contains(box)), n = Number(box?.dataset.node);
    if (key === "Escape") this.close();
    else if (event.target.matches("input, select, summary")) return;
    else if (key === "ArrowRight" || key === "ArrowLeft") {
      if (event.target.matches(".rl-scroll")) return; // which they scroll
      this.go(key === "ArrowRight" ? 1 : -1);
    } else if (key === "g" || key === "f" || key === "b") this.setMode(MODES.find((mode) => mode[0] === key));
    else if (key === "s" && box) this.cut(g, n);
    else if (key === "Enter" && box) this.select(g, n);
    else if (key === " " && !event.target.matches("button")) this.toggle();
    else return;
    event.preventDefault();
  }

  // Where the focus was in the panel, it goes back to the panel's box.
  close() {
    const { selected } = this, inside = this.detail.contains(document.activeElement);
    if (selected && inside) this.drawings[selected.g].boxAt.get(selected.n)?.group.focus({ preventScroll: true });
    this.unselect();
  }

  // ------------------------------------------------------------------------------------------------- showing

  shown(g) {
    const done = this.mode === "graph" ? [] : this.orders[g].slice(0, this.at), all = this.drawings[g].boxes.map((box) => box.n);
    return { mode: this.mode, now: this.at < this.steps || this.playing ? done[done.length - 1] : undefined,
      values: new Set(this.mode === "forward" ? done : this.mode === "backward" ? all : []),
      gradients: new Set(this.mode !== "backward" ? [] : this.at === this.steps ? all : done) };
  }

  update() {
    this.paint();
    this.describe();
  }

  describe() {
    for (const [g, drawing] of this.drawings.entries()) drawing.describe(this.states[g], this.shown(g));
  }

  paint() {
    for (const [name, { range, number }] of this.controls) {
      const value = this.values.get(name);
      range.value = value;
      if (document.activeElement !== number) number.value = value;
      put(range, "aria-valuetext", show(value));
    }
    for (const tab of this.tabs) tab.setAttribute("aria-pressed", tab.dataset.mode === this.mode);
    if (this.playing) this.playButton.firstChild.firstChild.textContent = word("pause");
    this.drawings.forEach((drawing, g) => {
      drawing.update(this.states[g], this.shown(g), this.selected?.g === g ? this.selected.n : null);
      drawing.value.textContent = `${this.graphs[g].nodes[this.graphs[g].loss].formula} = ${show(this.states[g].values[this.graphs[g].loss], 5)}`;
    });
    this.showBanner();
    showDetail(this);
    this.curves?.update();
    this.fillTable();
  }

  // The same number, or not, that arrives at each input that carries a gradient.
  showBanner() {
    const goals = this.graphs[0].goals.map((n) => this.graphs[0].inputs[n].name).filter((name) => this.graphs.every((graph) => graph.inputs.some((i) => i.name === name)));
    const parts = goals.map((name) => {
      const found = this.graphs.map((graph, g) => this.states[g].gradients[graph.inputs.findIndex((i) => i.name === name)] ?? 0);
      const label = this.inputs.get(name).label, numbers = found.map((x, g) => `<b class="rl-colour${g % 2}">${show(x, 6)}</b>`);
      if (found.length < 2) return `${word("gradientAt")} ${label}: ${numbers[0]}`;
      const same = found.every((x) => Object.is(x + 0, found[0] + 0));
      return `${word("gradientAt")} ${label}: ${numbers.join(same ? " = " : " ≠ ")} <i class="${same ? "rl-same" : "rl-differ"}">(${same ? word("sameBits") : `${word("differBy")} ${show(Math.max(...found) - Math.min(...found), 3)}`})</i>`;
    });
    const losses = this.graphs.map((graph, g) => `<b class="rl-colour${g % 2}">${show(this.states[g].values[graph.loss])}</b>`);
    if (losses.length > 1) parts.push(`${word("valuesDiffer")}: ${losses.join(", ")}`);
    this.banner.hidden = losses.length < 2 && this.mode !== "backward";
    this.banner.innerHTML = parts.map((part) => `<span>${part}</span>`).join("");
  }

  fillTable() {
    if (!this.details.open) return;
    this.tableBody.replaceChildren(...this.graphs.flatMap((graph, g) => graph.nodes.map((node, n) => element("tr", {},
      element("th", { scope: "row" }, this.graphs.length > 1 ? `${graph.title}: ${node.title}` : node.title), element("td", {}, node.formula),
      element("td", {}, exactly(this.states[g].values[n])), element("td", {}, this.states[g].requires[n] ? exactly(this.states[g].gradients[n]) : "–")))));
  }
}
