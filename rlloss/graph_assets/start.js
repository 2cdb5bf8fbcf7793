// Start every figure of the page, and the language switch.

const figures = [...document.querySelectorAll("script.rl-data")].map((script, index) => {
  const root = element("section", {});
  script.after(root);
  return new Figure(root, JSON.parse(script.textContent), index);
});

const switcher = document.querySelector(".rl-language");

function setLanguage(index) {
  language = index;
  document.documentElement.dataset.language = LANGUAGES[index];
  if (switcher) switcher.textContent = index ? "English" : "中文";
  for (const figure of figures) {
    speak(figure.root);
    figure.update();
  }
}

switcher?.addEventListener("click", () => setLanguage(1 - language));
setLanguage(0);
window.rlloss = { figures, evaluate, OPS, exp, log, log1p, expm1, nextAfter };
