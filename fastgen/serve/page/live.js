// A camera or a video: newest frame out, painting in. Two frames at most are without an answer, so
// one can travel while the other is painted, and the server's speed is the pace.

import * as stage from "/page/stage.js";

const IN_FLIGHT = 2;
const KEPT = 30;

export class Live {
  #video;
  #wire;
  #settings;
  #fresh = false;
  #running = false;
  #cut = true;
  #number = 0;
  #slots = [];
  #latencies = [];
  #arrivals = [];
  #networks = [];
  #callback = 0;
  #onFirst = null;
  #most = Infinity; // pixels of a frame

  // settings() gives {style, second, share, strength, preserve_color, stabilize, side, transfer}.
  constructor(video, wire, settings) {
    this.#video = video;
    this.#wire = wire;
    this.#settings = settings;
    wire.addEventListener("frame", ({ detail }) => this.#show(detail));
    wire.addEventListener("dropped", ({ detail }) => this.#answered(detail.mine));
    wire.addEventListener("problem", ({ detail }) => this.#answered(detail.mine));
    wire.addEventListener("hello", ({ detail }) => {
      this.#most = detail.header.limits.frame_pixels;
      this.#cut = true;
      this.#pump();
    });
  }

  get running() {
    return this.#running;
  }

  start(onFirst) {
    this.#running = true;
    this.#cut = true;
    this.#onFirst = onFirst;
    this.#latencies = [];
    this.#arrivals = [];
    this.#networks = [];
    this.#wire.connect();
    this.#watch();
    this.refresh();
  }

  stop() {
    this.#running = false;
    this.#wire.disconnect(); // a place for somebody else
    stage.figures(null);
  }

  // The frame that is shown is painted again: settings changed, or the video was moved.
  refresh() {
    this.#fresh = true;
    this.#pump();
  }

  #watch() {
    const tick = () => {
      if (!this.#running) return;
      this.refresh();
      this.#callback = this.#video.requestVideoFrameCallback
        ? this.#video.requestVideoFrameCallback(tick)
        : requestAnimationFrame(tick);
    };
    if (this.#callback && this.#video.cancelVideoFrameCallback) {
      this.#video.cancelVideoFrameCallback(this.#callback);
    }
    tick();
  }

  #pump() {
    const video = this.#video;
    if (!this.#running || !this.#fresh || !this.#wire.open || video.readyState < 2) return;
    if (this.#wire.unanswered.size >= IN_FLIGHT) return;
    this.#fresh = false;
    this.#send();
  }

  async #send() {
    const video = this.#video;
    const { side, transfer, ...wanted } = this.#settings();
    const longer = Math.max(video.videoWidth, video.videoHeight);
    const most = Math.sqrt(this.#most / (video.videoWidth * video.videoHeight));
    const scale = Math.min(1, side / longer, most);
    const width = Math.max(1, Math.floor(video.videoWidth * scale));
    const height = Math.max(1, Math.floor(video.videoHeight * scale));
    const slot = this.#slots.pop() ?? { canvas: document.createElement("canvas") };
    slot.captured = performance.now();
    if (slot.canvas.width !== width || slot.canvas.height !== height) {
      slot.canvas.width = width;
      slot.canvas.height = height;
      slot.context = slot.canvas.getContext("2d", { willReadFrequently: true });
    }
    slot.context.drawImage(video, 0, 0, width, height);
    const id = this.#number++;
    const header = { type: "frame", id, ...wanted, cut: this.#cut };
    this.#cut = false;
    if (transfer === "raw") {
      const pixels = slot.context.getImageData(0, 0, width, height).data;
      Object.assign(header, { format: "rgba", reply: "rgba", width, height });
      this.#wire.send(header, pixels, slot);
      return;
    }
    // The place is taken before the file is made: no third frame starts meanwhile.
    this.#wire.unanswered.set(id, slot);
    const blob = await new Promise((done) => slot.canvas.toBlob(done, "image/jpeg", 0.85));
    const file = new Uint8Array(await blob.arrayBuffer());
    if (!this.#wire.open || !this.#wire.unanswered.has(id)) return;
    this.#wire.send({ ...header, format: "file", reply: "jpeg" }, file, slot);
  }

  async #show({ header, payload, mine }) {
    let source;
    if (header.format === "rgba") {
      const bytes = new Uint8ClampedArray(payload.buffer, payload.byteOffset, payload.byteLength);
      source = new ImageData(bytes, header.width, header.height);
    } else {
      source = await createImageBitmap(new Blob([payload], { type: "image/jpeg" }));
    }
    if (this.#running) {
      stage.size(header.width, header.height);
      if (mine) stage.showBefore(mine.canvas);
      stage.showAfter(source);
      if (mine) this.#count(header, performance.now() - mine.captured);
      this.#onFirst?.();
      this.#onFirst = null;
    }
    source.close?.();
    this.#answered(mine);
  }

  #answered(slot) {
    if (slot && this.#slots.length < IN_FLIGHT) this.#slots.push(slot);
    this.#pump();
  }

  #count(header, latency) {
    const now = performance.now();
    this.#arrivals.push(now);
    while (this.#arrivals[0] < now - 2000) this.#arrivals.shift();
    for (const [list, value] of [[this.#latencies, latency], [this.#networks, header.ms.network]]) {
      list.push(value);
      if (list.length > KEPT) list.shift();
    }
    const span = (now - this.#arrivals[0]) / 1000;
    const fps = span > 0.2 ? ((this.#arrivals.length - 1) / span).toFixed(1) : "–";
    const others = header.streams > 1 ? `, ${header.streams} streams` : "";
    stage.figures({
      fps,
      latency: `${median(this.#latencies).toFixed(0)} ms`,
      network: `${median(this.#networks).toFixed(0)} ms${others}`,
      size: `${header.width}×${header.height}`,
    });
  }
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}

// Records a canvas, and the sound of a video where the browser lends it.
export class Recorder {
  #recorder = null;

  get active() {
    return this.#recorder !== null;
  }

  // Returns whether the sound is in it.
  start(canvas, video, done) {
    const stream = canvas.captureStream();
    const lend = video && (video.captureStream ?? video.mozCaptureStream);
    const sound = lend ? lend.call(video).getAudioTracks() : [];
    for (const track of sound) stream.addTrack(track);
    const kinds = ["video/webm;codecs=vp8,opus", "video/webm", "video/mp4"];
    const mimeType = kinds.find((kind) => MediaRecorder.isTypeSupported(kind));
    const recorder = new MediaRecorder(stream, { mimeType, videoBitsPerSecond: 8_000_000 });
    const parts = [];
    recorder.ondataavailable = ({ data }) => data.size && parts.push(data);
    recorder.onstop = () => {
      this.#recorder = null;
      for (const track of stream.getVideoTracks()) track.stop();
      done(new Blob(parts, { type: recorder.mimeType.split(";")[0] }));
    };
    recorder.start(1000);
    this.#recorder = recorder;
    return sound.length > 0;
  }

  stop() {
    if (this.#recorder?.state === "recording") this.#recorder.stop();
  }
}
