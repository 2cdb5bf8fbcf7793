// One graph as SVG: built once for a layout, then only attributes and texts change. Positions come from Python.

const SVG = "http://www.w3.org/2000/svg";
const LINE = 15; // as in rlloss/graph_layout.py

function svg(tag, attributes, parent) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent?.append(element);
  return element;
}

// Writes that change nothing still cost a layout: leave them out.
function put(element, name, value) {
  const text = String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const ruler = document.createElement("canvas").getContext("2d");

const family = getComputedStyle(document.body).fontFamily;

function fit(text, width, font) {
  ruler.font = font;
  if (ruler.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && ruler.measureText(`${text.slice(0, end)}…`).width > width) end--;
  return `${text.slice(0, end)}…`;
}

// As many digits as a box has room for: four, or fewer.
function brief(write) {
  return [4, 3, 2].map(write).find((text) => text.length < 20) ?? write(2);
}

class Drawing {
  constructor(graph, layout, id) {
    Object.assign(this, { graph, layout, id });
    this.root = svg("svg", { viewBox: `0 0 ${layout.width} ${layout.height}`, role: "group", class: "rl-svg" });
    this.root.style.setProperty("--natural", `${layout.width}px`);
    this.markers();
    const links = svg("g", { "aria-hidden": "true" }, this.root);
    this.links = layout.links.map((link) => this.link(link, links));
    this.boxes = layout.boxes.map((box) => this.box(box));
    this.boxAt = new Map(this.boxes.map((box) => [box.n, box]));
    this.into = new Map(this.boxes.map((box) => [box.n, this.links.filter((link) => link.target === box.n)]));
    const labels = svg("g", { "aria-hidden": "true" }, this.root);
    for (const link of this.links) link.label = this.label(link, labels);
  }

  markers() {
    const defs = svg("defs", {}, this.root);
    for (const kind of ["path", "flat", "cut"]) {
      const marker = svg("marker", { id: `${this.id}-${kind}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8,
        markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse", class: `rl-head rl-${kind}` }, defs);
      svg("path", { d: "M0 0.5 L8 4 L0 7.5 Z" }, marker);
    }
  }

  link(link, parent) {
    let path = "";
    for (let i = 0; i < link.points.length; i += 2) {
      const [[x0, y0], [x1, y1]] = link.points.slice(i, i + 2), bend = (x1 - x0) / 2;
      path += `${i ? "L" : "M"}${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`;
    }
    return { ...link, line: svg("path", { d: path, class: "rl-link" }, parent) };
  }

  label(link, parent) {
    const [[x0, y0], [x1, y1]] = link.points.length > 2 ? link.points.slice(1, 3) : link.points;
    return svg("text", { x: (x0 + x1) / 2, y: (y0 + y1) / 2 - 5, class: "rl-cutlabel" }, parent);
  }

  box(box) {
    const node = this.graph.nodes[box.n], width = this.layout.box;
    const group = svg("g", { tabindex: 0, role: "button", class: "rl-node", "data-node": box.n,
      transform: `translate(${box.x - width / 2} ${box.y})` }, this.root);
    group.classList.toggle("rl-input", node.op === "input");
    group.classList.toggle("rl-folded", box.members.length > 0);
    group.classList.toggle("rl-marked", [box.n, ...box.members].some((n) => this.graph.marked.includes(n)));
    const rect = svg("rect", { width, rx: 6 }, group);
    const lines = ["title", "formula", "value", "gradient", "parts", "flow", "flow", "flow"].map((kind) =>
      svg("text", { x: width / 2, class: `rl-${kind}` }, group));
    lines[0].textContent = fit(node.title, width - 12, `600 13px ${family}`);
    lines[1].textContent = node.text ? fit(node.text, width - 10, `11px ${family}`) : "";
    return { ...box, group, rect, lines, node };
  }

  // What a link does under the current cuts: a gradient comes back along a "path", would but for a "cut", never if "flat".
  kind(link, state) {
    const box = this.boxAt.get(link.target);
    if (!state.requires[link.source]) return "flat";
    if (state.requires[link.target]) return this.flow(link, state) === null ? "flat" : "path";
    const members = box.members.length ? box.members : [link.target];
    return members.some((n) => state.cuts.has(n)) ? "cut" : "flat";
  }

  flow(link, state) {
    const given = link.via.map(([n, i]) => state.flows[n]?.[i] ?? null).filter((x) => x !== null);
    return given.length ? given.reduce((a, b) => a + b) : null;
  }

  // shown: { mode, values: Set of boxes with values, gradients: Set with gradients, now: the box of this step }
  update(state, shown, selected) {
    for (const link of this.links) this.updateLink(link, state, shown);
    for (const box of this.boxes) this.updateBox(box, state, shown, selected);
  }

  updateLink(link, state, shown) {
    const kind = this.kind(link, state), back = shown.mode === "backward";
    const lit = kind === "path" && back && shown.gradients.has(link.target);
    put(link.line, "class", `rl-link rl-${kind}${lit ? " rl-lit" : ""}${shown.now === link.target && lit ? " rl-now" : ""}`);
    put(link.line, lit ? "marker-start" : "marker-end", `url(#${this.id}-${kind})`);
    link.line.removeAttribute(lit ? "marker-end" : "marker-start");
    say(link.label, kind === "cut" ? "cut 截断" : "");
  }

  updateBox(box, state, shown, selected) {
    const { lines, node, n } = box, carries = this.carries(n, state);
    const gradient = shown.gradients.has(n) ? state.gradients[n] : null;
    const texts = [lines[0].textContent, lines[1].textContent, "", "", "", "", "", ""];
    if (shown.values.has(n)) texts[2] = show(state.values[n], 5);
    if (gradient !== null && (carries || state.cuts.has(n))) {
      if (carries) texts[3] = `∂ ${show(gradient, 5)}`;
      else if (!(node.op === "input")) texts[3] = `${word("lost")} ${show(gradient)}`;
      if (carries) this.gradientLines(box, state, texts);
    }
    const large = texts[3] !== "" && this.graph.goals.includes(n) ? 4 : 0; // in larger letters, where the eye ends
    const used = lines.filter((_, i) => texts[i] !== "").length, height = used * LINE + 10 + large;
    let y = -height / 2 + LINE + 1;
    lines.forEach((line, i) => {
      if (i > 1) say(line, texts[i]);
      if (texts[i] === "") return;
      if (i === 3) y += large;
      put(line, "y", y);
      y += LINE;
    });
    put(box.rect, "y", -height / 2);
    put(box.rect, "height", height);
    this.mark(box, state, shown, selected);
  }

  carries(n, state) {
    return Boolean(state.requires[n]) && state.gradients[n] !== null;
  }

  gradientLines(box, state, texts) {
    const given = this.contributions(box.n, state);
    if (given.length > 1) texts[4] = brief((d) => `= ${given.map((g, i) => (i ? `${g < 0 ? "−" : "+"} ${show(Math.abs(g), d)}` : show(g, d))).join(" ")}`);
    if (texts[4].length > 20) texts[4] = `Σ ${given.length}`;
    if (box.node.op === "input") return;
    const out = this.into.get(box.n).map((link) => [link, this.flow(link, state)]);
    out.filter(([, g]) => g !== null).slice(0, 3).forEach(([link, g], i) => {
      if (!state.requires[link.source]) return;
      texts[5 + i] = box.members.length ? `→ ${show(g)}` : brief((digits) => `× ${bracket(this.localOf(link, state), digits)} = ${show(g, digits)}`);
    });
  }

  localOf(link, state) {
    const local = localDerivatives(this.graph, state, link.target);
    return link.via.map(([, i]) => local[i]).reduce((a, b) => a + b);
  }

  // What arrives at a node from each of its uses, the latest first.
  contributions(n, state) {
    return this.graph.uses[n].map(([m, i]) => state.flows[m]?.[i] ?? null).filter((given) => given !== null);
  }

  mark(box, state, shown, selected) {
    const { group, n, node } = box;
    group.classList.toggle("rl-carries", this.carries(n, state));
    group.classList.toggle("rl-iscut", state.cuts.has(n) && node.op !== "input");
    group.classList.toggle("rl-goal", this.graph.goals.includes(n));
    group.classList.toggle("rl-active", shown.now === n);
    group.classList.toggle("rl-selected", selected === n);
    put(group, "aria-pressed", selected === n);
  }

  // What a screen reader says of each box.
  describe(state, shown) {
    for (const { group, n, node } of this.boxes) {
      const says = [node.title, node.formula === node.title ? "" : node.formula];
      if (shown.values.has(n)) says.push(`${word("value")} ${show(state.values[n])}`);
      if (shown.gradients.has(n)) {
        says.push(state.requires[n] ? `${word("gradient")} ${show(state.gradients[n])}` : word("noGradient"));
      }
      if (state.cuts.has(n) && node.op !== "input") says.push(word("cut"));
      put(group, "aria-label", says.filter(Boolean).join(", "));
    }
  }

  // The boxes in the order in which a mode plays: topological, or its reverse along the gradient.
  order(mode, state) {
    const boxes = this.boxes.map((box) => box.n);
    if (mode === "forward") return boxes;
    return boxes.filter((n) => state.requires[n] && state.gradients[n] !== null).reverse();
  }
}
