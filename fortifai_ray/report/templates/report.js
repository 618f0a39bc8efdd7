const scheme = matchMedia("(prefers-color-scheme: dark)");

function config() {
  const style = getComputedStyle(document.documentElement);
  const [text, quiet, line] = ["--text", "--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
  return {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { labelColor: quiet, titleColor: text, gridColor: line, domainColor: quiet, tickColor: quiet, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 },
    legend: { labelColor: text, labelFontSize: 12 },
  };
}

async function draw(holders) {
  const options = {
    // The interpreter keeps Vega from compiling expressions, which the page's content security policy forbids.
    ast: true,
    config: config(),
    renderer: "svg",
    tooltip: { theme: scheme.matches ? "dark" : "light" },
    actions: { export: true, source: false, compiled: false, editor: false },
  };
  for (const holder of holders) {
    const spec = JSON.parse(holder.querySelector("script").textContent);
    let stage = holder.querySelector("div");
    if (!stage) stage = holder.appendChild(document.createElement("div"));
    // Legends are laid out for half a page of a desktop: on a telephone they have fewer columns.
    for (const { encoding } of holder.clientWidth < 480 ? spec.layer ?? [] : []) {
      for (const { legend } of [encoding?.color, encoding?.shape].filter(Boolean)) {
        if (legend?.columns) legend.columns = Math.max(1, Math.floor((legend.columns * holder.clientWidth) / 520));
      }
    }
    try {
      await window.vegaEmbed(stage, spec, options);
    } catch (error) {
      stage.className = "chart-error";
      stage.textContent = `This chart could not be drawn: ${error.message}`;
      console.error(error);
    }
  }
}

// A folded chart has no width yet: it is drawn when it is unfolded.
async function drawOpen() {
  await draw([...document.querySelectorAll(".chart")].filter((holder) => !holder.closest("details:not([open])")));
  document.documentElement.dataset.charts = "drawn";
}

for (const fold of document.querySelectorAll("details")) {
  fold.addEventListener("toggle", () => {
    if (fold.open) draw([...fold.querySelectorAll(".chart")].filter((holder) => !holder.querySelector("div")));
  });
}
scheme.addEventListener("change", () => {
  document.querySelectorAll("details:not([open]) .chart > div").forEach((stage) => stage.remove());
  drawOpen();
});
drawOpen();
