// Unpacks what Python sends (explorer/scene.py): arrays, paths, words.

const ARRAYS = { float32: Float32Array, int32: Int32Array };

/** Unpack an array: bytes from the kernel, or base64 in an exported page. */
function unpack({ dtype, data }) {
  const bytes =
    typeof data === "string"
      ? Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))
      : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return new ARRAYS[dtype](bytes.slice().buffer); // a copy: numbers must begin at a multiple of four
}

/** Rows of two or three numbers as [x, y, z]. */
function triples(packed) {
  const [rows, d] = packed.shape,
    xyz = unpack(packed);
  return Array.from({ length: rows }, (_, i) => [xyz[i * d], xyz[i * d + 1], d === 3 ? xyz[i * d + 2] : 0]);
}

/** The path of one text through one model. Depth index s, token t. */
class Path {
  constructor(model, tokens, words) {
    const { name, title, about, color, span, distortion } = model;
    Object.assign(this, { name, title, about, color, span, distortion, tokens, words });
    this.times = Array.from(unpack(model.times));
    this.norms = unpack(model.norms);
    this.lensKl = unpack(model.lens_kl);
    this.top = model.lens_shape[2];
    this.lensIds = unpack(model.lens_ids);
    this.lensShares = unpack(model.lens_shares);
    this.tracked = unpack(model.tracked);
    this.near = unpack(model.near);
    this.distances = unpack(model.distances);
    this.neighbors = model.near.shape[2];
    if (model.kl) Object.assign(this, { kl: unpack(model.kl), shared: Array.from(unpack(model.shared)), apart: unpack(model.apart) });
    this.points = Object.fromEntries(
      Object.entries(model.points).map(([view, packed]) => [view, { d: packed.shape[2], xyz: unpack(packed) }]),
    );
  }

  /** The last depth index at or before a depth. */
  depthIndex(depth) {
    let s = 0;
    while (s + 1 < this.times.length && this.times[s + 1] <= depth + 1e-4) s++;
    return s;
  }

  /** The projected state of token t at depth index s, [x, y, z]; z is 0 in 2-D. */
  place(view, s, t) {
    const { d, xyz } = this.points[view];
    const i = (s * this.tokens + t) * d;
    return [xyz[i], xyz[i + 1], d === 3 ? xyz[i + 2] : 0];
  }

  /** The projected state at any depth, interpolated linearly. */
  at(view, depth, t) {
    const s = this.depthIndex(depth);
    const here = this.place(view, s, t);
    const span = s + 1 < this.times.length ? this.times[s + 1] - this.times[s] : 0;
    const share = span ? (depth - this.times[s]) / span : 0;
    if (share < 1e-4) return here;
    return this.place(view, s + 1, t).map((end, i) => here[i] + share * (end - here[i]));
  }

  /** The logit lens at a depth index: [[word, probability], ...], best first. */
  lens(s, t) {
    const start = (s * this.tokens + t) * this.top;
    return Array.from({ length: this.top }, (_, i) => [
      this.words[this.lensIds[start + i]],
      this.lensShares[start + i],
    ]);
  }

  value(table, s, t) {
    return table[s * this.tokens + t];
  }

  /** The nearest states of a token at a depth index, in all dimensions: [[token, distance], ...]. */
  nearest(s, t) {
    const start = (s * this.tokens + t) * this.neighbors;
    return Array.from({ length: this.neighbors }, (_, i) => [this.near[start + i], this.distances[start + i]]);
  }

  /** Is the depth index inside the span that an operator replaces, or at its end? */
  carried(s) {
    return this.span !== null && this.times[s] > this.span[0] + 1e-4 && this.times[s] <= this.span[1] + 1e-4;
  }
}

/** All data of one text: the teacher's path first, then one student's or two. */
class Scene {
  constructor(raw) {
    const { text, tokens, targets, views, settings } = raw;
    Object.assign(this, { text, tokens, targets, views, settings });
    this.paths = raw.models.map((model) => new Path(model, tokens.length, raw.words));
    this.landmarks = Object.fromEntries(
      Object.entries(views).map(([view, { landmarks }]) => [view, landmarks ? triples(landmarks) : []]),
    );
    this.students = this.paths.slice(1);
    this.kl = this.students[0].kl;
    this.depth = this.paths[0].times.at(-1);
  }

  /** Projected distance between teacher and a student at each depth that they share. */
  shownDistance(view, student, t) {
    return student.shared.map((depth) => {
      const [a, b] = [this.paths[0], student].map((path) => path.at(view, depth, t));
      return Math.hypot(...a.map((x, i) => x - b[i]));
    });
  }
}

/** The scenes of two students as one. */
function together(first, second) {
  return {
    ...first,
    words: { ...first.words, ...second.words },
    models: [...first.models, second.models[1]],
    settings: { ...first.settings, second: second.settings.student },
  };
}

const number = (x, digits = 3) =>
  x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(0) : `${Number(x.toPrecision(digits))}`;

/** Shorten a word: long runs of spaces as their number, long words truncated. */
function brief(word, most = 12) {
  const letters = [...word.replace(/·{5,}/g, (run) => `·×${run.length}`)];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : letters.join("");
}
/** A depth in layers: whole where it is whole. */
const layers = (depth) => `${Number(depth.toFixed(1))}`;
const percent = (x) => (x < 0.005 ? "<1 %" : `${Math.round(100 * x)} %`);
