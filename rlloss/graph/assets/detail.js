// The panel below the graphs: everything about the node under the pointer or the focus, and its stop-gradient switch.

function fact(key, ...content) {
  return element("div", {}, element("dt", {}, spoken(key)), element("dd", {}, ...content));
}

function showDetail(figure) {
  const { detail, selected } = figure;
  detail.hidden = !selected;
  document.body.classList.toggle("rl-open", figures.some((other) => other.selected));
  if (!selected) return;
  const { g, n } = selected, graph = figure.graphs[g], node = graph.nodes[n], state = figure.states[g];
  const key = `${g}:${n}`;
  if (detail.dataset.of !== key || !detail.querySelector("dl")) buildDetail(figure, g, n, key);
  const drawing = figure.drawings[g], facts = [fact("value", exactly(state.values[n]))];
  if (node.formula !== node.title) facts.unshift(fact("formula", node.formula));
  facts.push(...gradientFacts(drawing, graph, state, n));
  if (state.cuts.has(n)) facts.push(...lossFacts(graph, state, n));
  if (node.line) facts.push(fact("line", node.line));
  detail.querySelector("dl").replaceChildren(...facts);
  const box = detail.querySelector("input");
  if (box) box.checked = state.cuts.has(n);
  speak(detail);
}

function buildDetail(figure, g, n, key) {
  const graph = figure.graphs[g], node = graph.nodes[n];
  const toggle = element("label", { class: "rl-cut" }, element("input", { type: "checkbox", "data-cut": key, onchange: () => figure.cut(g, n) }),
    " ", spoken("cutHere"), " ", element("small", {}, spoken("cutHint")));
  figure.detail.dataset.of = key;
  const close = element("button", { type: "button", class: "rl-close", "data-aria": "close", onclick: () => figure.close() }, "×");
  figure.detail.replaceChildren(close, element("h4", { class: `rl-colour${g % 2}` }, graph.title, ": ", node.title), node.number ? "" : toggle, element("dl"));
}

function gradientFacts(drawing, graph, state, n) {
  const given = drawing.contributions(n, state), total = state.gradients[n], node = graph.nodes[n];
  if (total === null) return [fact("gradient", spoken("noPath"))];
  const sum = given.length > 1 ? `${given.map((x, i) => (i ? bracket(x) : show(x))).join(" + ")} = ` : "";
  const facts = [fact(given.length > 1 ? "fanOut" : "incoming", `${sum}${exactly(total)}`)];
  if (!state.flows[n]) return facts;
  const local = localDerivatives(graph, state, n);
  const out = node.args.map((a, i) => (isNode(a) && state.flows[n][i] !== null && state.requires[a]
    ? element("div", {}, `${show(total)} × ${bracket(local[i])} = ${show(state.flows[n][i])} → ${graph.nodes[a].title}`) : null)).filter(Boolean);
  return out.length ? [...facts, fact("outgoing", ...out)] : facts;
}

function lossFacts(graph, state, n) {
  const facts = [];
  if (state.gradients[n] !== null) facts.push(fact("cut", `${show(state.gradients[n])} `, spoken("arrivesLost")));
  for (const goal of graph.goals) {
    if (goal !== n) facts.push(fact("lostAt", `${graph.nodes[goal].title}: ${show(lostAt(graph, state, n, goal))}`));
  }
  return facts;
}
