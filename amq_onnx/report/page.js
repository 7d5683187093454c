"use strict";

// Shows the plan of the point of the frontier that is looked at; `drawing` is drawing.js's.
(() => {
  const { figures, draw, read } = drawing;
  const plans = read("plans");
  const written = plans.points.length - 1;
  const count = (number) => number.toLocaleString("en-US");

  const element = (kind, name, text) => {
    const made = document.createElement(kind);
    made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const widest = Math.max(...plans.options.map(([mean]) => mean));

  const siteRow = (site, code, own) => {
    const [mean, text] = plans.options[code];
    const row = element("div", code === own ? "site" : "site differs");
    const label = element("span", "name", plans.labels[site]);
    label.title = plans.sites[site];
    const bar = element("div", "bar");
    const filled = element("i", "");
    filled.style.width = `${(100 * mean) / widest}%`;
    bar.append(filled);
    const bits = element("span", "bits", code === own ? text : `${text} (file: ${plans.options[own][1]})`);
    bits.title = bits.textContent;
    row.append(label, bar, bits);
    return row;
  };

  const show = (number) => {
    const [bytes, perturbation, bits, codes] = plans.points[number];
    const own = plans.points[written][3];
    const share = ((100 * bytes) / plans.float).toFixed(1);
    const differing = codes.filter((code, site) => code !== own[site]).length;
    const compared = number === written ? "the file that was written"
      : differing ? `${differing} of ${codes.length} widths differ from the file's` : "the same widths as the file";
    document.getElementById("plan-title").textContent = `${count(bytes)} bytes, ${share} % of float`;
    document.getElementById("plan-facts").textContent =
      `ΣΩ ${perturbation.toPrecision(3)}, ${bits.toFixed(2)} bits a weight; ${compared}`;
    document.getElementById("plan-sites").replaceChildren(
      ...codes.map((code, site) => siteRow(site, code, own[site])));
    document.getElementById("plan-command").replaceChildren(
      ...[...plans.command, "--size", `${bytes}B`].flatMap((word, place) => {
        const shown = element("span", "", word);
        return place ? [" ", shown] : [shown];
      }));
    const [line, ring, star] = figures.frontier.data;
    const [from, place] = number === written ? [star, 0] : [line, number];
    [ring.x, ring.y] = [[from.x[place]], [from.y[place]]];
    draw("frontier");
  };

  const slider = document.getElementById("size");
  slider.max = written - 1;
  slider.addEventListener("input", () => show(Number(slider.value)));
  document.getElementById("frontier").on("plotly_click", ({ points: [point] }) => {
    const number = point.curveNumber === 0 ? point.pointIndex : written;
    if (number !== written) slider.value = number;
    show(number);
  });
  const below = plans.points.slice(0, -1).filter(([bytes]) => bytes <= plans.points[written][0]).length;
  slider.value = Math.max(0, below - 1);
  show(written);
})();
