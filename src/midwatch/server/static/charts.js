// Draw the figures of the page with uPlot. The same numbers stand in a table below.
"use strict";
(async () => {
  const charts = document.getElementById("charts");
  const answer = await fetch(charts.dataset.figures);
  if (!answer.ok) { return; }
  const figures = await answer.json();
  const days = figures.days.map((day) => Date.parse(day) / 1000);
  const units = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]];
  const duration = (seconds) => {
    if (seconds == null) { return "–"; }
    const [size, name] = units.find(([one]) => seconds >= one) || [1, "s"];
    return `${+(seconds / size).toFixed(seconds / size < 10 ? 1 : 0)}${name}`;
  };
  const dollars = (value) => (value == null ? "–" : `$${value.toFixed(2)}`);
  const count = (value) => (value == null ? "–" : `${value}`);
  const drawn = [];

  function draw(id, series, format, bars) {
    const part = document.getElementById(id);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") } };
    const options = {
      width: part.clientWidth, height: 220,
      tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "UTC"),
      scales: { y: { range: (self, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [{ ...axis, values: "{YYYY}-{MM}-{DD}", space: 90 }, { ...axis, size: 64, values: (self, all) => all.map(format) }],
      series: [
        { value: "{YYYY}-{MM}-{DD}" },
        ...series.map(([label], at) => ({
          label, value: (self, value) => format(value), stroke: colour(`series-${at + 1}`), width: 2, spanGaps: true,
          dash: [[], [6, 4], [2, 3]][at], points: { show: true, size: 5 },
          ...(bars ? { paths: uPlot.paths.bars({ size: [0.7, 40] }), fill: colour("series-1"), width: 0, points: { show: false } } : {}),
        })),
      ],
    };
    part.replaceChildren();
    drawn.push(new uPlot(options, [days, ...series.map(([, values]) => values)], part));
  }

  function drawAll() {
    drawn.splice(0).forEach((one) => one.destroy());
    draw("times", [["detect", figures.seconds_to_detect], ["diagnose", figures.seconds_to_diagnose], ["resolve", figures.seconds_to_resolve]], duration, false);
    draw("spend", [["spend", figures.cost_usd]], dollars, true);
    draw("opened", [["tickets", figures.opened]], count, true);
  }
  drawAll();
  let timer = 0, width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) { width = innerWidth; clearTimeout(timer); timer = setTimeout(drawAll, 150); }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
