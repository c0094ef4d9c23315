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
    for (const button of this.buttons) button.tabIndex = button === next ? 0 : -1;
    next.focus();
  }

  show(scene) {
    this.buttons = scene.tokens.map((token, t) => {
      const kl = scene.kl[t],
        lost = scene.students.map((path) => `${path.title} ${number(path.kl[t])}`).join(", ");
      const button = make(
        "button",
        { type: "button", title: `token ${t}: KL in nats: ${lost}`, "data-token": t, onclick: () => this.pick(t) },
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
      ...scene.paths.map((path) => make("th", { scope: "col" }, path.title)),
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
      style: `--c: ${path.color}`,
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
  constructor(changed) {
    this.target = make(
      "select",
      { "data-control": "target", onchange: changed },
      make("option", { value: 0 }, "what the teacher predicts"),
      make("option", { value: 1 }, "what follows in the text"),
    );
    this.charted = make("div", { class: "curves" });
    this.element = make("div", {}, this.charted, make("label", {}, "token whose probability is tracked: ", this.target));
  }

  /** The probability of a token over depth: what the teacher predicts, or what follows in the text. */
  tracked(scene, t) {
    const i = Number(this.target.value),
      word = i ? scene.tokens[t + 1] : scene.targets[t];
    const series = scene.paths.map((path) => ({
      name: path.title,
      color: path.color,
      x: path.times,
      y: path.times.map((_, s) => (word === undefined ? 0 : path.tracked[2 * (s * path.tokens + t) + i])),
    }));
    return [word === undefined ? "nothing follows the last token" : `probability of “${brief(word, 16)}”`, series];
  }

  show(scene, view, t) {
    const curves = (table) =>
      scene.paths.map((path) => ({
        name: path.title,
        color: path.color,
        x: path.times,
        y: path.times.map((_, s) => path.value(path[table], s, t)),
      }));
    const raw = scene.views[view].kind === "PCA" && scene.settings.preparation === "raw";
    const distances = scene.students.flatMap((path) => {
      const apart = path.shared.map((_, k) => path.apart[k * scene.tokens.length + t]);
      let shown = scene.shownDistance(view, path, t);
      if (!raw) shown = shown.map((x) => (x * Math.max(...apart)) / Math.max(...shown, 1e-12));
      const { color, shared: x } = path;
      return [
        { name: scene.students.length > 1 ? path.title : "true", color, x, y: apart },
        { name: raw ? "dashed: projected" : "dashed: projected, scaled", color, dash: "4 3", x, y: shown },
      ];
    });
    if (distances.length > 2) distances[1].name = ""; // named once
    this.charts = [
      this.chart(this.tracked(scene, t)[0], scene.depth, this.tracked(scene, t)[1], 1),
      this.chart("norm of the state", scene.depth, curves("norms")),
      this.chart("lens: KL to the final prediction, nats", scene.depth, curves("lensKl")),
      this.chart("distance teacher – student", scene.depth, distances),
    ];
    this.charted.replaceChildren(...this.charts.map(({ figure }) => figure));
  }

  chart(title, depth, series, most) {
    const named = series.filter((one) => one.name);
    const [w, h, left, bottom, top] = [300, 160 + 12 * named.length, 38, 22, 24 + 12 * named.length];
    const high = most ?? Math.max(...series.flatMap(({ y }) => y), 1e-9);
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
    figure.append(draw("path", { d: `M${left},${top}V${h - bottom}H${w - 10}`, class: "axis" }));
    for (const value of [0, high])
      figure.append(draw("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, number(value, 2)));
    for (const value of [0, depth / 2, depth])
      figure.append(draw("text", { x: x(value), y: h - 8, "text-anchor": "middle" }, value));
    series.forEach((one) => {
      const d = one.x.map((value, k) => `${k ? "L" : "M"}${x(value).toFixed(1)},${y(one.y[k]).toFixed(1)}`).join("");
      figure.append(
        draw("path", { d, fill: "none", stroke: one.color, "stroke-width": 1.8, "stroke-dasharray": one.dash ?? "" }),
      );
    });
    named.forEach((one, i) => {
      const style = `fill: ${one.color}`;
      figure.append(draw("text", { x: left + 2, y: 26 + 12 * i, style }, brief(one.name, 40)));
    });
    const line = draw("line", { y1: top, y2: h - bottom, class: "cursor" });
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
  const { kind, trust } = scene.views[view];
  const parts = [];
  if (kind !== "PCA") parts.push("distances in a UMAP have no unit");
  for (const path of scene.students) {
    const { hidden, agreement } = path.distortion[view],
      who = scene.students.length > 1 ? path.title : "student";
    if (hidden !== null)
      parts.push(`${percent(hidden)} of the squared distance teacher–${who} is outside this projection`);
    if (agreement !== null && scene.students.length === 1)
      parts.push(`rank correlation of projected and true distances ${agreement.toFixed(2)}`);
  }
  parts.push(`trustworthiness of neighbors ${trust.toFixed(2)}`);
  return `${kind}: ${parts.join(" · ")}`;
}
