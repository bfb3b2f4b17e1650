// The WebSocket: four bytes with the header's length, the header as JSON, the payload.

const encoder = new TextEncoder();
const decoder = new TextDecoder();

export function pack(header, payload = new Uint8Array(0)) {
  const text = encoder.encode(JSON.stringify(header));
  const message = new Uint8Array(4 + text.length + payload.byteLength);
  new DataView(message.buffer).setUint32(0, text.length, true);
  message.set(text, 4);
  message.set(payload, 4 + text.length);
  return message;
}

export function unpack(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, size)));
  return [header, new Uint8Array(buffer, 4 + size)];
}

// Events: "state" (open or closed), "hello", "frame", "dropped", "problem".
// Frames without an answer are counted, so that whoever sends can keep to a small number.
export class Wire extends EventTarget {
  #socket = null;
  #wait = 500;
  #wanted = false;
  unanswered = new Map();

  get open() {
    return this.#socket !== null && this.#socket.readyState === WebSocket.OPEN;
  }

  connect() {
    this.#wanted = true;
    if (this.#socket !== null) return;
    const url = new URL("/ws", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    let reason = "";
    socket.onmessage = ({ data }) => {
      const [header, payload] = unpack(data);
      if (header.type === "hello") this.#wait = 500;
      if (header.type === "error") {
        reason = header.message;
        header.type = "problem";
      }
      let mine = null;
      if (header.id !== undefined) {
        mine = this.unanswered.get(header.id) ?? null;
        this.unanswered.delete(header.id);
      }
      this.#tell(header.type, { header, payload, mine });
    };
    socket.onclose = (event) => {
      this.#socket = null;
      for (const mine of this.unanswered.values()) this.#tell("dropped", { mine });
      this.unanswered.clear();
      const wanted = this.#wanted;
      this.#tell("state", { open: false, wanted, reason: event.reason || reason });
      // Closed by us, and wanted again since: at once. Otherwise with longer and longer pauses.
      const pause = event.code === 1000 && event.wasClean ? 0 : this.#wait;
      if (this.#wanted) setTimeout(() => this.#wanted && this.connect(), pause);
      this.#wait = Math.min(this.#wait * 2, 8000);
    };
    socket.onopen = () => this.#tell("state", { open: true });
  }

  disconnect() {
    this.#wanted = false;
    this.#socket?.close(1000);
  }

  send(header, payload, mine) {
    this.unanswered.set(header.id, mine);
    this.#socket.send(pack(header, payload));
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
