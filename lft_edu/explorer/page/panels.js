// The panels: the text colored by KL, the logit lens, curves over depth, and the distortion of the projection.
// All text of models and users is set as textContent, never as HTML.

/** Create an element: make("button", { class: "x", onclick: f }, "text", child). */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const MAX_KL = 2; // nats, full red: one scale for all texts and students

/** The text as buttons; redder means larger KL(teacher ‖ student). One is a Tab stop; arrow keys move between them. */
class TextPanel {
  constructor(pick) {
    this.element = make("div", { class: "tokens", role: "group", "aria-label": "Tokens of the text; press to select" });
    this.pick = pick;
    this.element.addEventListener("keydown", (event) => this.step(event));
  }

  step(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = by && this.buttons[this.buttons.indexOf(document.activeElement) + by];
    if (!next) return;
    event.preventDefault();
    event.stopPropagation();
    for (const button of this.buttons) button.tabIndex = button === next ? 0 : -1;
    next.focus();
  }

  show(scene) {
    this.buttons = scene.tokens.map((token, t) => {
      const kl = scene.kl[t];
      const button = make(
        "button",
        { type: "button", title: `token ${t}: KL ${number(kl)} nats`, "data-token": t, onclick: () => this.pick(t) },
        brief(token, 40),
      );
      button.style.backgroundColor = `rgba(213, 94, 0, ${0.6 * Math.min(1, kl / MAX_KL)})`;
      return button;
    });
    this.element.replaceChildren(...this.buttons);
  }

  mark(selected, focus) {
    this.buttons.forEach((button, t) => {
      button.setAttribute("aria-pressed", selected.has(t));
      button.classList.toggle("focus", t === focus);
      button.tabIndex = t === focus ? 0 : -1;
    });
  }
}

/** The logit lens of teacher and student: the predicted next token at each depth. */
class LensPanel {
  constructor(go) {
    this.go = go;
    this.caption = make("p", { class: "caption" });
    this.body = make("tbody");
    this.head = make("tr");
    this.table = make("table", {}, make("thead", {}, this.head), this.body);
    this.element = make(
      "div",
      { class: "lens", tabindex: 0, role: "region", "aria-label": "Logit lens" },
      this.caption,
      this.table,
    );
  }

  show(scene, t) {
    this.caption.textContent = `Next token after “${brief(scene.tokens[t])}” (token ${t}), predicted at each depth`;
    this.head.replaceChildren(
      make("th", { scope: "col" }, "depth"),
      ...scene.paths.map((path) => make("th", { scope: "col" }, path.name)),
    );
    const depths = [...new Set(scene.paths.flatMap((path) => path.times.map((x) => x.toFixed(2))))]
      .map(Number)
      .sort((a, b) => a - b);
    this.rows = depths.map((depth) => {
      const cells = scene.paths.map((path) => {
        const s = path.depthIndex(depth + 0.005);
        return Math.abs(path.times[s] - depth) < 0.006 ? this.cell(path, s, t) : make("td", { class: "none" }, "");
      });
      return make(
        "tr",
        { "data-depth": depth, onclick: () => this.go(depth) },
        make("th", { scope: "row" }, number(depth, 4)),
        ...cells,
      );
    });
    this.body.replaceChildren(...this.rows);
    this.now = null;
  }

  cell(path, s, t) {
    const words = path.lens(s, t);
    const cell = make("td", {
      title: words.map(([word, share]) => `${word}  ${percent(share)}`).join("\n"),
      class: path.carried(s) ? "carried" : "",
    });
    words.slice(0, 3).forEach(([word, share], i) => {
      const shown = make(
        "span",
        { class: i ? "also" : "best" },
        make("bdi", {}, brief(word)),
        make("small", {}, ` ${percent(share)}`),
      );
      cell.append(shown, " ");
    });
    cell.style.setProperty("--share", `${Math.round(100 * words[0][1])}%`);
    return cell;
  }

  mark(depth) {
    const row = this.rows.findLast((row) => Number(row.dataset.depth) <= depth + 0.006);
    if (row === this.now) return;
    this.now?.classList.remove("now");
    row.classList.add("now");
    this.now = row;
    const { offsetTop: top, offsetHeight: height } = row,
      { scrollTop, clientHeight } = this.element;
    if (top < scrollTop + 60 || top + height > scrollTop + clientHeight)
      this.element.scrollTop = top - clientHeight / 2;
  }
}

