// Every word on the page, in English and Chinese.

const WORDS = {
  graph: ["Graph", "计算图"],
  forward: ["Forward", "前向传播"],
  backward: ["Backward", "反向传播"],
  mode: ["Mode", "模式"],
  controls: ["Controls", "控制"],
  charts: ["Value and gradient of each loss as the ratio moves; the numbers stand below", "各损失的值与梯度随比值的变化;数值见下方"],
  back: ["Back", "后退"],
  play: ["Play", "播放"],
  pause: ["Pause", "暂停"],
  step: ["Step", "单步"],
  speed: ["Speed", "速度"],
  full: ["Every operation", "全部运算"],
  reset: ["Reset", "重置"],
  batch: ["Mean over N =", "平均样本数 N ="],
  ratio: ["Ratio to", "比值设为"],
  cut: ["cut", "截断"],
  passes: ["the gradient passes", "梯度通过"],
  lost: ["lost", "丢失"],
  value: ["value", "值"],
  gradient: ["gradient", "梯度"],
  gradientAt: ["gradient at", "梯度:"],
  sameBits: ["same bits", "逐位相同"],
  differBy: ["differ by", "相差"],
  valuesDiffer: ["values", "损失值"],
  noPath: ["none: no path", "无:没有路径"],
  loss: ["loss", "损失"],
  formula: ["Formula", "公式"],
  local: ["Local derivative", "局部导数"],
  incoming: ["Incoming gradient", "传入梯度"],
  outgoing: ["Outgoing: incoming × local", "传出 = 传入 × 局部导数 (链式法则)"],
  fanOut: ["Fan-out: contributions add up", "分支:各路贡献相加"],
  cutHere: ["Stop the gradient here", "在此截断梯度 (Stop-Gradient)"],
  cutHint: ["sg(u) = u forward, its derivative is 0 backward", "前向 sg(u) = u,反向导数为 0"],
  arrivesLost: ["arrives here and is lost", "到达此处并丢失"],
  lostAt: ["Lost by this cut at", "此截断所丢失的梯度,位于"],
  line: ["Written in", "源码"],
  table: ["All numbers as a table", "全部数值表"],
  node: ["Node", "节点"],
  choose: ["Hover over, tap or focus a node for its formula and numbers.", "将指针移到节点上,或点按、聚焦节点,即可查看公式与数值。"],
  arrives: ["arrives", "到达"],
  goesTo: ["goes to", "传给"],
  stepOf: ["Step {0} of {1}", "第 {0} 步,共 {1} 步"],
  against: ["as the ratio moves", "随比值变化"],
  clipped: ["clip bounds 1 ± ε", "截断边界 1 ± ε"],
  nearBound: ["No two numbers here have exactly this ratio: this is as near as they come.", "此处没有两个数的比值恰好等于它:这是最接近的。"],
  noGradient: ["carries no gradient", "不传梯度"],
  close: ["Close", "关闭"],
  keys: ["Keys: ← → step, space plays, G F B modes, S cuts at the focused node.", "按键:← → 单步,空格播放,G F B 切换模式,S 在所选节点截断。"],
};

const LANGUAGES = ["en", "zh"];
let language = 0;

function word(key, ...fill) {
  return fill.reduce((text, x, i) => text.replace(`{${i}}`, x), WORDS[key][language]);
}

// A number for people: a few significant digits and a real minus sign.
function show(x, digits = 4) {
  if (x === null || x === undefined) return "–";
  if (Number.isNaN(x)) return "nan";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  const text = x !== 0 && (Math.abs(x) < 1e-4 || Math.abs(x) >= 1e6) ? x.toExponential(digits - 2) : String(Number(x.toPrecision(digits)));
  return text.replace(/-/g, "−");
}

const exactly = (x) => (x === null ? "–" : String(x).replace(/-/g, "−"));
const bracket = (x, digits = 4) => (x < 0 ? `(${show(x, digits)})` : show(x, digits));
