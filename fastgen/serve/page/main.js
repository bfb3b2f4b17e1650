// Puts the parts together: what to paint, how, and what to do with the result.

import { Live, Recorder } from "/page/live.js";
import { Photo } from "/page/photo.js";
import * as stage from "/page/stage.js";
import { Wire } from "/page/wire.js";

const $ = (id) => document.getElementById(id);
const video = $("video");
const wire = new Wire();
const recorder = new Recorder();

function settings() {
  const second = $("second").value || undefined;
  return {
    style: document.querySelector("#styles input:checked")?.value,
    second,
    share: second && Number($("share").value) / 100,
    strength: Number($("strength").value) / 100,
    preserve_color: $("color").checked,
    stabilize: $("stabilize-row").hidden ? 0 : Number($("stabilize").value) / 100,
    side: Number($("side").value),
    transfer: $("transfer").value,
  };
}

const live = new Live(video, wire, settings);
let photo = null;
let clipUrl = null;

// ---------------------------------------------------------------- styles and limits

const KINDS = { small: "fast", half: "detailed", full: "most detailed" };

// A style is not blended with itself.
function blended() {
  const { style } = settings();
  for (const option of $("second").options) option.disabled = option.value === style;
  if ($("second").value === style) $("second").value = "";
  $("share-row").hidden = $("second").value === "";
  $("share-value").textContent = `${$("share").value} %`;
}

function card(style, checked) {
  const label = document.createElement("label");
  label.className = "style";
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "style", value: style.name, checked });
  const image = document.createElement("img");
  Object.assign(image, { src: style.thumbnail, alt: "", width: 192, height: 128, loading: "lazy" });
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = style.title;
  const kind = document.createElement("span");
  kind.className = "kind";
  kind.textContent = KINDS[style.size] ?? style.size;
  label.append(input, image, name, kind);
  return label;
}

async function load() {
  const response = await fetch("/styles");
  const body = await response.json();
  if (!response.ok) throw new Error(body.detail);
  const first = body.styles.find((s) => s.size === "small") ?? body.styles[0];
  $("styles").replaceChildren(...body.styles.map((s) => card(s, s === first)));
  $("second").append(...body.styles.map((s) => new Option(`${s.title}, ${KINDS[s.size] ?? s.size}`, s.name)));
  $("second-row").hidden = body.styles.length < 2;
  blended();
  $("stabilize-row").hidden = !body.stabilize;
  for (const option of [...$("side").options]) {
    option.textContent = `${option.value} pixels`;
    if (option.value * option.value * 0.75 > body.max_frame_pixels) option.remove();
  }
  $("about").textContent = `fastgen ${body.version}, ${body.backend} ${body.precision}`;
  photo = new Photo(settings, body);
}

// ---------------------------------------------------------------- what to paint

function leave() {
  recorder.stop();
  live.stop();
  photo?.close();
  stage.figures(null);
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  if (video.src) {
    URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.load();
  }
  $("camera").setAttribute("aria-pressed", "false");
  for (const id of ["play", "record", "save", "device-row"]) $(id).hidden = true;
  stage.relax();
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    stage.complain(error.message);
  }
}

async function open(blob) {
  leave();
  if (blob.type.startsWith("video/")) await openVideo(blob);
  else await openPhoto(blob);
}

async function openPhoto(blob) {
  if (photo === null) throw new Error("The styles are not here yet; try again in a moment.");
  await photo.show(blob);
  $("save").hidden = photo.result === null;
}

async function openVideo(blob) {
  video.srcObject = null;
  video.loop = true;
  video.src = URL.createObjectURL(blob);
  try {
    await video.play();
  } catch {
    leave();
    throw new Error("This browser cannot play that video.");
  }
  for (const id of ["play", "record", "save"]) $(id).hidden = false;
  $("play").textContent = "Pause";
  begin("Video");
}

function begin(what) {
  stage.say(`${what}: waiting for the first frame …`);
  live.start(() => stage.say(`${what} is painted live.`));
}

async function openCamera(deviceId) {
  leave();
  if (!navigator.mediaDevices) {
    throw new Error("Browsers lend the camera to https pages and localhost only: start the server with --ssl-certfile.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: 1280 }, height: { ideal: 720 }, ...(deviceId ? { deviceId: { exact: deviceId } } : {}) },
    });
  } catch (error) {
    const known = {
      NotAllowedError: "The camera was not allowed. Allow it beside the page's address and try again.",
      NotFoundError: "No camera was found.",
      NotReadableError: "The camera is used by another program.",
    };
    throw new Error(known[error.name] ?? `The camera cannot be used: ${error.message}`);
  }
  video.srcObject = stream;
  await video.play();
  stream.getVideoTracks()[0].addEventListener("ended", () => {
    leave();
    stage.complain("The camera is gone.");
  });
  $("camera").setAttribute("aria-pressed", "true");
  for (const id of ["record", "save"]) $(id).hidden = false;
  begin("Camera");
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter((d) => d.kind === "videoinput");
  const current = stream.getVideoTracks()[0].getSettings().deviceId;
  $("device").replaceChildren(...devices.map((d, i) => new Option(d.label || `Camera ${i + 1}`, d.deviceId, false, d.deviceId === current)));
  $("device-row").hidden = devices.length < 2;
}

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  offered(file ? [file] : []);
});
$("camera").addEventListener("click", () => {
  if ($("camera").getAttribute("aria-pressed") === "true") {
    leave();
    stage.say("The camera is off.");
  } else guarded(() => openCamera());
});
$("device").addEventListener("change", () => guarded(() => openCamera($("device").value)));
$("example").addEventListener("click", () =>
  guarded(async () => open(await (await fetch("/page/example.jpg")).blob())),
);

