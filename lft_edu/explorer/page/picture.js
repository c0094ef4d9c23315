// The figure: paths on a canvas, in 2-D or 3-D. The static part is drawn once and cached.

const FAINT = 0.16,
  LABELS = 14;

class Picture {
  constructor(canvas, { pick, tell }) {
    Object.assign(this, {
      canvas,
      pick,
      tell,
      context: canvas.getContext("2d"),
      background: document.createElement("canvas"),
    });
    this.scene = null;
    this.selected = new Set();
    this.theme = { ink: "#222222", muted: "#444444", line: "#bbbbbb", paper: "#ffffff" };
    this.home();
    this.listen();
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  /** Reset rotation, zoom and pan. */
  home() {
    Object.assign(this, { turn: 0.6, tilt: 0.35, zoom: 1, pan: [0, 0] });
    this.stale = true;
  }

  show(scene, view, depth, selected, focus) {
    if (scene !== this.scene || view !== this.view) {
      Object.assign(this, { scene, view });
      this.frame();
    }
    if (selected !== this.selected) this.stale = true;
    Object.assign(this, { depth, selected, focus });
    this.draw();
  }

  /** Compute center and size of the paths, without the first token, an outlier. */
  frame() {
    const low = [Infinity, Infinity, Infinity],
      high = [-Infinity, -Infinity, -Infinity];
    const first = this.scene.tokens.length > 1 ? 1 : 0;
    for (const path of this.scene.paths)
      for (let s = 0; s < path.times.length; s++)
        for (let t = first; t < path.tokens; t++)
          path.place(this.view, s, t).forEach((x, i) => {
            low[i] = Math.min(low[i], x);
            high[i] = Math.max(high[i], x);
          });
    this.center = low.map((x, i) => (x + high[i]) / 2);
    this.size = high.map((x, i) => x - low[i]);
    this.flat = this.scene.paths[0].points[this.view].d === 2;
    this.stale = true;
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.background]) {
      canvas.width = this.canvas.clientWidth * ratio;
      canvas.height = this.canvas.clientHeight * ratio;
    }
    this.stale = true;
    if (this.scene) this.draw();
  }

  /** Pixels per unit. */
  get scale() {
    const [w, h] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const whole = this.flat
      ? Math.max(this.size[0] / (w - 110), this.size[1] / (h - 70))
      : Math.hypot(...this.size) / (Math.min(w, h) - 40);
    return this.zoom / Math.max(whole, 1e-12);
  }

  /** Projected position → pixels. */
  screen([x, y, z]) {
    let [a, b, c] = [x - this.center[0], y - this.center[1], z - this.center[2]];
    if (!this.flat) [a, b] = this.rotate(a, b, c);
    return [
      this.canvas.clientWidth / 2 + this.pan[0] + a * this.scale,
      this.canvas.clientHeight / 2 + this.pan[1] - b * this.scale,
    ];
  }

  rotate(a, b, c) {
    const across = a * Math.cos(this.turn) - c * Math.sin(this.turn);
    const away = a * Math.sin(this.turn) + c * Math.cos(this.turn);
    return [across, b * Math.cos(this.tilt) - away * Math.sin(this.tilt)];
  }

  draw() {
    const started = performance.now();
    if (this.stale) this.drawStatic();
    const pen = this.context,
      ratio = window.devicePixelRatio || 1;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.drawImage(this.background, 0, 0);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawMoving(pen);
    this.spent = performance.now() - started;
  }

  tokensShown() {
    return this.selected.size ? [...this.selected] : this.scene.tokens.map((_, t) => t);
  }

  /** Draw the part that does not change with the depth, to be cached. */
  drawStatic() {
    const pen = this.background.getContext("2d"),
      ratio = window.devicePixelRatio || 1;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawPaths(pen);
    this.stale = false;
  }

  /** Draw axes and whole paths, faint for tokens that are not selected. */
  drawPaths(pen) {
    pen.fillStyle = this.theme.paper;
    pen.fillRect(0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
    this.drawAxes(pen);
    pen.save();
    this.clip(pen);
    this.drawLandmarks(pen);
    const shown = new Set(this.tokensShown());
    for (const path of this.scene.paths)
      for (const bright of [false, true]) {
        pen.beginPath();
        for (let t = 0; t < path.tokens; t++) if (shown.has(t) === bright) this.trace(pen, path, t, path.times.at(-1));
        Object.assign(pen, {
          strokeStyle: path.color,
          globalAlpha: !this.selected.size ? 0.35 : bright ? 0.45 : FAINT,
          lineWidth: 1,
        });
        pen.stroke();
      }
    pen.restore();
  }

  /** Draw the states that a UMAP was fitted on: it can place others only near these. */
  drawLandmarks(pen) {
    const places = this.scene.landmarks[this.view];
    if (!places.length) return;
    Object.assign(pen, { fillStyle: this.theme.muted, globalAlpha: 0.3 });
    for (const place of places) {
      const [x, y] = this.screen(place);
      pen.fillRect(x - 1, y - 1, 2, 2);
    }
    Object.assign(pen, { globalAlpha: 1, font: "12px system-ui, sans-serif", textAlign: "left" });
    pen.fillText("gray dots: landmarks, the states this map was made of", 36, 24);
  }

  /** Clip to the frame of the axes, in 2-D. */
  clip(pen) {
    if (!this.flat) return;
    pen.beginPath();
    pen.rect(29, 9, this.canvas.clientWidth - 38, this.canvas.clientHeight - 38);
    pen.clip();
  }

  trace(pen, path, t, until) {
    pen.moveTo(...this.screen(path.place(this.view, 0, t)));
    for (let s = 1; s < path.times.length && path.times[s] <= until + 1e-4; s++)
      pen.lineTo(...this.screen(path.place(this.view, s, t)));
    if (until < path.times.at(-1)) pen.lineTo(...this.screen(path.at(this.view, until, t)));
  }

  drawAxes(pen) {
    const [w, h] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const names = this.scene.views[this.view].axes;
    Object.assign(pen, {
      font: "12px system-ui, sans-serif",
      fillStyle: this.theme.muted,
      strokeStyle: this.theme.line,
      lineWidth: 1,
    });
    if (this.flat) {
      pen.strokeRect(28.5, 8.5, w - 37, h - 37);
      pen.textAlign = "center";
      pen.fillText(names[0], w / 2, h - 9);
      pen.save();
      pen.translate(16, h / 2 - 10);
      pen.rotate(-Math.PI / 2);
      pen.fillText(names[1], 0, 0);
      pen.restore();
    } else {
      const corner = [70, h - 70];
      [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
      ].forEach((axis, i) => {
        const [a, b] = this.rotate(...axis);
        const tip = [corner[0] + 44 * a, corner[1] - 44 * b];
        pen.beginPath();
        pen.moveTo(...corner);
        pen.lineTo(...tip);
        pen.stroke();
        pen.textAlign = "left";
        pen.fillText(names[i].split(" (")[0], tip[0] + 3, tip[1]);
      });
    }
    this.drawRuler(pen, w);
  }

  /** Draw a scale bar, for projections with a unit. */
  drawRuler(pen, w) {
    if (this.scene.views[this.view].kind !== "PCA") return;
    const power = 10 ** Math.floor(Math.log10(110 / this.scale));
    const length = [5, 2, 1].map((n) => n * power).find((n) => n * this.scale <= 110);
    const end = w - 22;
    pen.strokeStyle = this.theme.muted;
    pen.beginPath();
    pen.moveTo(end - length * this.scale, 24.5);
    pen.lineTo(end, 24.5);
    pen.stroke();
    pen.textAlign = "right";
    pen.fillText(`${number(length, 1)}`, end, 39);
  }

  /** Draw tokens at this depth, selected paths up to it, and lines between the teacher and its students. */
  drawMoving(pen) {
    const { paths } = this.scene,
      bright = new Set(this.tokensShown());
    const many = bright.size > LABELS;
    pen.save();
    this.clip(pen);
    if (this.selected.size)
      for (const path of paths) {
        pen.beginPath();
        for (const t of bright) this.trace(pen, path, t, this.depth);
        Object.assign(pen, { strokeStyle: path.color, lineWidth: many ? 1.2 : 2.2, globalAlpha: many ? 0.6 : 1 });
        pen.stroke();
      }
    const spots = paths.map((path) =>
      this.scene.tokens.map((_, t) => this.screen(path.at(this.view, this.depth, t))),
    );
    Object.assign(pen, { globalAlpha: many ? 0.5 : 1, strokeStyle: this.theme.ink, lineWidth: 1 });
    pen.setLineDash([2, 2]);
    pen.beginPath();
    for (const t of bright)
      for (const places of spots.slice(1)) {
        pen.moveTo(...spots[0][t]);
        pen.lineTo(...places[t]);
      }
    pen.stroke();
    pen.setLineDash([]);
    spots.forEach((places, m) => {
      for (const on of [false, true]) {
        Object.assign(pen, { globalAlpha: on ? 1 : FAINT, fillStyle: paths[m].color });
        pen.beginPath();
        places.forEach((place, t) => {
          if (bright.has(t) === on) this.mark(pen, m, place, on ? (many ? 3 : 5) : 2);
        });
        pen.fill();
      }
    });
    this.spots = spots;
    this.drawNeighbors(pen);
    pen.restore();
    if (!many) this.drawLabels(pen, bright);
  }

  /** Add a mark to the path: a circle for the teacher, a square and a diamond for students. */
  mark(pen, m, [x, y], r) {
    if (m === 0) {
      pen.moveTo(x + r, y);
      pen.arc(x, y, r, 0, 2 * Math.PI);
    } else if (m === 1) pen.rect(x - r, y - r, 2 * r, 2 * r);
    else {
      pen.moveTo(x, y - 1.4 * r);
      for (const [a, b] of [[1.4, 0], [0, 1.4], [-1.4, 0], [0, -1.4]]) pen.lineTo(x + a * r, y + b * r);
    }
  }

  /** Ring the states that are nearest, in all dimensions, to the selected one in focus. */
  drawNeighbors(pen) {
    if (!this.selected.has(this.focus)) return;
    this.scene.paths.forEach((path, m) => {
      pen.beginPath();
      for (const [t] of path.nearest(path.depthIndex(this.depth), this.focus)) {
        const [x, y] = this.spots[m][t];
        pen.moveTo(x + 9, y);
        pen.arc(x, y, 9, 0, 2 * Math.PI);
      }
      Object.assign(pen, { strokeStyle: path.color, lineWidth: 1.5, globalAlpha: 0.9 });
      pen.stroke();
    });
  }

  drawLabels(pen, bright) {
    Object.assign(pen, {
      font: "13px ui-monospace, monospace",
      textAlign: "left",
      lineWidth: 3,
      strokeStyle: this.theme.paper,
      fillStyle: this.theme.ink,
    });
    const placed = []; // skip labels that would overlap: hovering shows them
    for (const t of bright) {
      const [x, y] = this.spots[0][t];
      if (placed.some(([a, b]) => Math.abs(a - x) < 44 && Math.abs(b - y) < 13)) continue;
      placed.push([x, y]);
      const word = `\u2068${brief(this.scene.tokens[t], 24)}\u2069`;
      pen.strokeText(word, x + 8, y - 6); // a halo, readable over paths
      pen.fillText(word, x + 8, y - 6);
    }
  }

  /** The nearest mark to a pixel: { m, t, s }, or null. */
  nearest(x, y, reach = 14) {
    let best = null,
      least = reach;
    const consider = (m, t, s, [a, b]) => {
      const distance = Math.hypot(a - x, b - y);
      if (distance < least) [best, least] = [{ m, t, s }, distance];
    };
    this.spots.forEach((places, m) => {
      const s = this.scene.paths[m].depthIndex(this.depth);
      places.forEach((place, t) => consider(m, t, s, place));
    });
    if (!best && this.selected.size && this.selected.size <= LABELS)
      this.scene.paths.forEach((path, m) => {
        for (const t of this.selected)
          path.times.forEach((_, s) => consider(m, t, s, this.screen(path.place(this.view, s, t))));
      });
    return best;
  }

  listen() {
    let from = null,
      moved = false;
    const spot = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      [from, moved] = [spot(event), false];
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!this.scene) return;
      const here = spot(event);
      if (!from) return this.tell(this.nearest(...here), here);
      const [dx, dy] = here.map((x, i) => x - from[i]);
      if (!moved && Math.hypot(dx, dy) < 4) return;
      [from, moved] = [here, true];
      this.flat ? this.shift(dx, dy) : this.spin(dx / 120, dy / 120);
    });
    this.canvas.addEventListener("pointerup", (event) => {
      const found = !moved && this.scene && this.nearest(...spot(event));
      if (found) this.pick(found.t);
      from = null;
    });
    this.canvas.addEventListener("pointerleave", () => this.tell(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) this.flat ? this.shift(30 * step[0], 30 * step[1]) : this.spin(0.15 * step[0], 0.15 * step[1]);
    else if (event.key === "+" || event.key === "-") this.magnify(event.key === "+" ? 1.25 : 0.8);
    else if (event.key === "0") this.reset();
    else return;
    event.preventDefault();
  }

  shift(dx, dy) {
    this.pan = [this.pan[0] + dx, this.pan[1] + dy];
    this.redraw();
  }

  spin(turn, tilt) {
    this.turn -= turn;
    this.tilt = Math.max(-1.5, Math.min(1.5, this.tilt + tilt));
    this.redraw();
  }

  magnify(factor) {
    this.zoom *= factor;
    this.pan = this.pan.map((x) => x * factor);
    this.redraw();
  }

  reset() {
    this.home();
    this.redraw();
  }

  redraw() {
    this.stale = true;
    this.draw();
  }
}
