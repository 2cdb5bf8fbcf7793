// exp, expm1, log and log1p to the last bit: computed with twice the digits, then rounded once. Where a ratio stands
// exactly on a clip bound, one bit decides whether the gradient is there or not; Math.exp may be off by that bit.
// A number is a pair [high, low] whose sum it is.

const SPLITTER = 134217729; // 2^27 + 1
// ln 2 in three parts; the first ends in zeros, so that multiplying it by the exponent is exact
const LN2 = [0.6931471803691238, 1.9082149292705877e-10, -1.6465949582897082e-26];

function twoSum(a, b) {
  const s = a + b, t = s - a;
  return [s, (a - (s - t)) + (b - t)];
}

function twoProduct(a, b) {
  const p = a * b;
  let c = SPLITTER * a, ah = c - (c - a);
  const al = a - ah;
  c = SPLITTER * b;
  const bh = c - (c - b), bl = b - bh;
  return [p, ((ah * bh - p) + ah * bl + al * bh) + al * bl];
}

function pairSum(x, y) {
  const [s, e] = twoSum(x[0], y[0]);
  return twoSum(s, e + x[1] + y[1]);
}

function pairProduct(x, y) {
  const [p, e] = twoProduct(x[0], y[0]);
  return twoSum(p, e + x[0] * y[1] + x[1] * y[0]);
}

const RECIPROCALS = Array.from({ length: 25 }, (_, n) => {
  const high = 1 / n, [p, e] = twoProduct(high, n);
  return n ? [high, ((1 - p) - e) / n] : null;
});

// e^x = 2^k * pair, with k * ln 2 next to x
function expPair(x) {
  const k = Math.round(x / Math.LN2);
  let r = twoSum(x, -k * LN2[0]);
  r = pairSum(r, twoProduct(-k, LN2[1]));
  r = pairSum(r, [-k * LN2[2], 0]);
  let sum = [1, 0];
  for (let n = 24; n >= 1; n--) sum = pairSum([1, 0], pairProduct(pairProduct(r, RECIPROCALS[n]), sum));
  return [k, sum];
}

function scale(x, k) {
  const half = Math.trunc(k / 2);
  return x * 2 ** half * 2 ** (k - half);
}

function exp(x) {
  if (!(x > -745.2) || x > 709.8) return Math.exp(x);
  const [k, sum] = expPair(x);
  return scale(sum[0], k);
}

// How far the true e^x lies from exp(x), in units of the last place.
function expError(x) {
  const [, sum] = expPair(x);
  return Math.abs(sum[1]) / Math.abs(nextAfter(sum[0], Infinity) - sum[0]);
}

function expm1(x) {
  if (!(x > -37) || x > 709.7 || Math.abs(x) < 1e-10) return Math.expm1(x);
  const [k, sum] = expPair(x);
  return pairSum([scale(sum[0], k), scale(sum[1], k)], [-1, 0])[0];
}

// One Newton step from the platform's y = log m: log m = y + (m e^-y - 1) - ...
function newton(m, y) {
  const [k, sum] = expPair(-y);
  const t = pairSum(pairProduct(m, [scale(sum[0], k), scale(sum[1], k)]), [-1, 0]);
  return y + (t[0] + (t[1] - t[0] * t[0] / 2));
}

function log(x) {
  return x > 1e-300 && x < 1e300 ? newton([x, 0], Math.log(x)) : Math.log(x);
}

function log1p(x) {
  return x > -1 && x < 1e300 && Math.abs(x) > 1e-10 ? newton(twoSum(1, x), Math.log1p(x)) : Math.log1p(x);
}

const BITS = new DataView(new ArrayBuffer(8));

// The floating-point number next to x on the way to `to`.
function nextAfter(x, to) {
  if (Number.isNaN(x) || Number.isNaN(to) || x === to) return x === to ? to : NaN;
  if (x === 0) return Math.sign(to) * Number.MIN_VALUE;
  BITS.setFloat64(0, x);
  const away = (to > x) === (x > 0);
  BITS.setBigInt64(0, BITS.getBigInt64(0) + (away ? 1n : -1n));
  return BITS.getFloat64(0);
}
