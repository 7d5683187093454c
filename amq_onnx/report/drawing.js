"use strict";

// Draws the figures in the colours of the page, and again where these change.
const drawing = (() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // A finger on a figure scrolls the page.
  const touch = matchMedia("(pointer: coarse)").matches;
  const settings = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    // No button that leads away.
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
  };

  const coloured = (value, style) => {
    if (typeof value === "string") {
      return value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) return value.map((entry) => coloured(entry, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, coloured(entry, style)]));
  };

  const draw = (id) => {
    const { data, layout } = coloured(figures[id], getComputedStyle(document.documentElement));
    return Plotly.react(id, data, touch ? { ...layout, dragmode: false } : layout, settings);
  };

  const all = () => Object.keys(figures).forEach(draw);
  all();
  dark.addEventListener("change", all);
  return { figures, draw, read };
})();
