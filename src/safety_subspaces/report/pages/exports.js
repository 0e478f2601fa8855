// What is shown can be taken away: charts as SVG, PNG and CSV, tables as CSV, LaTeX and Markdown. Nothing is sent.
(() => {
  const SIZE = { width: 900, scale: 2 };
  const slug = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 80) || "table";
  const study = slug(document.querySelector("h1").textContent);

  const save = (name, content, type) => {
    const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
    Object.assign(document.createElement("a"), { href: url, download: `${study}-${name}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };

  // As safety_subspaces.artefacts.text.as_cell: a spreadsheet must take no text for a formula.
  const FORMULA = /^'*[=+\-@\t\r\n＝＋－＠][\s\S]/;
  const NUMBER = /^([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity|nan))$/i;
  const cell = (value) => {
    const text = String(value ?? "");
    const safe = FORMULA.test(text) && !NUMBER.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";

  const LATEX = {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "<": "$<$",
    ">": "$>$", "|": "$|$",
  };
  const latexText = (text) =>
    text.replace(/\s+/g, " ").replace(/[\\~^±<>|]|[&%$#_{}]/g, (found) => LATEX[found] ?? `\\${found}`);
  // Numbers are set in mathematics, where their sign is a minus and no hyphen: each end of an interval too.
  const NUMERAL = /(?<![\w.])[+-]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?(?:±\d[\d.]*)?(?![\w.])/g;
  const latexNumeral = (text) =>
    `$${text.replaceAll(",", "{,}").replace("±", " \\pm ").replace(/e([+-]?\d+)/, (_, power) => ` \\times 10^{${Number(power)}}`)}$`;
  const latexNumber = (text) => {
    if (text === "-") return "--";
    const words = text.split(NUMERAL).map(latexText), numerals = text.match(NUMERAL) ?? [];
    return words.map((each, place) => each + (place < numerals.length ? latexNumeral(numerals[place]) : "")).join("");
  };
  const latex = ([head, ...rows], texts, title) => [
    "% \\usepackage{booktabs}", "\\begin{table}", "\\centering", `\\caption{${latexText(title)}}`,
    `\\begin{tabular}{${head.map((_, place) => (place < texts ? "l" : "r")).join("")}}`, "\\toprule",
    `${head.map(latexText).join(" & ")} \\\\`, "\\midrule",
    ...rows.map((row) => `${row.map((text, place) => (place < texts ? latexText : latexNumber)(text)).join(" & ")} \\\\`),
    "\\bottomrule", "\\end{tabular}", "\\end{table}", "",
  ].join("\n");

  const markdownText = (text) => text.replace(/\s+/g, " ").replace(/[\\`*_[\]<>|!~&]/g, "\\$&");
  const markdown = ([head, ...rows], texts) =>
    [head, head.map((_, place) => (place < texts ? ":--" : "--:")), ...rows]
      .map((row, line) => `| ${row.map((text) => (line === 1 ? text : markdownText(text))).join(" | ")} |`).join("\n") + "\n";

  const shown = (table) => [...table.rows].map((row) => [...row.cells].map((each) => each.textContent.trim()));
  // All digits where the cell has them; the error of a number in a column of its own.
  const exact = (table) => {
    const [head, ...rows] = [...table.rows].map((row) => [...row.cells]);
    const has = head.map((_, place) => rows.some((row) => row[place].dataset.error !== undefined));
    const wide = (row, first, second) => row.flatMap((each, place) => (has[place] ? [first(each), second(each)] : [first(each)]));
    const name = (each) => each.textContent.trim();
    return [
      wide(head, name, (each) => `${name(each)} ±`),
      ...rows.map((row) => wide(row, (each) => each.dataset.value ?? name(each), (each) => each.dataset.error ?? "")),
    ];
  };

  // Plotly's JSON has numbers as base64.
  const KINDS = {
    f8: Float64Array, f4: Float32Array, i4: Int32Array, u4: Uint32Array, i2: Int16Array, u2: Uint16Array, i1: Int8Array,
    u1: Uint8Array,
  };
  const values = (given) => {
    if (given?.bdata === undefined) return given ?? [];
    const bytes = Uint8Array.from(atob(given.bdata), (each) => each.charCodeAt(0));
    const flat = [...new KINDS[given.dtype](bytes.buffer)];
    const [, width] = String(given.shape ?? "").split(",").map(Number);
    return width ? Array.from({ length: flat.length / width }, (_, row) => flat.slice(row * width, (row + 1) * width)) : flat;
  };
  // What make_chart has done to texts, so that plotly shows them as they are.
  const plain = (text) =>
    typeof text === "string" ? text.replaceAll("%&#123;", "%{").replaceAll("&lt;", "<").replaceAll("&amp;", "&") : text;
  const own = (layout, axis, key) => layout[key + "axis" + axis.slice(1)];
  const titled = (layout, axis, key) => {
    const same = own(layout, axis, key)?.matches;
    const found = [axis, ...(same ? [same] : [])];
    // Panels under one another share what stands under the last one of them.
    const many = Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name)).length;
    for (let number = Number(axis.slice(1) || 1) + 1; key === "x" && number <= many; number++) found.push(key + number);
    return plain(found.map((each) => own(layout, each, key)?.title?.text).find((title) => title) ?? "");
  };
  // A panel by its title, which stands at its upper end; by its number where it has none.
  const panel = (layout, axis, number) => {
    const top = own(layout, axis, "y")?.domain?.[1];
    const isTitle = (each) => each.xref === "paper" && each.yref === "paper" && Math.abs(each.y - top) < 1e-6;
    return plain((layout.annotations ?? []).find(isTitle)?.text ?? "") || number;
  };
  const COLUMNS = [
    "panel", "series", "x_name", "x", "x_error_up", "x_error_down", "y_name", "y", "y_error_up", "y_error_down", "value",
  ];
  const errors = (bars) => {
    const up = values(bars?.array);
    return [up, bars?.arrayminus ? values(bars.arrayminus) : up];
  };
  const data = ({ data: traces, layout }) => {
    // What is told apart by a choice above the chart, or otherwise, stands in columns of its own.
    const told = [...new Set(traces.flatMap((trace) => Object.keys(trace.meta ?? {})))];
    const rows = [[...COLUMNS, ...told]];
    const panels = [...new Set(traces.map((trace) => trace.yaxis ?? "y"))];
    // A line that says nothing when it is pointed at is left out where it has no name: the edge of a band.
    for (const trace of traces.filter((each) => each.hoverinfo !== "skip" || each.name)) {
      const [x, y] = [trace.x, trace.y].map(values);
      const [xaxis, yaxis] = [trace.xaxis ?? "x", trace.yaxis ?? "y"];
      const axes = [titled(layout, xaxis, "x"), titled(layout, yaxis, "y")];
      const first = [panel(layout, yaxis, panels.indexOf(yaxis) + 1), plain(trace.name ?? "")];
      const last = told.map((name) => trace.meta?.[name]);
      if (trace.type === "heatmap") {
        values(trace.z).forEach((line, row) => line.forEach((value, column) => rows.push(
          [...first, axes[0], plain(x[column]), "", "", axes[1], plain(y[row]), "", "", value, ...last])));
        continue;
      }
      const [across, up] = [trace.error_x, trace.error_y].map(errors);
      const texts = Array.isArray(trace.text) ? trace.text : [];
      for (let at = 0; at < x.length; at++) {
        if (x[at] === null && y[at] === null) continue;
        rows.push([
          ...first, axes[0], plain(x[at]), ...across.map((each) => each[at]), axes[1], plain(y[at]),
          ...up.map((each) => each[at]), plain(texts[at] ?? ""), ...last,
        ]);
      }
    }
    // Where a model stands, as a line across its panel.
    for (const { name, yref, y0 } of (layout.shapes ?? []).filter((each) => each.name)) {
      const first = [panel(layout, yref, panels.indexOf(yref) + 1), plain(name)];
      rows.push([...first, "", "", "", "", titled(layout, yref, "y"), y0, "", "", "", ...told.map(() => "")]);
    }
    return rows;
  };

  const image = (chart, format) => {
    // On white, whatever the screen's colours are.
    document.documentElement.classList.add("printing");
    const [traces, layout] = charts.figure(chart, SIZE);
    document.documentElement.classList.remove("printing");
    return charts.library().toImage({ data: traces, layout: { ...layout, paper_bgcolor: "#fff" } },
      { format, width: SIZE.width, height: layout.height, scale: format === "png" ? SIZE.scale : 1 });
  };
  const blob = (url) => {
    const [head, body] = [url.slice(0, url.indexOf(",")), url.slice(url.indexOf(",") + 1)];
    const bytes = head.endsWith("base64")
      ? Uint8Array.from(atob(body), (each) => each.charCodeAt(0)) : decodeURIComponent(body);
    return new Blob([bytes], { type: head.slice(5).split(";")[0] });
  };

  const toolbar = (what, actions) => {
    const bar = Object.assign(document.createElement("div"), { className: "export" });
    for (const [name, action] of Object.entries(actions)) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
      button.setAttribute("aria-label", `Save ${what} as ${name}`);
      button.addEventListener("click", action);
      bar.append(button);
    }
    return bar;
  };
  for (const chart of charts.every) {
    const name = slug(chart.id.replace(/^chart-/, ""));
    chart.after(toolbar(chart.getAttribute("aria-label"), {
      SVG: () => image(chart, "svg").then((url) => save(`${name}.svg`, blob(url))),
      PNG: () => image(chart, "png").then((url) => save(`${name}.png`, blob(url))),
      CSV: () => save(`${name}.csv`, csv(data(JSON.parse(charts.source(chart)))), "text/csv"),
    }));
  }
  for (const table of document.querySelectorAll("table")) {
    const title = table.parentElement.getAttribute("aria-label");
    const name = slug(`${table.closest("section").id} ${title}`);
    const texts = Number(table.dataset.textColumns);
    table.parentElement.before(toolbar(title, {
      CSV: () => save(`${name}.csv`, csv(exact(table)), "text/csv"),
      LaTeX: () => save(`${name}.tex`, latex(shown(table), texts, title), "text/x-tex"),
      Markdown: () => save(`${name}.md`, markdown(shown(table), texts), "text/markdown"),
    }));
  }
})();
