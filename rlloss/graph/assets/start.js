// Start every figure of the page, and the language switch.

document.querySelectorAll("script.rl-data").forEach((script, index) => {
  const root = element("section", {});
  script.after(root);
  figures.push(new Figure(root, JSON.parse(script.textContent), index));
});

const switcher = document.querySelector(".rl-language");

function setLanguage(index) {
  language = index;
  document.documentElement.dataset.language = LANGUAGES[index];
  if (switcher) {
    switcher.textContent = index ? "English" : "中文";
    switcher.lang = LANGUAGES[1 - index];
  }
  for (const figure of figures) {
    figure.root.lang = LANGUAGES[index];
    speak(figure.root);
    figure.update();
  }
}

switcher?.addEventListener("click", () => setLanguage(1 - language));
setLanguage(0);
window.rlloss = { figures, evaluate, OPS, exp, log, log1p, expm1, nextAfter };
