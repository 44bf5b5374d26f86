// What pages do beyond HTML: keys, confirmations, and the stream that says what changed. No page needs it to be read.
"use strict";

const dialog = () => document.getElementById("confirm");

function open_dialog(id) {
  const template = document.getElementById(id);
  if (!template) return;
  dialog().replaceChildren(template.content.cloneNode(true));
  dialog().showModal();
  const field = dialog().querySelector("[autofocus], textarea, button");
  if (field) field.focus();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-dialog]");
  if (button) open_dialog(button.dataset.dialog);
  if (event.target.closest("[data-close]")) dialog().close();
  const all = event.target.closest("[data-all]");
  if (all) document.querySelectorAll(`input[name="${all.dataset.all}"]`).forEach((box) => (box.checked = all.checked));
});

// A key presses the visible button or link that names it. Keys typed into a field stay there.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  // A field of a dialog that was just closed keeps the focus until the page is drawn again.
  const field = event.target.matches("input, textarea, select") && !event.target.closest("dialog:not([open])");
  if (field || dialog().open) return;
  const pressed = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!pressed) return;
  event.preventDefault();
  pressed.click();
});

// A form is sent once: a second click would only be refused.
document.addEventListener("submit", (event) => {
  const button = event.target.querySelector("button:not([type=button])");
  if (button) setTimeout(() => (button.disabled = true));
});

document.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers["X-CSRF-Token"] = document.querySelector('meta[name="csrf"]').content;
});

// A form that is refused shows why, as it would without htmx. A part that asks for itself is left as it is, and asks again.
document.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr, requestConfig } = event.detail;
  if (xhr.status < 400 || requestConfig.verb !== "post") return;
  event.detail.shouldSwap = true;
  event.detail.target = document.body;
  event.detail.swapOverride = "innerHTML";
});

// A stream names what changed; the part of the page that shows it asks for itself again.
function listen(part) {
  const stream = new EventSource(part.dataset.stream);
  stream.addEventListener("changed", () => {
    const busy = part.dataset.unless && part.querySelector(part.dataset.unless);
    if (document.visibilityState === "visible" && !dialog().open && !busy) htmx.trigger(part, "changed");
  });
  addEventListener("pagehide", () => stream.close());
}

// The report is a document of its own: its frame is as tall as it is.
function fit(frame) {
  const grow = () => {
    const inside = frame.contentDocument && frame.contentDocument.documentElement;
    if (inside) frame.height = inside.scrollHeight;
  };
  frame.addEventListener("load", () => {
    grow();
    new ResizeObserver(grow).observe(frame.contentDocument.body);
  });
  grow();
}

document.querySelectorAll("[data-stream]").forEach(listen);
document.querySelectorAll("iframe[data-fit]").forEach(fit);
