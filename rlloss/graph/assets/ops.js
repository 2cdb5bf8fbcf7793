// Every operation that a graph may hold: f, its value, and d, what flows back to each argument when g comes in. The
// products are in the order in which PyTorch's autograd writes them, so that equal bits there are equal bits here.
// rlloss/graph_ops.py holds the same table for PyTorch.

const half = (a, b, g) => (a === b ? g / 2 : g); // a tie of min or max gives each side half
const flat = () => []; // no derivative: comparisons, casts
const truth = (test) => ({ f: (...a) => (test(...a) ? 1 : 0), d: flat });
const sigmoid = (x) => 1 / (1 + exp(-x));
const sum = (a) => a.reduce((total, x) => total + x, 0);
const firstOnly = (pick) => ({
  f: (...a) => pick(...a),
  d: (g, y, ...a) => a.map((_, i) => (i === a.indexOf(y) ? g : 0)),
});
const shared = (pick) => ({
  f: (...a) => pick(...a),
  d: (g, y, ...a) => a.map((x) => (x === y ? g / a.filter((z) => z === y).length : 0)),
});

function power(x, n) {
  if (n === 2) return x * x;
  if (n === 3) return x * x * x;
  if (n === 0.5) return Math.sqrt(x);
  if (n === -0.5) return 1 / Math.sqrt(x);
  if (n === -1) return 1 / x;
  if (n === -2) return 1 / (x * x);
  return x ** n;
}

function powerSlopes(g, y, x, n) {
  const base = n === 0 ? 0 : g * (n * power(x, n - 1));
  return [base, x === 0 && n >= 0 ? 0 : g * (y * log(x))];
}

function logSumExp(...a) {
  const top = Math.max(...a);
  return Number.isFinite(top) ? top + log(sum(a.map((x) => exp(x - top)))) : top;
}

function clampSlopes(g, y, x, low, high) {
  return [x >= low && x <= high ? g : 0, low < high && x < low ? g : 0, low > high || x > high ? g : 0];
}

const OPS = {
  add: { f: (a, b) => a + b, d: (g) => [g, g] },
  sub: { f: (a, b) => a - b, d: (g) => [g, -g] },
  mul: { f: (a, b) => a * b, d: (g, y, a, b) => [g * b, g * a] },
  div: { f: (a, b) => a / b, d: (g, y, a, b) => [g / b, -g * (a / b / b)] },
  rdiv: { f: (x, c) => (1 / x) * c, d: (g, y, x, c) => [-(g * c) * (1 / x) * (1 / x), g * (1 / x)] },
  neg: { f: (a) => -a, d: (g) => [-g] },
  pow: { f: power, d: powerSlopes },
  exp: { f: exp, d: (g, y) => [g * y] },
  expm1: { f: expm1, d: (g, y) => [g * (y + 1)] },
  log: { f: log, d: (g, y, x) => [g / x] },
  log1p: { f: log1p, d: (g, y, x) => [g / (x + 1)] },
  sqrt: { f: Math.sqrt, d: (g, y) => [g / (2 * y)] },
  abs: { f: Math.abs, d: (g, y, x) => [g * Math.sign(x)] },
  sign: { f: (x) => Math.sign(x) + 0, d: () => [0] },
  sigmoid: { f: sigmoid, d: (g, y) => [g * (1 - y) * y] },
  logsigmoid: { f: (x) => Math.min(x, 0) - log1p(exp(-Math.abs(x))), d: (g, y, x) => [g * sigmoid(-x)] },
  softplus: {
    f: (x) => (x > 20 ? x : log1p(exp(x))),
    d: (g, y, x) => [x > 20 ? g : (g * exp(x)) / (exp(x) + 1)],
  },
  tanh: { f: Math.tanh, d: (g, y) => [g * (1 - y * y)] },
  relu: { f: (x) => (x > 0 || Number.isNaN(x) ? x : 0), d: (g, y) => [y > 0 ? g : 0] },
  clamp: { f: (x, low, high) => Math.min(Math.max(x, low), high), d: clampSlopes },
  clamp_min: { f: Math.max, d: (g, y, x, low) => [x >= low ? g : 0, x < low ? g : 0] },
  clamp_max: { f: Math.min, d: (g, y, x, high) => [x <= high ? g : 0, x > high ? g : 0] },
  minimum: { f: Math.min, d: (g, y, a, b) => [a > b ? 0 : half(a, b, g), b > a ? 0 : half(a, b, g)] },
  maximum: { f: Math.max, d: (g, y, a, b) => [a < b ? 0 : half(a, b, g), b < a ? 0 : half(a, b, g)] },
  where: { f: (c, a, b) => (c ? a : b), d: (g, y, c) => [null, c ? g : 0, c ? 0 : g] },
  gt: truth((a, b) => a > b),
  ge: truth((a, b) => a >= b),
  lt: truth((a, b) => a < b),
  le: truth((a, b) => a <= b),
  eq: truth((a, b) => a === b),
  ne: truth((a, b) => a !== b),
  and: truth((a, b) => a && b),
  or: truth((a, b) => a || b),
  not: truth((a) => !a),
  isfinite: truth(Number.isFinite),
  isnan: truth(Number.isNaN),
  number: { f: (x) => x, d: flat },
  nextafter: { f: nextAfter, d: flat },
  detach: { f: (x) => x, d: (g) => [g] },
  sum: { f: (...a) => sum(a), d: (g, y, ...a) => a.map(() => g) },
  mean: { f: (...a) => sum(a) / a.length, d: (g, y, ...a) => a.map(() => g / a.length) },
  amin: shared(Math.min),
  amax: shared(Math.max),
  min: firstOnly(Math.min),
  max: firstOnly(Math.max),
  logsumexp: { f: logSumExp, d: (g, y, ...a) => a.map((x) => g * exp(x - y)) },
};
