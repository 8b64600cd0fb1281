"use strict";
// Draws the charts of the page from the JSON in #data. All texts are set as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const colours = ["#2f7ed8", "#d9622b", "#2a9d6f", "#a04bc0", "#c2a01b", "#d13a6a", "#4aa3b5", "#7a8495"];
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();

  // One column of steps for all curves of a chart: a curve has null where it has no value.
  const aligned = (curves) => {
    const steps = [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
    const place = new Map(steps.map((step, i) => [step, i]));
    const columns = curves.map((curve) => {
      const column = new Array(steps.length).fill(null);
      curve.steps.forEach((step, i) => { column[place.get(step)] = curve.values[i]; });
      return column;
    });
    return [steps, ...columns];
  };

  const resumes = {
    hooks: {
      draw: [(plot) => {
        const { ctx, bbox } = plot;
        ctx.save();
        ctx.strokeStyle = colour("--dim");
        ctx.setLineDash([4, 4]);
        for (const step of data.resumes) {
          const x = plot.valToPos(step, "x", true);
          if (x < bbox.left || x > bbox.left + bbox.width) continue;
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
        }
        ctx.restore();
      }],
    },
  };

  const number = (value) => (value == null ? "" : String(Number(value.toPrecision(5))));
  const plots = [];

  const draw = (chart) => {
    const box = document.createElement("div");
    box.className = "chart";
    const title = document.createElement("h3");
    title.textContent = chart.title;
    box.append(title);
    document.getElementById("charts").append(box);
    const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const series = chart.curves.map((curve, i) => ({
      label: curve.name,
      stroke: colours[i % colours.length],
      width: 1.5,
      spanGaps: true,
      points: { show: curve.steps.length < 60 },
      value: (_, value) => number(value),
    }));
    const options = {
      width: box.clientWidth - 24,
      height: 240,
      cursor: { sync: { key: "steps" } },
      scales: { x: { time: false } },
      axes: [axis, { ...axis, size: 64, values: (_, values) => values.map(number) }],
      series: [{ label: "step" }, ...series],
      plugins: [resumes],
    };
    plots.push([box, new uPlot(options, aligned(chart.curves), box)]);
    for (const curve of chart.curves.filter((one) => one.non_finite)) {
      const note = document.createElement("p");
      note.className = "note";
      note.textContent = `${curve.name}: ${curve.non_finite} values are NaN or infinite`;
      box.append(note);
    }
  };

  data.charts.forEach(draw);
  document.body.dataset.charts = String(plots.length);
  addEventListener("resize", () => {
    for (const [box, plot] of plots) plot.setSize({ width: box.clientWidth - 24, height: 240 });
  });

  if (data.watched) {
    setInterval(async () => {
      try {
        const version = await (await fetch("version")).text();
        if (version !== data.watched) location.reload();
      } catch { /* the command that serves the page has ended */ }
    }, 3000);
  }
})();
