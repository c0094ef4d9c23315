// The explorer's controls, all native elements, and the layout of the page. Their actions are in explorer.js.

const PREPARATIONS = ["raw", "layernorm", "unit", "drop outliers"];
const HELP = [
  "Each word of the text is a vector, its hidden state, that every layer changes. A line is the path of one token " +
    "through all layers, drawn in two or three dimensions out of many. ● is where the teacher has it at the chosen " +
    "depth, ■ where the student has it: it replaces some layers by one motion. A dotted line joins the same token.",
  "Press ▶ play, or drag the depth. Click a token or a mark to single it out; rings mark the states that are nearest " +
    "to it in all dimensions. A redder token is one after which the student predicts something else " +
    "(KL divergence of the next-token distributions, full red from 2 nats).",
  "The table is the logit lens: what the model would predict next if it stopped at that depth. Signs in tokens: " +
    "· space, ·×11 eleven spaces, ⏎ line break, ⇥ tab.",
  "A projection hides most of the space. The yellow note says how much of the distance between the models is not in " +
    "the picture.",
];
const STEPS = "k: how many steps the solver takes through the layers that are replaced. Euler evaluates the velocity once per step, midpoint twice.";
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

  /** A menu; options are values, or [value, label]. */
  select(name, options, change, attributes = {}) {
    const select = make("select", { "data-control": name, ...attributes, onchange: () => change(select.value) });
    for (const option of options) {
      const [value, label] = Array.isArray(option) ? option : [option, option];
      select.append(make("option", { value }, label));
    }
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

  heading() {
    const help = make("details", { class: "help" }, make("summary", {}, "What am I seeing?"));
    help.append(...HELP.map((text) => make("p", {}, text)));
    return [
      make("h3", {}, "Trajectory explorer"),
      make("p", {}, "The path of each token through the layers of a teacher and of a student: press ▶ play."),
      help,
    ];
  }

  /** Text and button, and texts to click. */
  textRow() {
    const label = "Text: Enter to run, Shift+Enter for a new line",
      run = () => this.ask({ text: this.input.value });
    this.input = make("textarea", { rows: 2, spellcheck: "false", "aria-label": label, ...this.asking });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      run();
    });
    this.progress = make("progress", { "aria-label": "computing", hidden: true });
    this.waiting = make("span");
    const button = this.button("Run", run, { class: "primary", ...this.asking });
    return make("div", { class: "row" }, this.input, button, this.progress, this.waiting);
  }

  exampleRow() {
    const texts = this.model.get("live") ? this.model.get("examples") : [];
    if (!texts.length) return [];
    const buttons = texts.map((text) =>
      this.button(text.split("\n")[0], () => this.ask({ text }), { class: "example", title: text }),
    );
    return [make("div", { class: "row", role: "group", "aria-label": "Example texts" }, "try", ...buttons)];
  }

  /** Students, solver and projection. */
  choiceRow() {
    const titles = this.model.get("titles"),
      students = this.model.get("students").map((name) => [name, titles[name] ?? name]);
    const commit = () => this.ask({ steps: Number(this.steps.value) });
    this.student = this.select("student", students, (student) => this.ask({ student }));
    this.second = this.select("second", [["", "nothing"], ...students], (second) => this.ask({ second }));
    this.solver = this.select("solver", ["euler", "midpoint"], (solver) => this.ask({ solver }), this.asking);
    this.steps = make("input", { type: "number", min: 1, max: 64, title: STEPS, ...this.asking, onchange: commit });
    if (!this.asking.disabled) this.steps.title = STEPS;
    this.preparation = this.select("states", PREPARATIONS, (preparation) => this.ask({ preparation }), this.asking);
    this.kind = this.radio("projection", ["PCA", "UMAP"]);
    this.dims = this.radio("dimensions", ["2-D", "3-D"]);
    const named = { student: this.student, "compare with": this.second };
    if (students.length < 2) delete named["compare with"];
    Object.assign(named, { solver: this.solver, steps: this.steps, states: this.preparation });
    const labels = Object.entries(named).map(([name, control]) => make("label", {}, `${name} `, control));
    labels.find((label) => label.contains(this.steps)).title = STEPS;
    return make("div", { class: "row" }, ...labels, this.kind, this.dims);
  }

  /** Depth slider, play button and view controls: below the picture. */
  depthRow() {
    const oninput = () => this.go(Number(this.slider.value)),
      label = "depth in layers";
    this.slider = make("input", { type: "range", min: 0, max: 24, step: 0.1, value: 0, "aria-label": label, oninput });
    this.slider.addEventListener("keydown", (event) => this.stepDepth(event));
    this.playButton = this.button("▶ play", () => (this.playing ? this.stop() : this.play()), { class: "play" });
    this.where = make("output", { class: "where" });
    const buttons = [
      this.button("all tokens", () => this.choose(new Set()), { title: "clear the selection" }),
      this.button("+", () => this.picture.magnify(1.25), { "aria-label": "zoom in" }),
      this.button("−", () => this.picture.magnify(0.8), { "aria-label": "zoom out" }),
      this.button("reset view", () => this.picture.reset(), { title: "drag or arrow keys; + and − zoom, 0 resets" }),
    ];
    return [
      make("div", { class: "row" }, this.playButton, this.slider, this.where),
      make("div", { class: "row" }, ...buttons),
    ];
  }

  /** Failures to jump to, grouped by student. */
  gallery() {
    const failures = this.model.get("gallery");
    if (!failures.length) return [];
    const titles = this.model.get("titles"),
      all = make("details", { class: "gallery" }, make("summary", {}, "Where students fail most"));
    for (const name of new Set(failures.map((failure) => failure.student))) {
      const list = make("ol");
      for (const { label, text, student, focus } of failures) {
        if (student !== name) continue;
        const jump = () => {
          this.ask({ text, student, focus });
          this.root.scrollIntoView({ block: "start", behavior: "smooth" });
        };
        list.append(make("li", {}, this.button(label, jump, this.asking)));
      }
      all.append(make("h4", {}, titles[name] ?? name), list);
    }
    return [all];
  }

  saveRow() {
    const svg = () => download("paths.svg", new Blob([svgOf(this.picture)], { type: "image/svg+xml" }));
    const csv = () => download("paths.csv", new Blob([csvOf(this.scene, this.view)], { type: "text/csv" }));
    const buttons = [
      this.button("picture, PNG", () => this.picture.canvas.toBlob((blob) => download("paths.png", blob))),
      this.button("picture, SVG", svg),
      this.button("data, CSV", csv),
    ];
    if (!this.model.get("live")) {
      const share = this.button("link to this view", () => this.share());
      buttons.push(share);
    }
    this.shared = make("span", { role: "status" });
    return make("div", { class: "row save" }, "save", ...buttons, this.shared);
  }

  /** Add all elements to the page. */
  arrange(canvas) {
    this.tip = make("div", { class: "tip", hidden: true });
    this.alert = make("p", { class: "alert", role: "alert", hidden: true });
    this.badge = make("p", { class: "badge", role: "note" });
    this.said = make("p", { class: "said", role: "status" });
    this.near = make("p", { class: "said near", hidden: true });
    this.legend = make("p", { class: "legend" });
    const stage = make("div", { class: "stage" }, canvas, this.tip);
    const left = make("div", { class: "left" }, stage, ...this.depthRow(), this.legend, this.badge);
    const main = make("div", { class: "main" }, left, this.lens.element);
    this.root.append(...this.heading(), this.textRow(), ...this.exampleRow(), this.alert, this.choiceRow());
    this.root.append(this.text.element, main, this.said, this.near, this.curves.element, this.saveRow(), ...this.gallery());
  }
}