/** Curves of one token over depth, with a line at the current depth. */
class CurvesPanel {
  constructor() {
    this.element = make("div", { class: "curves" });
  }

  show(scene, view, t) {
    const curves = (table) =>
      scene.paths.map((path, m) => ({
        name: path.name,
        color: COLORS[m],
        x: path.times,
        y: path.times.map((_, s) => path.value(path[table], s, t)),
      }));
    const apart = scene.shared.map((_, k) => scene.apart[k * scene.tokens.length + t]);
    let shown = scene.shownDistance(view, t);
    const raw = scene.views[view].kind === "PCA" && scene.settings.preparation === "raw";
    if (!raw) shown = shown.map((x) => (x * Math.max(...apart)) / Math.max(...shown, 1e-12));
    const distances = [
      { name: "true", color: INK, x: scene.shared, y: apart },
      {
        name: raw ? "projected" : "projected, scaled",
        color: "#767676",
        dash: "4 3",
        x: scene.shared,
        y: shown,
      },
    ];
    this.charts = [
      this.chart("norm of the state", scene.depth, curves("norms")),
      this.chart("lens: KL to the final prediction, nats", scene.depth, curves("lensKl")),
      this.chart("distance teacher – student", scene.depth, distances),
    ];
    this.element.replaceChildren(...this.charts.map(({ figure }) => figure));
  }

  chart(title, depth, series) {
    const [w, h, left, bottom, top] = [300, 160, 38, 22, 36];
    const high = Math.max(...series.flatMap(({ y }) => y), 1e-9);
    const x = (value) => left + (value / depth) * (w - left - 10),
      y = (value) => h - bottom - (value / high) * (h - bottom - top);
    const words = series.map(
      (one) =>
        `${one.name}: ${number(one.y[0])} at the start, at most ${number(Math.max(...one.y))}, ${number(one.y.at(-1))} at the end`,
    );
    const figure = draw("svg", {
      viewBox: `0 0 ${w} ${h}`,
      role: "img",
      "aria-label": `${title} by depth. ${words.join("; ")}`,
    });
    figure.append(draw("text", { x: left, y: 12, class: "title" }, title));
    figure.append(draw("path", { d: `M${left},${top}V${h - bottom}H${w - 10}`, fill: "none", stroke: "#999999" }));
    for (const value of [0, high])
      figure.append(draw("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, number(value, 2)));
    for (const value of [0, depth / 2, depth])
      figure.append(draw("text", { x: x(value), y: h - 8, "text-anchor": "middle" }, value));
    series.forEach((one, i) => {
      const d = one.x.map((value, k) => `${k ? "L" : "M"}${x(value).toFixed(1)},${y(one.y[k]).toFixed(1)}`).join("");
      figure.append(
        draw("path", { d, fill: "none", stroke: one.color, "stroke-width": 1.8, "stroke-dasharray": one.dash ?? "" }),
      );
      figure.append(draw("text", { x: left + i * 80, y: 27, fill: one.color }, brief(one.name, 28)));
    });
    const line = draw("line", { y1: top, y2: h - bottom, stroke: "#333333", "stroke-dasharray": "2 2" });
    figure.append(line);
    return { figure, line, x };
  }

  mark(depth) {
    for (const { line, x } of this.charts) {
      line.setAttribute("x1", x(depth));
      line.setAttribute("x2", x(depth));
    }
  }
}

/** Describe the distortion of the projection in words. */
function badge(scene, view) {
  const { kind, hidden, agreement, trust } = scene.views[view];
  const parts = [];
  if (hidden !== null)
    parts.push(`${percent(hidden)} of the squared distance teacher–student is outside this projection`);
  else parts.push("distances in a UMAP have no unit");
  if (agreement !== null) parts.push(`rank correlation of projected and true distances ${agreement.toFixed(2)}`);
  parts.push(`trustworthiness of neighbors ${trust.toFixed(2)}`);
  return `${kind}: ${parts.join(" · ")}`;
}
