// The explorer's controls, all native elements, and the layout of the page. Their actions are in explorer.js.

const PREPARATIONS = ["raw", "layernorm", "unit", "drop outliers"];
let instances = 0;

class Controls {
  constructor(model, root) {
    Object.assign(this, { model, root, name: `lft${instances++}` });
    const live = model.get("live");
    this.asking = { disabled: !live, title: live ? null : "needs a running kernel" }; // for controls that need the kernel
  }

  button(label, act, attributes = {}) {
    return make("button", { type: "button", ...attributes, onclick: act }, label);
  }

  select(name, options, change, attributes = {}) {
    const select = make("select", { "data-control": name, ...attributes, onchange: () => change(select.value) });
    select.append(...options.map((option) => make("option", { value: option }, option)));
    return select;
  }

  radio(name, options) {
    const group = make("fieldset", {}, make("legend", {}, name));
    for (const value of options) {
      const onchange = () => this.changeView(this.wantedView());
      const input = make("input", { type: "radio", name: `${this.name}-${name}`, value, onchange });
      group.append(make("label", {}, input, value));
    }
    return group;
  }

  /** Text and button. */
  textRow() {
    const label = "Text: Enter to run, Shift+Enter for a new line",
      run = () => this.ask({ text: this.input.value });
    this.input = make("textarea", { rows: 2, spellcheck: "false", "aria-label": label, ...this.asking });
    this.input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      run();
    });
    this.progress = make("progress", { "aria-label": "computing", hidden: true });
    this.waiting = make("span");
    const button = this.button("Run", run, { class: "primary", ...this.asking });
    return make("div", { class: "row" }, this.input, button, this.progress, this.waiting);
  }

  /** Student, solver and projection. */
  choiceRow() {
    const onchange = () => this.ask({ steps: Number(this.steps.value) });
    this.student = this.select("student", this.model.get("students"), (student) => this.ask({ student }));
    this.solver = this.select("solver", ["euler", "midpoint"], (solver) => this.ask({ solver }), this.asking);
    this.steps = make("input", { type: "number", min: 1, max: 64, ...this.asking, onchange });
    this.preparation = this.select("states", PREPARATIONS, (preparation) => this.ask({ preparation }), this.asking);
    this.kind = this.radio("projection", ["PCA", "UMAP"]);
    this.dims = this.radio("dimensions", ["2-D", "3-D"]);
    const named = { student: this.student, solver: this.solver, "steps k": this.steps, states: this.preparation };
    const labels = Object.entries(named).map(([name, control]) => make("label", {}, `${name} `, control));
    return make("div", { class: "row" }, ...labels, this.kind, this.dims);
  }

  /** Depth slider, play button and view controls. */
  depthRow() {
    const oninput = () => this.go(Number(this.slider.value)),
      label = "depth in layers";
    this.slider = make("input", { type: "range", min: 0, max: 24, step: 0.1, value: 0, "aria-label": label, oninput });
    this.slider.addEventListener("keydown", (event) => this.stepDepth(event));
    this.playButton = this.button("▶ play", () => (this.playing ? this.stop() : this.play()));
    this.where = make("output", { class: "where" });
    const buttons = [
      this.button("all tokens", () => this.choose(new Set())),
      this.button("+", () => this.picture.magnify(1.25), { "aria-label": "zoom in" }),
      this.button("−", () => this.picture.magnify(0.8), { "aria-label": "zoom out" }),
      this.button("reset view", () => this.picture.reset(), { title: "drag or arrow keys; + and − zoom, 0 resets" }),
    ];
    return make("div", { class: "row" }, this.playButton, this.slider, this.where, ...buttons);
  }

  /** A list of failures to jump to. */
  gallery() {
    const failures = this.model.get("gallery");
    if (!failures.length) return [];
    const list = make("ol", { class: "gallery" });
    for (const { label, text, student, focus } of failures)
      list.append(
        make(
          "li",
          {},
          this.button(label, () => this.ask({ text, student, focus }), this.asking),
        ),
      );
    return [make("details", {}, make("summary", {}, "Where it fails most"), list)];
  }

  /** Add all elements to the page. */
  arrange(canvas) {
    this.tip = make("div", { class: "tip", hidden: true });
    this.alert = make("p", { class: "alert", role: "alert", hidden: true });
    this.badge = make("p", { class: "badge", role: "note" });
    this.said = make("p", { class: "said", role: "status" });
    this.legend = make("p", { class: "legend" });
    const stage = make("div", { class: "stage" }, canvas, this.tip);
    const main = make("div", { class: "main" }, stage, this.lens.element);
    this.root.append(this.textRow(), this.alert, this.choiceRow(), this.text.element, main, this.depthRow());
    this.root.append(this.legend, this.badge, this.said, this.curves.element, ...this.gallery());
  }
}
