// What Python sends (explorer/scene.py), made readable: arrays, paths, words.

const ARRAYS = { float32: Float32Array, int32: Int32Array };

/** A packed array's values: bytes as the kernel sends them, or base64 as an exported page holds them. */
function unpack({ dtype, data }) {
  const bytes =
    typeof data === "string"
      ? Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))
      : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return new ARRAYS[dtype](bytes.slice().buffer); // a copy: numbers must begin at a multiple of four
}

/** One text's way through one model. Station s, token t. */
class Path {
  constructor(model, tokens, words) {
    Object.assign(this, { name: model.name, about: model.about, span: model.span, tokens, words });
    this.times = Array.from(unpack(model.times));
    this.norms = unpack(model.norms);
    this.lensKl = unpack(model.lens_kl);
    this.top = model.lens_shape[2];
    this.lensIds = unpack(model.lens_ids);
    this.lensShares = unpack(model.lens_shares);
    this.points = Object.fromEntries(
      Object.entries(model.points).map(([view, packed]) => [view, { d: packed.shape[2], xyz: unpack(packed) }]),
    );
  }

  /** The last station at or before a depth. */
  station(depth) {
    let s = 0;
    while (s + 1 < this.times.length && this.times[s + 1] <= depth + 1e-4) s++;
    return s;
  }

  /** Where station s of token t is drawn, [x, y, z]; z is 0 in the plane. */
  place(view, s, t) {
    const { d, xyz } = this.points[view];
    const i = (s * this.tokens + t) * d;
    return [xyz[i], xyz[i + 1], d === 3 ? xyz[i + 2] : 0];
  }

  /** Between two stations: on the straight line from one to the other. */
  at(view, depth, t) {
    const s = this.station(depth);
    const here = this.place(view, s, t);
    const span = s + 1 < this.times.length ? this.times[s + 1] - this.times[s] : 0;
    const share = span ? (depth - this.times[s]) / span : 0;
    if (share < 1e-4) return here;
    return this.place(view, s + 1, t).map((end, i) => here[i] + share * (end - here[i]));
  }

  /** The logit lens at a station: [[word, probability], ...], best first. */
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

  /** Does station s lie inside the span that an operator replaces, or at its end? */
  carried(s) {
    return this.span !== null && this.times[s] > this.span[0] + 1e-4 && this.times[s] <= this.span[1] + 1e-4;
  }
}

/** A whole scene. */
class Scene {
  constructor(raw) {
    Object.assign(this, { text: raw.text, tokens: raw.tokens, views: raw.views, settings: raw.settings });
    this.paths = raw.models.map((model) => new Path(model, raw.tokens.length, raw.words));
    this.kl = unpack(raw.kl);
    this.shared = Array.from(unpack(raw.shared));
    this.apart = unpack(raw.apart);
    this.depth = this.paths[0].times.at(-1);
  }

  /** Distance teacher–student in the picture, at each shared depth. */
  shownDistance(view, t) {
    return this.shared.map((depth) => {
      const [a, b] = this.paths.map((path) => path.at(view, depth, t));
      return Math.hypot(...a.map((x, i) => x - b[i]));
    });
  }
}

const number = (x, digits = 3) =>
  x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(0) : `${Number(x.toPrecision(digits))}`;

/** A word in little room: long runs of spaces as their number, long words cut. */
function brief(word, most = 12) {
  const letters = [...word.replace(/·{5,}/g, (run) => `·×${run.length}`)];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : letters.join("");
}
const percent = (x) => (x < 0.005 ? "<1 %" : `${Math.round(100 * x)} %`);
