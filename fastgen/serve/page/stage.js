// The two canvases, the slider between them, and messages.

const $ = (id) => document.getElementById(id);
const view = $("view");
const before = $("before");
const after = $("after");
const compare = $("compare");

function split() {
  const value = Number(compare.value);
  view.style.setProperty("--split", `${value}%`);
  view.dataset.edge = value <= 2 ? "left" : value >= 98 ? "right" : "";
}
compare.addEventListener("input", split);
split();

export function size(width, height) {
  if (before.width !== width || before.height !== height) {
    for (const canvas of [before, after]) {
      canvas.width = width;
      canvas.height = height;
    }
    view.style.setProperty("--ratio", String(width / height));
  }
  $("empty").hidden = true;
  view.hidden = false;
}

export function showBefore(source) {
  before.getContext("2d").drawImage(source, 0, 0, before.width, before.height);
}

export function showAfter(source) {
  const context = after.getContext("2d");
  if (source instanceof ImageData) context.putImageData(source, 0, 0);
  else {
    context.clearRect(0, 0, after.width, after.height);
    context.drawImage(source, 0, 0, after.width, after.height);
  }
}

export function picture() {
  return after;
}

export function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

export function complain(text) {
  $("alert-text").textContent = text;
  $("alert").hidden = false;
}

export function relax() {
  $("alert").hidden = true;
}
$("alert-close").addEventListener("click", () => {
  relax();
  $("picture").focus();
});

// Texts by the name of the figure; one that is not given is not shown, null hides them all.
export function figures(values) {
  $("figures").hidden = values === null;
  for (const cell of $("figures").querySelectorAll("dd")) {
    cell.parentElement.hidden = values?.[cell.id] === undefined;
    cell.textContent = values?.[cell.id] ?? "";
  }
}

// Light, dark, or what the system says.
const THEMES = ["auto", "light", "dark"];
function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme-name").textContent = name;
  $("theme").setAttribute("aria-label", `Colours of the page: ${name}`);
}
let chosen = localStorage.getItem("theme");
if (!THEMES.includes(chosen)) chosen = "auto";
theme(chosen);
$("theme").addEventListener("click", () => {
  chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
  localStorage.setItem("theme", chosen);
  theme(chosen);
});
