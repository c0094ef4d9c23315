// What a reader takes along: the picture as PNG or SVG, its data as CSV, a link to the view.

/** Draws as a canvas does, into an SVG document: the part of the canvas that picture.js uses. */
class SvgPen {
  constructor(width, height) {
    Object.assign(this, { globalAlpha: 1, lineWidth: 1, dash: [], matrix: "", clips: 0, kept: [], textAlign: "left" });
    this.root = draw("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` });
    this.into = this.root;
  }

  add(tag, attributes, text) {
    const element = draw(tag, { ...attributes, opacity: this.globalAlpha }, text);
    if (this.matrix) element.setAttribute("transform", this.matrix);
    this.into.append(element);
  }

  outline() {
    return { fill: "none", stroke: this.strokeStyle, "stroke-width": this.lineWidth, "stroke-dasharray": this.dash.join(" ") };
  }

  save() {
    this.kept.push([this.into, this.matrix]);
  }

  restore() {
    [this.into, this.matrix] = this.kept.pop();
  }

  translate(x, y) {
    this.matrix += `translate(${x} ${y})`;
  }

  rotate(angle) {
    this.matrix += `rotate(${(angle * 180) / Math.PI})`;
  }

  setLineDash(dash) {
    this.dash = dash;
  }

  beginPath() {
    this.d = "";
  }

  moveTo(x, y) {
    this.d += `M${x.toFixed(2)} ${y.toFixed(2)}`;
  }

  lineTo(x, y) {
    this.d += `L${x.toFixed(2)} ${y.toFixed(2)}`;
  }

  /** A full circle: the only arcs that the picture has. */
  arc(x, y, r) {
    this.d += `M${x + r} ${y}A${r} ${r} 0 1 0 ${x - r} ${y}A${r} ${r} 0 1 0 ${x + r} ${y}Z`;
  }

  rect(x, y, w, h) {
    this.d += `M${x} ${y}h${w}v${h}h${-w}Z`;
  }

  stroke() {
    if (this.d) this.add("path", { d: this.d, ...this.outline() });
  }

  fill() {
    if (this.d) this.add("path", { d: this.d, fill: this.fillStyle });
  }

  fillRect(x, y, width, height) {
    this.add("rect", { x, y, width, height, fill: this.fillStyle });
  }

  strokeRect(x, y, width, height) {
    this.add("rect", { x, y, width, height, ...this.outline() });
  }

  clip() {
    const id = `clip${this.clips++}`;
    const shape = draw("clipPath", { id });
    shape.append(draw("path", { d: this.d }));
    const group = draw("g", { "clip-path": `url(#${id})` });
    this.into.append(shape, group);
    this.into = group;
  }

  text(x, y, attributes, text) {
    const [size, ...family] = this.font.split(" ");
    const anchor = { left: "start", center: "middle", right: "end" }[this.textAlign];
    this.add("text", { x, y, "font-size": size, "font-family": family.join(" "), "text-anchor": anchor, ...attributes }, text);
  }

  fillText(text, x, y) {
    this.text(x, y, { fill: this.fillStyle }, text);
  }

  strokeText(text, x, y) {
    this.text(x, y, this.outline(), text);
  }
}

function svgOf(picture) {
  const pen = new SvgPen(picture.canvas.clientWidth, picture.canvas.clientHeight);
  picture.drawPaths(pen);
  picture.drawMoving(pen);
  return new XMLSerializer().serializeToString(pen.root);
}

/** One row per model, token and depth. Tokens are JSON strings: no spreadsheet takes one for a formula. */
function csvOf(scene, view) {
  const quoted = (word) => `"${JSON.stringify(word).replaceAll('"', '""')}"`;
  const rows = ["model,position,token,depth,x,y,z,norm,kl_to_final,predicted,probability"];
  for (const path of scene.paths)
    for (let t = 0; t < path.tokens; t++)
      path.times.forEach((depth, s) => {
        const [[word, share]] = path.lens(s, t);
        const numbers = [...path.place(view, s, t), path.value(path.norms, s, t), path.value(path.lensKl, s, t)];
        const shown = [depth, ...numbers].map((x) => Number(x.toPrecision(6)));
        rows.push([quoted(path.title), t, quoted(scene.tokens[t]), ...shown, quoted(word), share.toPrecision(4)].join());
      });
  return `${rows.join("\n")}\n`;
}

function download(name, blob) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** The view as the fragment of an address. */
function fragmentOf(explorer) {
  const { settings } = explorer.scene;
  return new URLSearchParams({
    student: settings.student,
    second: settings.second ?? "",
    view: explorer.view,
    depth: layers(explorer.depth),
    tokens: [...explorer.selected].join(),
    focus: explorer.focus,
  }).toString();
}
