/* Ratchet's feedback widget: thumbs and a correction for one prediction, by its feedback token. No framework.

   <script src="https://ratchet.example/feedback.js"></script>
   <ratchet-feedback prediction-id="..." token="..." labels='["card_arrival", "lost_card"]'></ratchet-feedback>

   The page gets prediction-id and token from its own server, which asked for the prediction with the API key; the key never
   reaches the browser. The page's origin must be in `serving.cors_origins`.

   Attributes: prediction-id, token; labels (a JSON list: the correction is chosen from it, else it is typed); multiple (several
   labels); type="number" (a number is typed); user; url (the service, if not where the script came from).
   Events: `ratchet-feedback` with {kind, value, feedback_id} once stored, `ratchet-error` with {error}. Both bubble.
   Words: assign to Ratchet.words before the elements appear. Colours: the element's own `color` and `font` are inherited. */
(() => {
  "use strict";
  const origin = document.currentScript ? new URL(".", document.currentScript.src).href : new URL(".", location.href).href;
  const ATTEMPTS = 5, FIRST_MS = 300, LONGEST_MS = 5000;

  const words = {
    question: "Was this answer right?", up: "Yes, it is right", down: "No, it is wrong",
    correction: "What is the right answer?", send: "Send", sending: "Sending…",
    thanks: "Thank you.", failed: "This could not be sent. Please try again.",
  };

  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

  /* Send feedback and return its id. `body` is {prediction_id, kind, value, user?}. Repeats what failed to arrive, or got 429 or
     503, under the same id, so it counts once. Throws an Error with the service's reason. */
  async function sendFeedback(url, token, body) {
    const content = JSON.stringify({ feedback_id: newId(), ...body });
    const address = new URL("feedback", new URL(url.replace(/\/?$/, "/"), location.href));
    for (let attempt = 1; ; attempt++) {
      let reason, wait = Math.random() * Math.min(LONGEST_MS, FIRST_MS * 2 ** (attempt - 1));
      try {
        const response = await fetch(address, {
          method: "POST", body: content, credentials: "omit", referrerPolicy: "no-referrer",
          headers: { "Content-Type": "application/json", "X-Feedback-Token": token },
        });
        const answer = await response.json().catch(() => ({}));
        if (response.ok) return answer.feedback_id;
        reason = new Error(answer.error || `status ${response.status}`);
        const usedUp = (answer.detail || []).some((one) => one.field === "X-Feedback-Token");
        if (usedUp || (response.status !== 429 && response.status !== 503)) throw Object.assign(reason, { final: true });
        wait += 1000 * (Number(response.headers.get("Retry-After")) || 0);
      } catch (error) {
        if (error.final) throw error;
        reason = reason || error;
      }
      if (attempt === ATTEMPTS) throw reason;
      await pause(wait);
    }
  }

  function make(name, properties, ...children) {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  }

  const STYLE = `
    :host { display: inline-block; } [hidden] { display: none !important; }
    div, form { display: flex; flex-wrap: wrap; gap: .5em; align-items: center; margin: 0 0 .25em; }
    button, select, input { font: inherit; color: inherit; background: transparent; border: 1px solid currentColor;
      border-radius: .3em; padding: .2em .6em; min-height: 2em; } button { cursor: pointer; }
    button[aria-pressed=true] { box-shadow: inset 0 0 0 1px currentColor; } button:disabled { opacity: .5; cursor: default; }`;

  class RatchetFeedback extends HTMLElement {
    connectedCallback() {
      if (this.shadowRoot) return;
      const root = this.attachShadow({ mode: "open" });
      const sheet = new CSSStyleSheet(); // not a <style>, which a strict Content-Security-Policy forbids
      sheet.replaceSync(STYLE);
      root.adoptedStyleSheets = [sheet];
      const thumb = (sign, value) => make("button", {
        type: "button", textContent: sign, title: words[value], ariaLabel: words[value], ariaPressed: "false",
        onclick: () => this.rate(value),
      });
      this.thumbs = { up: thumb("👍", "up"), down: thumb("👎", "down") };
      this.answer = this.field();
      this.form = make("form", { hidden: true, onsubmit: (event) => { event.preventDefault(); this.correct(); } },
        make("label", {}, `${words.correction} `, this.answer), make("button", { textContent: words.send }));
      this.status = make("span", { role: "status" });
      root.append(make("div", {}, make("span", { textContent: words.question }), this.thumbs.up, this.thumbs.down),
        this.form, this.status);
    }

    field() {
      const labels = this.getAttribute("labels");
      if (!labels) return make("input", { required: true, type: this.getAttribute("type") === "number" ? "number" : "text", step: "any" });
      const options = JSON.parse(labels).map((label) => make("option", { textContent: label, value: label }));
      const multiple = this.hasAttribute("multiple");
      if (!multiple) options.unshift(make("option", { textContent: "", value: "" }));
      return make("select", { required: !multiple, multiple }, ...options);
    }

    value() {
      if (this.answer.multiple) return Array.from(this.answer.selectedOptions, (option) => option.value);
      return this.answer.type === "number" ? this.answer.valueAsNumber : this.answer.value;
    }

    async rate(value) {
      this.form.hidden = value === "up";
      if (await this.send("rating", value)) {
        for (const [name, thumb] of Object.entries(this.thumbs)) thumb.ariaPressed = String(name === value);
        if (value === "down") this.answer.focus();
      }
    }

    async correct() {
      if (await this.send("correction", this.value())) this.form.hidden = true;
    }

    async send(kind, value) {
      const controls = this.shadowRoot.querySelectorAll("button");
      controls.forEach((control) => { control.disabled = true; });
      this.status.textContent = words.sending;
      const body = { prediction_id: this.getAttribute("prediction-id"), kind, value };
      if (this.getAttribute("user")) body.user = this.getAttribute("user");
      try {
        const id = await sendFeedback(this.getAttribute("url") || origin, this.getAttribute("token"), body);
        this.status.textContent = words.thanks;
        this.tell("ratchet-feedback", { kind, value, feedback_id: id });
        return true;
      } catch (error) {
        this.status.textContent = words.failed;
        this.tell("ratchet-error", { error: error.message });
        return false;
      } finally {
        controls.forEach((control) => { control.disabled = false; });
      }
    }

    tell(name, detail) {
      this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
    }
  }

  window.Ratchet = { sendFeedback, words };
  if (!customElements.get("ratchet-feedback")) customElements.define("ratchet-feedback", RatchetFeedback);
})();
