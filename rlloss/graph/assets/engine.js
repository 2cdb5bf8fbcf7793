// The graph computed: forward in topological order, backward in reverse. Plain data in, plain data out.
// A graph: { inputs: [...], nodes: [{ op, args: [number of a node | [constant]], number }], loss, cuts: [...] }.

const isNode = (arg) => typeof arg === "number";

// JSON has no infinities: they come as strings. uses[n]: every [operation, position] that takes node n, the latest first.
function prepare(graph) {
  const nodes = graph.nodes.map((node) => ({ ...node, args: node.args.map((a) => (isNode(a) ? a : [Number(a[0])])) }));
  const uses = nodes.map(() => []);
  nodes.forEach((node, m) => {
    node.args.forEach((a, i) => {
      if (isNode(a)) uses[a].push([m, i]);
    });
  });
  for (const all of uses) all.sort(([m, i], [other, j]) => other - m || i - j);
  return { ...graph, nodes, uses };
}

function forward(graph, inputs) {
  const values = new Float64Array(graph.nodes.length);
  graph.nodes.forEach((node, n) => {
    values[n] = node.op === "input" ? inputs[n] : OPS[node.op].f(...node.args.map((a) => (isNode(a) ? values[a] : a[0])));
  });
  return values;
}

// Which nodes autograd would give a gradient (requires), and which would have one if cuts were leaves (reaches).
function carriers(graph, cuts) {
  const requires = new Uint8Array(graph.nodes.length), reaches = new Uint8Array(graph.nodes.length);
  graph.nodes.forEach((node, n) => {
    if (node.number) return;
    const leads = (mark) => node.args.some((a, i) => isNode(a) && mark[a] && node.slopes[i]);
    requires[n] = cuts.has(n) ? 0 : node.op === "input" || leads(requires) ? 1 : 0;
    reaches[n] = node.op === "input" || cuts.has(n) || leads(reaches) ? 1 : 0;
  });
  return { requires, reaches };
}

// flows[n][i]: what node n sends to its i-th argument; locals[n][i]: the local derivative. null where there is no way.
// gradients[n]: the sum of what arrived, the latest use first, as in autograd. At a cut it arrives and is lost.
function backward(graph, values, cuts, incoming, marks) {
  const gradients = new Array(graph.nodes.length).fill(null);
  const flows = graph.nodes.map(() => null);
  gradients[graph.loss] = incoming;
  for (let n = graph.loss; n >= 0; n--) {
    const node = graph.nodes[n];
    if (gradients[n] === null || node.op === "input" || cuts.has(n)) continue;
    const given = slopes(node, values, n, gradients[n]);
    flows[n] = node.args.map((a, i) => {
      if (!isNode(a) || !marks.reaches[a] || !node.slopes[i]) return null;
      gradients[a] = gradients[a] === null ? given[i] : gradients[a] + given[i];
      return given[i];
    });
  }
  return { gradients, flows };
}

function slopes(node, values, n, incoming) {
  return OPS[node.op].d(incoming, values[n], ...node.args.map((a) => (isNode(a) ? values[a] : a[0])));
}

function localDerivatives(graph, state, n) {
  return slopes(graph.nodes[n], state.values, n, 1);
}

// `marks`: the carriers, which depend on nothing but the cuts.
function evaluate(graph, inputs, cuts = new Set(graph.cuts), incoming = 1, marks = carriers(graph, cuts)) {
  const values = forward(graph, inputs);
  return { values, cuts, incoming, inputs, ...marks, ...backward(graph, values, cuts, incoming, marks) };
}

// What arrives at input `at` less than it would without the cut at `node`.
function lostAt(graph, state, node, at) {
  const open = new Set(state.cuts);
  open.delete(node);
  const without = evaluate(graph, state.inputs, open, state.incoming);
  return (without.gradients[at] ?? 0) - (state.gradients[at] ?? 0);
}
