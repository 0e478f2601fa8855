// Charts are drawn when they come into view, and the library of charts is read then: no page waits for it.
const charts = (() => {
  // What is drawn in the colour of the text, whichever that is: safety_subspaces.artefacts.palette.INK.
  const INK = "#1b1f24";
  // An A4 page between its margins, in pixels of a screen.
  const PAPER = { width: 690, height: 980 };
  const every = [...document.querySelectorAll(".chart")];
  const drawn = () => every.filter((chart) => chart.dataset.drawn);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(hover: none)").matches;

  const library = () => {
    if (!window.Plotly) {
      const script = document.createElement("script");
      script.textContent = document.getElementById("plotly-js").textContent;
      document.head.append(script);
    }
    return window.Plotly;
  };
  const source = (chart) => document.getElementById(chart.dataset.figure).textContent;

  const themed = (layout) => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    layout.font = { ...layout.font, color: colour("--ink") };
    layout.hoverlabel = { bgcolor: colour("--wash"), bordercolor: colour("--line"), font: { color: colour("--ink") } };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      Object.assign(layout[axis], { gridcolor: colour("--grid"), linecolor: colour("--line"), tickcolor: colour("--line") });
    }
    return layout;
  };
  const chosen = (chart, data) => {
    const select = chart.closest("section")?.querySelector("select.choice");
    for (const trace of select ? data : []) {
      const value = trace.meta?.[select.dataset.name];
      if (value !== undefined) trace.visible = value === Number(select.value);
    }
    return data;
  };
  const figure = (chart, size) => {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    const { data, layout } = JSON.parse(source(chart).replaceAll(INK, ink));
    // A narrow screen breaks the legend into more lines: give them room that is not the chart's.
    const room = (size?.width ?? chart.clientWidth) < 520 ? 110 : 0;
    const height = Math.min(layout.height + room, size?.height ?? Infinity);
    const shape = size ? { width: size.width, autosize: false } : { autosize: true };
    const config = { responsive: !size, displaylogo: false, displayModeBar: false, showSendToCloud: false };
    return [chosen(chart, data), { ...themed(layout), ...shape, height, dragmode: touch ? false : "zoom" }, config];
  };
  const draw = (chart, size) =>
    library().react(chart, ...figure(chart, size)).then(() => { chart.dataset.drawn = "true"; });

  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "300px 0px" });
  // After the first frame: the text stands before the library is read.
  requestAnimationFrame(() => setTimeout(() => every.forEach((chart) => near.observe(chart))));

  dark.addEventListener("change", () => drawn().forEach((chart) => draw(chart)));
  for (const select of document.querySelectorAll("select.choice")) {
    const section = document.getElementById(select.dataset.section);
    select.addEventListener("change", () => drawn().filter((chart) => section.contains(chart)).forEach((chart) => draw(chart)));
  }
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    for (const chart of every) draw(chart, PAPER);
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    for (const chart of every) {
      delete chart.dataset.drawn;
      near.observe(chart);
    }
  });
  return { every, figure, library, source };
})();
