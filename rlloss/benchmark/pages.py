"""How long a slider's move takes on a page of ``rlloss graph``."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

GRAPH_WIDTHS = (1280, 390)  # pixels: a laptop, a telephone
MOVES = 300  # of the sliders in turn, all over their ranges, per page and round
SETTLE_MS = 1000  # after loading, before anybody could have found the slider
DRAG = """async (moves) => {
  const ranges = [...document.querySelectorAll("input[type=range]")], times = [];
  for (let i = 0; i < moves; i++) {
    await new Promise(requestAnimationFrame); // as a pointer's moves come: one a frame
    const range = ranges[i % ranges.length], low = Number(range.min), high = Number(range.max);
    range.value = low + ((high - low) * ((i * 61) % moves)) / moves;
    const start = performance.now();
    range.dispatchEvent(new Event("input", { bubbles: true }));
    document.documentElement.getBoundingClientRect(); // or style and layout would be left for later
    times.push(performance.now() - start);
  }
  return times;
}"""


def benchmark_graph(rounds: int) -> pd.DataFrame:
    """Milliseconds that a slider's move takes in Chromium, on pages of ``rlloss graph``: a row per page.

    From the move to the end of scripts, style and layout, as a browser does them once a frame; at 60 frames a second
    there are 16.7 ms for it. The zoo's losses are ranked by their operations, and the largest are taken.
    Raises: ConfigError where Chromium or playwright is missing.
    """
    from rlloss.graph.browser import chromium
    from rlloss.graph.graph import trace
    from rlloss.graph.page import page
    from rlloss.losses.formulation import ZOO

    zoo = sorted((trace(name) for name in ZOO), key=lambda graph: -len(graph.nodes))
    subjects = [(trace("ppo_clip"), trace("reinforce")), *((graph,) for graph in zoo[:2])]
    rows = []
    total = len(subjects) * len(GRAPH_WIDTHS) * rounds
    with (
        chromium() as browser,
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=total, unit="page", disable=None) as bar,
    ):
        for graphs in subjects:
            name = " and ".join(graph.title for graph in graphs)
            bar.set_postfix_str(name)
            path = Path(folder) / "page.html"
            path.write_text(page(graphs), encoding="utf-8")
            for width in GRAPH_WIDTHS:
                times: list[float] = []
                for _ in range(rounds):
                    tab = browser.new_page(viewport={"width": width, "height": 900})
                    tab.goto(path.as_uri())
                    tab.wait_for_timeout(SETTLE_MS)
                    times += tab.evaluate(DRAG, MOVES)
                    tab.close()
                    bar.update()
                low, middle, high, top = np.quantile(times, [0, 0.5, 0.95, 1])
                rows.append(
                    {
                        "page": name,
                        "numbers": sum(len(graph.nodes) for graph in graphs),
                        "window, px": width,
                        "KB": round(path.stat().st_size / 1000),
                        "moves": len(times),
                        "ms, median": round(middle, 1),
                        "lowest": round(low, 1),
                        "95th percentile": round(high, 1),
                        "highest": round(top, 1),
                        "moves over 16 ms": int(np.sum(np.array(times) > 16)),
                    }
                )
    return pd.DataFrame(rows)