let depth = 0;
for (const [name, step] of [["dragenter", 1], ["dragleave", -1]]) {
  document.addEventListener(name, () => {
    depth += step;
    document.body.classList.toggle("over", depth > 0);
  });
}
document.addEventListener("dragover", (event) => event.preventDefault());
function offered(list) {
  const file = [...list].find((f) => /^(image|video)\//.test(f.type));
  if (file) guarded(() => open(file));
  else if (list.length) stage.complain("That is neither a picture nor a video.");
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("over");
  offered(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => offered(event.clipboardData.files));

// ---------------------------------------------------------------- how

function changed() {
  blended();
  $("strength-value").textContent = `${$("strength").value} %`;
  const steady = Number($("stabilize").value);
  $("stabilize-value").textContent = steady ? `${steady} %` : "off";
  if (live.running) live.refresh();
  else if (photo?.open) guarded(() => photo.paint().then(() => ($("save").hidden = false)));
}
$("settings").addEventListener("input", changed);
$("settings").addEventListener("submit", (event) => event.preventDefault());

// ---------------------------------------------------------------- results

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

$("save").addEventListener("click", () => {
  const name = `fastgen-${settings().style}`;
  if (photo?.result) {
    download(photo.result, `${name}.${{ "image/jpeg": "jpg", "image/webp": "webp" }[photo.result.type] ?? "png"}`);
  } else stage.picture().toBlob((blob) => blob && download(blob, `${name}.png`), "image/png");
});

$("play").addEventListener("click", () => {
  if (video.paused) video.play();
  else video.pause();
});
video.addEventListener("play", () => ($("play").textContent = "Pause"));
video.addEventListener("pause", () => ($("play").textContent = "Play"));
video.addEventListener("seeked", () => live.running && live.refresh());

function recorded(blob) {
  video.loop = true;
  $("record").textContent = "Record";
  $("record").setAttribute("aria-pressed", "false");
  if (clipUrl) URL.revokeObjectURL(clipUrl);
  clipUrl = URL.createObjectURL(blob);
  $("clip").href = clipUrl;
  $("clip").download = `fastgen.${blob.type.includes("mp4") ? "mp4" : "webm"}`;
  $("clip").hidden = false;
  stage.say(`Recorded ${(blob.size / 1e6).toFixed(1)} MB.`);
}

$("record").addEventListener("click", () =>
  guarded(async () => {
    if (recorder.active) {
      recorder.stop();
      return;
    }
    if (!window.MediaRecorder) throw new Error("This browser cannot record.");
    const file = video.srcObject === null;
    if (file) {
      // A video is recorded once from its beginning to its end.
      video.loop = false;
      video.pause();
      video.currentTime = 0;
      await new Promise((done) => video.addEventListener("seeked", done, { once: true }));
      video.muted = false;
      video.volume = 0.001; // the sound is recorded, and next to unheard
    }
    const sound = recorder.start(stage.picture(), file ? video : null, recorded);
    $("record").textContent = "Stop recording";
    $("record").setAttribute("aria-pressed", "true");
    stage.say(sound ? "Recording with sound …" : "Recording …");
    if (file) await video.play();
  }),
);
video.addEventListener("ended", () => recorder.stop());

// ---------------------------------------------------------------- the connection

function connection(state, text) {
  $("connection").dataset.state = state;
  $("connection").textContent = text;
}
wire.addEventListener("state", ({ detail }) => {
  const lost = !detail.open && detail.wanted;
  connection(lost ? "closed" : "open", detail.open ? "live" : lost ? "not connected" : "ready");
  if (detail.open) stage.relax();
  else if (lost && live.running) stage.complain(`The stream was interrupted${detail.reason ? `: ${detail.reason}` : ""}. Trying again …`);
});
wire.addEventListener("problem", ({ detail }) => stage.complain(detail.header.message));
guarded(async () => {
  try {
    await load();
    connection("open", "ready");
  } catch (error) {
    connection("closed", "not connected");
    throw new Error(`The styles could not be loaded: ${error.message}`);
  }
});
