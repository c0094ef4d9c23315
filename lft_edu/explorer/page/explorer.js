// The explorer: controls wired to the panels. The kernel computes scenes; everything else happens here.

const PREPARATIONS = ["raw", "layernorm", "unit", "drop outliers"];
let instances = 0;

class Explorer {
  constructor(model, root) {
    Object.assign(this, { model, root, depth: model.get("depth"), focus: 0, selected: new Set(), name: `lft${instances++}` });
    root.classList.add("lft-explorer");
    this.text = new TextPanel((t) => this.toggle(t));
    this.lens = new LensPanel((depth) => this.go(depth));
    this.curves = new CurvesPanel();
    const canvas = make("canvas", { tabindex: 0, role: "img" });
    this.tip = make("div", { class: "tip", hidden: true });
    this.picture = new Picture(canvas, { pick: (t) => this.toggle(t), tell: (mark, place) => this.hover(mark, place) });
    this.layout(canvas);
    this.handlers = { scene: () => this.newScene(), view: () => this.changeView(model.get("view")), selected: () => this.chosenInPython(), busy: () => this.showState(), error: () => this.showState(), depth: () => this.go(model.get("depth"), false) };
    for (const [name, handler] of Object.entries(this.handlers)) model.on(`change:${name}`, handler);
    this.newScene();
    this.chosenInPython();
    this.showState();
  }

  close() {
    this.stop();
    for (const [name, handler] of Object.entries(this.handlers)) this.model.off(`change:${name}`, handler);
  }

