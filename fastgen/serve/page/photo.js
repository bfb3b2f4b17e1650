// One photo: its file goes to POST /stylize, the result comes back as a file.

import * as stage from "/page/stage.js";

const KNOWN = ["image/jpeg", "image/png", "image/webp"];
const SHOWN = 2048; // longer side of what is drawn; the download has all pixels

export class Photo {
  #settings;
  #limits;
  #file = null;
  #result = null;
  #busy = false;
  #again = false;
  #turn = 0;

  constructor(settings, limits) {
    this.#settings = settings;
    this.#limits = limits;
  }

  get open() {
    return this.#file !== null;
  }

  get result() {
    return this.#result;
  }

  close() {
    this.#file = this.#result = null;
    this.#turn++;
  }

  async show(blob) {
    this.close();
    const turn = this.#turn;
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      throw new Error("This browser cannot read that picture.");
    }
    if (turn !== this.#turn) return;
    const pixels = bitmap.width * bitmap.height;
    const { max_pixels, max_body } = this.#limits;
    if (KNOWN.includes(blob.type) && blob.size <= max_body && pixels <= max_pixels) {
      this.#file = blob;
    } else {
      this.#file = await smaller(bitmap, Math.min(1, Math.sqrt(max_pixels / pixels)));
      stage.say("The picture is larger than this server takes, or of a kind of its own: it was converted.");
    }
    if (turn !== this.#turn) return;
    const scale = Math.min(1, SHOWN / Math.max(bitmap.width, bitmap.height));
    stage.size(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
    stage.showBefore(bitmap);
    stage.showAfter(bitmap);
    bitmap.close();
    await this.paint();
  }

  // One request at a time; what changed meanwhile is the next one.
  async paint() {
    if (!this.#file) return;
    if (this.#busy) {
      this.#again = true;
      return;
    }
    this.#busy = true;
    try {
      do {
        this.#again = false;
        await this.#once();
      } while (this.#again && this.#file);
    } finally {
      this.#busy = false;
    }
  }

  async #once() {
    const turn = this.#turn;
    const { style, second, share, strength, preserve_color } = this.#settings();
    const blend = second === undefined ? {} : { second, share };
    const query = new URLSearchParams({ style, ...blend, strength, preserve_color });
    stage.say("Painting …");
    const start = performance.now();
    const response = await fetch(`/stylize?${query}`, {
      method: "POST",
      body: this.#file,
      headers: { "content-type": this.#file.type },
    }).catch(() => {
      throw new Error("The server did not answer. Is it still running?");
    });
    if (!response.ok) {
      const text = await response.json().then((b) => b.detail, () => response.statusText);
      stage.say("");
      throw new Error(`The photo was not painted: ${text}`);
    }
    const blob = await response.blob();
    const bitmap = await createImageBitmap(blob);
    if (turn === this.#turn) {
      this.#result = blob;
      stage.showAfter(bitmap);
      const network = /network;dur=([\d.]+)/.exec(response.headers.get("server-timing") ?? "");
      stage.say(`Painted ${bitmap.width}×${bitmap.height}.`);
      stage.figures({
        latency: `${(performance.now() - start).toFixed(0)} ms`,
        network: network ? `${Number(network[1]).toFixed(0)} ms` : "–",
        size: `${bitmap.width}×${bitmap.height}`,
      });
    }
    bitmap.close();
  }
}

async function smaller(bitmap, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(bitmap.width * scale));
  canvas.height = Math.max(1, Math.floor(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.93));
}
