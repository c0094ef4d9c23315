// The explorer: controls wired to the panels. The kernel computes scenes; everything else happens here.

class Explorer extends Controls {
  constructor(model, root) {
    super(model, root);
    Object.assign(this, { depth: model.get("depth"), focus: 0, selected: new Set() });
    root.classList.add("lft-explorer");
    // JupyterLab must not see the keys that are typed here: a and b insert cells, d d deletes one, 0 0 restarts the kernel
    root.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
    this.text = new TextPanel((t) => this.toggle(t));
    this.lens = new LensPanel((depth) => this.go(depth));
    this.curves = new CurvesPanel(() => this.refresh());
    const canvas = make("canvas", { tabindex: 0, role: "img" });
    this.picture = new Picture(canvas, { pick: (t) => this.toggle(t), tell: (mark, place) => this.hover(mark, place) });
    this.arrange(canvas);
    this.handlers = {
      scene: () => this.newScene(),
      view: () => this.changeView(model.get("view")),
      selected: () => this.chosenInPython(),
      busy: () => this.showState(),
      error: () => this.showState(),
      depth: () => this.go(model.get("depth"), false),
    };
    for (const [name, handler] of Object.entries(this.handlers)) model.on(`change:${name}`, handler);
    this.watchTheme();
    this.newScene();
    this.chosenInPython();
    this.showState();
  }

  /** Follow JupyterLab's theme, or elsewhere the reader's preference. */
  watchTheme() {
    const wish = window.matchMedia("(prefers-color-scheme: dark)");
    const apply = () => {
      const light = document.body.dataset.jpThemeLight;
      this.root.dataset.theme = (light === undefined ? wish.matches : light === "false") ? "dark" : "light";
      const style = getComputedStyle(this.root);
      for (const name of ["ink", "muted", "line", "paper"])
        this.picture.theme[name] = style.getPropertyValue(`--${name}`).trim() || this.picture.theme[name];
      this.picture.stale = true;
      if (this.scene) this.picture.draw();
    };
    this.themes = new MutationObserver(apply);
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
    wish.addEventListener("change", apply);
    this.unwatch = () => wish.removeEventListener("change", apply);
    requestAnimationFrame(apply); // the style sheet may come after the script
    apply();
  }

  close() {
    this.stop();
    this.themes.disconnect();
    this.unwatch();
    for (const [name, handler] of Object.entries(this.handlers)) this.model.off(`change:${name}`, handler);
  }

  /** Request another scene from the kernel; an exported page has a fixed set. */
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

