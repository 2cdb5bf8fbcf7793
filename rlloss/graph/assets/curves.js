// Two small charts: each loss's value, and its gradient at logp, as the ratio crosses the clip bounds.

const CHART = { width: 260, height: 132, left: 34, right: 8, top: 18, bottom: 20, low: 0.5, high: 1.6, points: 23 };

// A path through points, interrupted where one is not finite.
function line(points) {
  const path = points.map(([x, y], i) => {
    if (!Number.isFinite(y)) return "";
    return `${i && Number.isFinite(points[i - 1][1]) ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  return path.join("");
}

class Curves {
  constructor(figure) {
    this.figure = figure;
    this.charts = ["value", "gradient"].map((kind) => this.chart(kind));
    this.root = element("div", { class: "rl-curves", role: "img", "data-aria": "charts" }, ...this.charts.map((chart) => chart.root));
  }

  chart(kind) {
    const { width, height, left, right, top, bottom } = CHART;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "rl-chart", "aria-hidden": "true" });
    const chart = { kind, root, bounds: svg("path", { class: "rl-bound" }, root), zero: svg("path", { class: "rl-zero" }, root) };
    chart.lines = this.figure.graphs.map((_, g) => svg("path", { class: `rl-curve rl-colour${g % 2} rl-curve${g}` }, root));
    chart.dots = this.figure.graphs.map((_, g) => svg("circle", { r: g ? 3 : 5, class: `rl-dot rl-colour${g % 2}` }, root));
    svg("path", { class: "rl-axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }, root);
    chart.title = svg("text", { x: left, y: 11, class: "rl-charttitle" }, root);
    chart.ticks = [svg("text", { x: left - 4, class: "rl-tick rl-end" }, root), svg("text", { x: left - 4, class: "rl-tick rl-end" }, root)];
    chart.marks = [0, 1, 2].map(() => svg("text", { y: height - 6, class: "rl-tick rl-middle" }, root));
    return chart;
  }

  // Ratios to compute at: an even grid, and the two sides of each bound, so that a jump is drawn as one.
  ratios(epsilon) {
    const { low, high, points } = CHART, grid = Array.from({ length: points }, (_, i) => low + ((high - low) * i) / (points - 1));
    for (const bound of [1 - epsilon, 1 + epsilon]) grid.push(bound - 1e-7, bound + 1e-7);
    return grid.filter((r) => r > 0).sort((a, b) => a - b);
  }

  update() {
    const { figure } = this, epsilon = figure.values.get("clip_coef"), old = figure.values.get("old_logp");
    const now = Math.exp(figure.values.get("logp") - old);
    const key = JSON.stringify([[...figure.values].filter(([name]) => name !== "logp"), figure.cuts.map((cuts) => [...cuts]), figure.batch, language]);
    if (key === this.key) { // only logp has moved
      for (const chart of this.charts) this.dots(chart, now);
      return;
    }
    this.key = key;
    const ratios = this.ratios(epsilon), found = figure.graphs.map((graph, g) => {
      const at = graph.inputs.findIndex((given) => given.name === "logp"), inputs = figure.inputsOf(graph);
      const marks = carriers(graph, figure.cuts[g]);
      return ratios.map((ratio) => {
        inputs[at] = old + Math.log(ratio);
        const state = evaluate(graph, inputs, figure.cuts[g], 1 / figure.batch, marks);
        return { value: state.values[graph.loss], gradient: state.gradients[at] ?? 0 };
      });
    });
    for (const chart of this.charts) {
      this.plot(chart, ratios, found, epsilon);
      this.dots(chart, now);
    }
  }

  dots(chart, now) {
    this.figure.graphs.forEach((graph, g) => {
      const state = this.figure.states[g], at = graph.inputs.findIndex((given) => given.name === "logp");
      const current = chart.kind === "value" ? state.values[graph.loss] : state.gradients[at] ?? 0;
      chart.dots[g].style.display = Number.isFinite(current) ? "" : "none";
      if (!Number.isFinite(current)) return;
      chart.dots[g].setAttribute("cx", chart.x(Math.min(Math.max(now, CHART.low), CHART.high)));
      chart.dots[g].setAttribute("cy", Math.min(Math.max(chart.y(current), CHART.top), CHART.height - CHART.bottom));
    });
  }

  plot(chart, ratios, found, epsilon) {
    const { width, height, left, right, top, bottom, low, high } = CHART;
    const numbers = [0, ...found.flat().map((p) => p[chart.kind]).filter(Number.isFinite)];
    const least = Math.min(...numbers), most = Math.max(...numbers), reach = most - least || 1;
    const x = (ratio) => left + ((width - left - right) * (ratio - low)) / (high - low);
    const y = (value) => height - bottom - ((height - top - bottom) * (value - least)) / reach;
    Object.assign(chart, { x, y });
    chart.title.textContent = `${word(chart.kind)} ${chart.kind === "gradient" ? "∂L/∂logp, " : "L, "}${word("against")}`;
    chart.bounds.setAttribute("d", [1 - epsilon, 1 + epsilon].filter((b) => b > low && b < high).map((b) => `M${x(b)} ${top}V${height - bottom}`).join(""));
    chart.zero.setAttribute("d", `M${left} ${y(0)}H${width - right}`);
    found.forEach((points, g) => {
      chart.lines[g].setAttribute("d", line(points.map((p, i) => [x(ratios[i]), y(p[chart.kind])])));
    });
    [most, least].forEach((value, i) => {
      chart.ticks[i].textContent = show(value, 2);
      chart.ticks[i].setAttribute("y", i ? height - bottom : top + 4);
    });
    [1 - epsilon, 1, 1 + epsilon].forEach((ratio, i) => {
      chart.marks[i].textContent = ["1 − ε", "1", "1 + ε"][i];
      chart.marks[i].setAttribute("x", x(ratio));
      chart.marks[i].style.display = ratio > low && ratio < high && (i === 1 || epsilon > 0.12) ? "" : "none";
    });
  }
}