  layout(canvas) {
    const live = this.model.get("live"), dead = { disabled: !live, title: live ? null : "needs a live kernel" };
    this.input = make("textarea", { rows: 2, spellcheck: "false", "aria-label": "Text: Enter computes, Shift+Enter breaks the line", ...dead });
    this.input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        this.ask({ text: this.input.value });
      }
    });
    const fly = make("button", { type: "button", class: "primary", ...dead, onclick: () => this.ask({ text: this.input.value }) }, "Fly");
    this.student = this.select("student", this.model.get("students"), (student) => this.ask({ student }));
    this.solver = this.select("solver", ["euler", "midpoint"], (solver) => this.ask({ solver }), dead);
    this.steps = make("input", { type: "number", min: 1, max: 64, ...dead, "aria-label": "steps k", onchange: () => this.ask({ steps: Number(this.steps.value) }) });
    this.preparation = this.select("states", PREPARATIONS, (preparation) => this.ask({ preparation }), dead);
    this.kind = this.radio("projection", ["PCA", "UMAP"]);
    this.dims = this.radio("dimensions", ["2-D", "3-D"]);
    this.slider = make("input", { type: "range", min: 0, max: 24, step: 0.1, value: 0, "aria-label": "depth in layers", oninput: () => this.go(Number(this.slider.value)) });
    this.slider.addEventListener("keydown", (event) => this.stepDepth(event));
    this.playButton = make("button", { type: "button", onclick: () => (this.playing ? this.stop() : this.play()) }, "▶ play");
    this.where = make("output", { class: "where" });
    this.badge = make("p", { class: "badge", role: "note" });
    this.alert = make("p", { class: "alert", role: "alert", hidden: true });
    this.progress = make("progress", { "aria-label": "computing", hidden: true });
    this.said = make("p", { class: "said", role: "status" });
    this.legend = make("p", { class: "legend" });
    const gallery = this.gallery();
    const clear = make("button", { type: "button", onclick: () => this.choose(new Set()) }, "all tokens");
    const home = make("button", { type: "button", title: "Picture: drag or arrow keys, + and −, 0", onclick: () => this.picture.reset() }, "reset view");
    const zoom = ["+", "−"].map((sign) => make("button", { type: "button", "aria-label": sign === "+" ? "larger" : "smaller", onclick: () => this.picture.magnify(sign === "+" ? 1.25 : 0.8) }, sign));
    const labelled = (name, control) => make("label", {}, `${name} `, control);
    this.root.append(
      make("div", { class: "row" }, this.input, fly, this.progress),
      this.alert,
      make("div", { class: "row" }, labelled("student", this.student), labelled("solver", this.solver), labelled("steps k", this.steps), labelled("states", this.preparation), this.kind, this.dims),
      this.text.element,
      make("div", { class: "main" }, make("div", { class: "stage" }, canvas, this.tip), this.lens.element),
      make("div", { class: "row" }, this.playButton, this.slider, this.where, clear, ...zoom, home),
      this.legend, this.badge, this.said, this.curves.element, ...gallery,
    );
  }

  select(name, options, change, attributes = {}) {
    const select = make("select", { "data-control": name, ...attributes, onchange: () => change(select.value) });
    select.append(...options.map((option) => make("option", { value: option }, option)));
    return select;
  }

  radio(name, options) {
    const group = make("fieldset", {}, make("legend", {}, name));
    for (const option of options) {
      const input = make("input", { type: "radio", name: `${this.name}-${name}`, value: option, onchange: () => this.changeView(this.wantedView()) });
      group.append(make("label", {}, input, option));
    }
    return group;
  }

  gallery() {
    const failures = this.model.get("gallery");
    if (!failures.length) return [];
    const list = make("ol", { class: "gallery" });
    for (const { label, text, student, focus } of failures)
      list.append(make("li", {}, make("button", { type: "button", disabled: !this.model.get("live"), onclick: () => this.ask({ text, student, focus }) }, label)));
    return [make("details", {}, make("summary", {}, "Where it fails most"), list)];
  }

  /** Ask the kernel for another scene; an exported page has the ones it was given. */
  ask(changes) {
    if (changes.focus !== undefined) this.nextFocus = changes.focus;
    this.askedAt = performance.now();
    this.model.send({ ask: changes });
  }

  wantedView() {
    return [this.kind, this.dims].map((group) => group.querySelector("input:checked").value).join(" ");
  }

  changeView(wanted) {
    if (!wanted || wanted === this.view) return;
    if (this.scene.views[wanted]) {
      this.view = wanted;
      this.tellKernel("view", wanted);
      this.refresh();
    } else this.ask({ view: wanted });
  }

  tellKernel(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  /** A selection made from Python; positions that this text does not have are left out. */
  chosenInPython() {
    const wanted = this.model.get("selected").filter((t) => t < this.scene.tokens.length);
    if (wanted.length === this.selected.size && wanted.every((t) => this.selected.has(t))) return;
    this.selected = new Set(wanted);
    this.focus = wanted.at(-1) ?? this.focus;
    this.refresh();
  }

  newScene() {
    const raw = this.model.get("scene");
    if (!raw.text) return;
    const scene = new Scene(raw), before = this.scene, same = before?.text === scene.text;
    this.scene = scene;
    if (before?.settings.view !== scene.settings.view || !scene.views[this.view]) this.view = scene.settings.view;
    if (!same) {
      this.selected = new Set();
      this.focus = scene.kl.indexOf(Math.max(...scene.kl));
      this.input.value = scene.text;
    }
    if (this.nextFocus < scene.tokens.length) [this.focus, this.selected] = [this.nextFocus, new Set([this.nextFocus])];
    this.nextFocus = undefined;
    if (before) this.tellKernel("selected", [...this.selected]);
    this.slider.max = scene.depth;
    this.depth = Math.min(this.depth, scene.depth);
    this.text.show(scene);
    this.legend.replaceChildren(
      ...scene.paths.flatMap((path, m) => [make("span", { class: `key${m}` }, m ? "■ " : "● "), `${path.name}: ${path.about}   `]),
      "┄ what lies between them. Tokens: the redder, the farther apart, up to 2 nats.",
    );
    this.refresh();
    if (this.askedAt) this.root.dataset.waited = Math.round(performance.now() - this.askedAt);
    this.root.dataset.scene = Number(this.root.dataset.scene ?? 0) + 1;
  }

  /** After a new scene, view, selection or focus. */
  refresh() {
    const { settings } = this.scene, flow = settings.steps !== null;
    Object.assign(this.student, { value: settings.student });
    Object.assign(this.solver, { value: settings.solver ?? "euler", disabled: !flow || !this.model.get("live") });
    Object.assign(this.steps, { value: settings.steps ?? 1, disabled: !flow || !this.model.get("live") });
    this.preparation.value = settings.preparation;
    const [kind, dims] = this.view.split(" "), live = this.model.get("live");
    for (const input of this.root.querySelectorAll("input[type=radio]")) // a file has only the views it was given
      input.disabled = !live && !Object.keys(this.scene.views).some((view) => view.split(" ").includes(input.value));
    this.kind.querySelector(`[value=${kind}]`).checked = true;
    this.dims.querySelector(`[value="${dims}"]`).checked = true;
    this.badge.textContent = badge(this.scene, this.view);
    this.text.mark(this.selected, this.focus);
    this.lens.show(this.scene, this.focus);
    this.curves.show(this.scene, this.view, this.focus);
    this.root.dataset.view = this.view;
    this.go(this.depth);
  }

  toggle(t) {
    const selected = new Set(this.selected);
    selected.delete(t) || selected.add(t);
    this.focus = t;
    this.choose(selected);
  }

  choose(selected) {
    this.selected = selected;
    this.tellKernel("selected", [...selected].sort((a, b) => a - b));
    this.refresh();
  }

  /** Everything that follows the depth. */
  go(depth, save = true) {
    if (!this.scene) return;
    this.depth = Math.max(0, Math.min(depth, this.scene.depth));
    this.slider.value = this.depth;
    this.where.textContent = `depth ${this.depth.toFixed(1)} of ${this.scene.depth}`;
    this.picture.show(this.scene, this.view, this.depth, this.selected);
    this.lens.mark(this.depth);
    this.curves.mark(this.depth);
    if (this.playing && Math.floor(this.depth) === this.spoken) return;
    this.spoken = Math.floor(this.depth);
    this.say();
    if (save && !this.playing) this.tellKernel("depth", this.depth);
  }

  say() {
    const best = this.scene.paths.map((path) => path.lens(path.station(this.depth), this.focus)[0]);
    const word = brief(this.scene.tokens[this.focus]);
    const heard = this.scene.paths.map((path, m) => `${path.name} “${brief(best[m][0])}” ${percent(best[m][1])}`);
    this.said.textContent = `After “${word}”, KL ${number(this.scene.kl[this.focus])} nats. At depth ${this.depth.toFixed(1)}: ${heard.join(", ")}.`;
    this.picture.canvas.setAttribute("aria-label", `Paths of ${this.picture.tokensShown().length} tokens, ${this.view}. ${this.said.textContent}`);
  }

  stepDepth(event) {
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 6, PageDown: -6 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    this.go(by > 0 ? Math.floor(this.depth + 1e-6) + by : Math.ceil(this.depth - 1e-6) + by);
  }

  play() {
    if (this.depth >= this.scene.depth) this.go(0);
    this.playButton.textContent = "❚❚ pause";
    let last = performance.now();
    const frame = (now) => {
      const depth = this.depth + ((now - last) / 1000) * 3; // three layers a second
      last = now;
      this.go(depth);
      if (this.depth >= this.scene.depth) this.stop();
      else this.playing = requestAnimationFrame(frame);
    };
    this.playing = requestAnimationFrame(frame);
  }

  stop() {
    cancelAnimationFrame(this.playing);
    this.playing = null;
    this.playButton.textContent = "▶ play";
    if (this.scene) this.go(this.depth);
  }

  hover(mark, place) {
    this.tip.hidden = !mark;
    if (!mark) return;
    const { m, t, s } = mark, path = this.scene.paths[m];
    const depth = path.times[s], lens = path.lens(s, t).map(([word, share]) => make("div", {}, make("bdi", {}, brief(word, 40)), ` ${percent(share)}`));
    const head = make("b", {}, make("bdi", {}, brief(this.scene.tokens[t], 40)));
    this.tip.replaceChildren(head, ` token ${t} · ${path.name} · depth ${number(depth, 4)} · norm ${number(path.value(path.norms, s, t))}`, ...lens);
    const right = place[0] > this.picture.canvas.clientWidth - 230;
    Object.assign(this.tip.style, { left: `${place[0] + (right ? -225 : 14)}px`, top: `${Math.min(place[1] + 12, this.picture.canvas.clientHeight - 130)}px` });
  }

  showState() {
    const busy = this.model.get("busy"), error = this.model.get("error");
    this.root.setAttribute("aria-busy", busy !== "");
    this.progress.hidden = busy === "";
    this.progress.title = busy;
    this.alert.hidden = error === "";
    this.alert.textContent = error;
    if (error && this.scene) this.refresh(); // controls go back to what is shown
  }
}

function render({ model, el }) {
  const explorer = new Explorer(model, el);
  el.explorer = explorer; // for tests and for the curious
  return () => explorer.close();
}

export default { render };
