// exp, expm1, log and log1p to the last bit: computed with twice the digits, then rounded once. Where a ratio stands
// exactly on a clip bound, one bit decides whether the gradient is there or not; Math.exp may be off by that bit.
// A number is a pair, high + low. The high part is returned and the low part left in LOW: hundreds of pairs are made
// for one exp, and as arrays they would be garbage, whose collection takes longer than a frame.

const SPLITTER = 134217729; // 2^27 + 1
// ln 2 in three parts; the first ends in zeros, so that multiplying it by the exponent is exact
const LN2 = [0.6931471803691238, 1.9082149292705877e-10, -1.6465949582897082e-26];

let LOW = 0; // the low part of the pair returned last
let EXPONENT = 0; // of the last expPair

function twoSum(a, b) {
  const s = a + b, t = s - a;
  LOW = (a - (s - t)) + (b - t);
  return s;
}

function twoProduct(a, b) {
  const p = a * b;
  let c = SPLITTER * a;
  const ah = c - (c - a), al = a - ah;
  c = SPLITTER * b;
  const bh = c - (c - b), bl = b - bh;
  LOW = ((ah * bh - p) + ah * bl + al * bh) + al * bl;
  return p;
}

function pairSum(x, xLow, y, yLow) {
  const s = twoSum(x, y);
  return twoSum(s, LOW + xLow + yLow);
}

function pairProduct(x, xLow, y, yLow) {
  const p = twoProduct(x, y);
  return twoSum(p, LOW + x * yLow + xLow * y);
}

const RECIPROCALS = new Float64Array(25), RECIPROCALS_LOW = new Float64Array(25);
for (let n = 1; n < 25; n++) {
  const p = twoProduct(1 / n, n);
  RECIPROCALS[n] = 1 / n;
  RECIPROCALS_LOW[n] = ((1 - p) - LOW) / n;
}

// e^x = 2^EXPONENT * pair, with EXPONENT * ln 2 next to x
function expPair(x) {
  const k = Math.round(x / Math.LN2);
  let r = twoSum(x, -k * LN2[0]), rLow = LOW;
  const p = twoProduct(-k, LN2[1]);
  r = pairSum(r, rLow, p, LOW);
  r = pairSum(r, LOW, -k * LN2[2], 0);
  rLow = LOW;
  let sum = 1, sumLow = 0;
  for (let n = 24; n >= 1; n--) {
    const q = pairProduct(r, rLow, RECIPROCALS[n], RECIPROCALS_LOW[n]), t = pairProduct(q, LOW, sum, sumLow);
    sum = pairSum(1, 0, t, LOW);
    sumLow = LOW;
  }
  EXPONENT = k;
  return sum;
}

function scale(x, k) {
  const half = Math.trunc(k / 2);
  return x * 2 ** half * 2 ** (k - half);
}

function exp(x) {
  if (!(x > -745.2) || x > 709.8) return Math.exp(x);
  return scale(expPair(x), EXPONENT);
}

// How far the true e^x lies from exp(x), in units of the last place.
function expError(x) {
  const sum = expPair(x);
  return Math.abs(LOW) / Math.abs(nextAfter(sum, Infinity) - sum);
}

function expm1(x) {
  if (!(x > -37) || x > 709.7 || Math.abs(x) < 1e-10) return Math.expm1(x);
  const sum = expPair(x);
  return pairSum(scale(sum, EXPONENT), scale(LOW, EXPONENT), -1, 0);
}

// One Newton step from the platform's y = log m: log m = y + (m e^-y - 1) - ...
function newton(m, mLow, y) {
  const sum = expPair(-y), product = pairProduct(m, mLow, scale(sum, EXPONENT), scale(LOW, EXPONENT));
  const t = pairSum(product, LOW, -1, 0);
  return y + (t + (LOW - t * t / 2));
}

function log(x) {
  return x > 1e-300 && x < 1e300 ? newton(x, 0, Math.log(x)) : Math.log(x);
}

function log1p(x) {
  if (!(x > -1 && x < 1e300 && Math.abs(x) > 1e-10)) return Math.log1p(x);
  const m = twoSum(1, x);
  return newton(m, LOW, Math.log1p(x));
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