  /** Apply a selection made in Python; ignore positions outside this text. */
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
    const scene = new Scene(raw),
      before = this.scene,
      same = before?.text === scene.text;
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
      ...scene.paths.flatMap((path, m) => [
        make("span", { style: `color: ${path.color}` }, `${"●■◆"[m]} `),
        `${path.title}: ${path.about}   `,
      ]),
      "┄ joins the same token",
    );
    this.refresh();
    if (this.askedAt) this.root.dataset.waited = Math.round(performance.now() - this.askedAt);
    this.root.dataset.scene = Number(this.root.dataset.scene ?? 0) + 1;
  }

  /** After a new scene, view, selection or focus. */
  refresh() {
    const { settings } = this.scene,
      flow = settings.steps !== null;
    Object.assign(this.student, { value: settings.student });
    Object.assign(this.second, { value: settings.second ?? "" });
    for (const option of this.second.options) option.disabled = option.value === settings.student;
    Object.assign(this.solver, { value: settings.solver ?? "euler", disabled: !flow || !this.model.get("live") });
    Object.assign(this.steps, { value: settings.steps ?? 1, disabled: !flow || !this.model.get("live") });
    this.preparation.value = settings.preparation;
    const [kind, dims] = this.view.split(" "),
      live = this.model.get("live");
    for (const input of this.root.querySelectorAll("input[type=radio]"))
      // an exported file has a fixed set of views
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
    this.tellKernel(
      "selected",
      [...selected].sort((a, b) => a - b),
    );
    this.refresh();
  }

  /** Move to a depth and update all that depends on it. */
  go(depth, save = true) {
    if (!this.scene) return;
    this.depth = Math.max(0, Math.min(depth, this.scene.depth));
    this.slider.value = this.depth;
    this.where.textContent = `depth ${layers(this.depth)} of ${layers(this.scene.depth)}`;
    this.picture.show(this.scene, this.view, this.depth, this.selected, this.focus);
    this.lens.mark(this.depth);
    this.curves.mark(this.depth);
    if (this.playing && Math.floor(this.depth) === this.spoken) return;
    this.spoken = Math.floor(this.depth);
    this.say();
    if (save && !this.playing) this.tellKernel("depth", this.depth);
  }

  say() {
    const seen = this.scene.paths.map((path) => path.depthIndex(this.depth)),
      best = this.scene.paths.map((path, m) => path.lens(seen[m], this.focus)[0]);
    const word = brief(this.scene.tokens[this.focus]);
    const heard = this.scene.paths.map((path, m) => {
      const late = this.depth - path.times[seen[m]] >= 1 ? ` (its last state, at ${layers(path.times[seen[m]])})` : "";
      return `${path.title} “${brief(best[m][0])}” ${percent(best[m][1])}${late}`; // ridge has none inside the span
    });
    const lost = this.scene.students.map((path) => `${path.title} ${number(path.kl[this.focus], 2)}`).join(", ");
    this.said.textContent = `After “${word}”, KL in nats: ${lost}. At depth ${layers(this.depth)}: ${heard.join(", ")}.`;
    this.sayNear();
    this.picture.canvas.setAttribute(
      "aria-label",
      `Paths of ${this.picture.tokensShown().length} tokens, ${this.view}. ${this.said.textContent}`,
    );
  }

  /** Name the states nearest to the selected token in focus, in all dimensions. */
  sayNear() {
    this.near.hidden = !this.selected.has(this.focus) || this.scene.tokens.length < 2;
    if (this.near.hidden) return;
    const found = this.scene.paths.map((path) => {
      const near = path.nearest(path.depthIndex(this.depth), this.focus);
      return `${path.title} ${near.map(([t, far]) => `“${brief(this.scene.tokens[t])}” (${t}) ${number(far, 2)}`).join(", ")}`;
    });
    this.near.textContent = `Nearest in all dimensions, token (position) distance: ${found.join("; ")}.`;
  }

  /** Put the view into the address, and the address into the clipboard. */
  async share() {
    window.location.replace(`#${fragmentOf(this)}`);
    try {
      await navigator.clipboard.writeText(window.location.href);
      this.shared.textContent = "Copied: this page's address with the view.";
    } catch {
      this.shared.textContent = "The page's address now holds this view: copy it.";
    }
  }

  /** Restore a view from the fragment of the address; ignore what this page does not have. */
  restore(fragment) {
    const given = new URLSearchParams(fragment),
      known = this.model.get("students");
    if (known.includes(given.get("student")))
      this.ask({ student: given.get("student"), second: known.includes(given.get("second")) ? given.get("second") : "" });
    const count = this.scene.tokens.length,
      inside = (t) => Number.isInteger(t) && t >= 0 && t < count;
    if (given.has("tokens")) {
      const wanted = given.get("tokens").split(",").filter(Boolean).map(Number);
      this.selected = new Set(wanted.filter(inside));
    }
    if (given.has("focus") && inside(Number(given.get("focus")))) this.focus = Number(given.get("focus"));
    if (this.scene.views[given.get("view")]) this.view = given.get("view");
    const depth = Number(given.get("depth"));
    if (given.has("depth") && Number.isFinite(depth)) this.depth = Math.max(0, Math.min(depth, this.scene.depth));
    this.refresh();
  }

  stepDepth(event) {
    const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 6, PageDown: -6 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.go(by > 0 ? Math.floor(this.depth + 1e-6) + by : Math.ceil(this.depth - 1e-6) + by);
  }

  play() {
    if (this.depth >= this.scene.depth) this.go(0);
    this.playButton.textContent = "❚❚ pause";
    let last = performance.now();
    const frame = (now) => {
      const depth = this.depth + ((now - last) / 1000) * 3; // three layers per second
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
    const { m, t, s } = mark,
      path = this.scene.paths[m];
    const depth = path.times[s],
      lens = path
        .lens(s, t)
        .map(([word, share]) => make("div", {}, make("bdi", {}, brief(word, 40)), ` ${percent(share)}`));
    const head = make("b", {}, make("bdi", {}, brief(this.scene.tokens[t], 40)));
    this.tip.replaceChildren(
      head,
      ` token ${t} · ${path.title} · depth ${number(depth, 4)} · norm ${number(path.value(path.norms, s, t))}`,
      ...lens,
    );
    const right = place[0] > this.picture.canvas.clientWidth - 230;
    Object.assign(this.tip.style, {
      left: `${place[0] + (right ? -225 : 14)}px`,
      top: `${Math.min(place[1] + 12, this.picture.canvas.clientHeight - 130)}px`,
    });
  }

  showState() {
    const busy = this.model.get("busy"),
      error = this.model.get("error");
    this.root.setAttribute("aria-busy", busy !== "");
    this.progress.hidden = busy === "";
    this.waiting.textContent = busy;
    this.alert.hidden = error === "";
    this.alert.textContent = error;
    if (error && this.scene) this.refresh(); // reset the controls to the current scene
  }
}

function render({ model, el }) {
  const explorer = new Explorer(model, el);
  el.explorer = explorer; // for tests and debugging
  return () => explorer.close();
}

export default { render };
