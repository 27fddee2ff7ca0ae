// A number that says on demand what it means, what its metric is called and where it came from.

import { byId, element, mark, say } from "./dom.js";
import { isKnown, reading, UNKNOWN } from "./format.js";

let about = { status: undefined, target: undefined, engine: undefined };
let descriptions;

/** What the numbers are about from now on. */
export function lookAt(status, target, engine) {
  if (status.version !== about.status?.version) descriptions = undefined;
  about = { status, target, engine };
}

/** A button for one metric of the engine; `label` is what it is called here. */
export function metricButton(name, { label, at }) {
  const button = element("button", { type: "button", class: "metric", "data-metric": name,
    "data-at": at, "aria-haspopup": "dialog" });
  button.meaning = { name, at, label };
  button.addEventListener("click", () => explain(button));
  return button;
}

/** Show a value; unknown ones look and read as such. */
export function showMetric(button, text, at = button.meaning.at) {
  button.meaning.at = at;
  mark(button, "data-at", at);
  showNumber(button, text);
}

/** The same of any node. */
export function showNumber(node, text) {
  say(node, text);
  mark(node, "data-unknown", text === UNKNOWN && "");
  if (node.meaning) mark(node, "aria-label", `${node.meaning.label}: ${text}`);
}

async function described() {
  if (!descriptions) {
    const query = new URLSearchParams({ descriptions: "true", target: about.target.target });
    const response = await fetch(`api/v1/status?${query}`);
    if (!response.ok) throw new Error(`the exporter answered ${response.status}`);
    ({ descriptions } = await response.json());
  }
  return descriptions;
}

async function explain(button) {
  const box = byId("meaning");
  if (box.matches(":popover-open")) box.hidePopover();
  const { name, label } = button.meaning;
  say(byId("meaning-title"), label);
  for (const id of ["meaning-help", "meaning-name", "meaning-origin", "meaning-value"]) say(byId(id), "…");
  byId("meaning-why").hidden = true;
  box.showPopover({ source: button });
  place(box, button);
  box.invoker = button;
  try {
    fill(button.meaning, (await described())[name]);
  } catch (error) {
    say(byId("meaning-help"), `The meaning could not be loaded: ${error.message}.`);
  }
  if (box.matches(":popover-open")) place(box, button);
}

function fill({ name, at }, meaning) {
  const value = innermost(reading(about.engine.values, name, at));
  say(byId("meaning-help"), meaning?.help ?? "No description.");
  say(byId("meaning-name"), selector(name, at, meaning));
  say(byId("meaning-origin"), meaning?.origin ?? UNKNOWN);
  const isPlain = isKnown(value) && typeof value !== "object";
  say(byId("meaning-value"), isPlain ? String(value) : UNKNOWN);
  const why = isPlain ? undefined : reason(name, at);
  byId("meaning-why").hidden = !why;
  say(byId("meaning-why"), why ?? "");
}

/** Of a metric with two labels the only value there is, as the one by window. */
export const innermost = (value) =>
  (isKnown(value) && typeof value === "object" ? Object.values(value)[0] : value);

/** Why a number is not known, as far as the exporter says. */
function reason(name, at) {
  const { engine: { reasons }, target: { prediction, missing_metrics: missing } } = about;
  const found = /used_blocks|committed|ledger/.test(`${name} ${at}`) ? [reasons.occupancy, reasons.ledger]
    : /^predict|_bytes$/.test(name) ? [prediction.message] : [];
  if (missing.length) found.push(`not on vLLM’s page: ${missing.join(", ")}`);
  const said = [...new Set(found.filter(Boolean))].join("; ");
  return `Unknown: ${said || "what it follows from is not on vLLM’s page, or was not seen for long enough"}.`;
}

/** The series as Prometheus has it, to be pasted into a query. */
function selector(name, at, meaning) {
  const { status, target, engine } = about;
  const own = ["model_name", "engine"];
  const [extra] = (meaning?.labels ?? []).filter((one) => !own.includes(one));
  const pairs = [];
  if (status.targets.length > 1) pairs.push(["target", target.target]);
  pairs.push(...own.map((key) => [key, engine[key] ?? ""]));
  if (extra && isKnown(at)) pairs.push([extra, at]);
  const inner = pairs.map(([key, value]) => `${key}=${JSON.stringify(value)}`).join(",");
  return `${meaning?.metric ?? `vllm_capacity_${name}`}${inner && `{${inner}}`}`;
}

function place(box, button) {
  const at = button.getBoundingClientRect();
  const size = box.getBoundingClientRect();
  const left = Math.min(at.left, window.innerWidth - size.width - 8);
  const fitsBelow = at.bottom + size.height + 8 < window.innerHeight;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${Math.max(8, fitsBelow ? at.bottom + 6 : at.top - size.height - 6)}px`;
}

export async function copy(text, button) {
  let isDone = true;
  try { await navigator.clipboard.writeText(text); } catch { isDone = select(button); }
  const before = button.dataset.words ?? (button.dataset.words = button.textContent);
  say(button, isDone ? "Copied" : "Press Ctrl+C");
  setTimeout(() => say(button, before), 2000);
}

/** Without the clipboard, which needs HTTPS, the text is at least marked for Ctrl+C. */
function select(button) {
  const source = byId(button.dataset.copies);
  if (source) getSelection().selectAllChildren(source);
  return false;
}

export function setUpMeaning() {
  const box = byId("meaning");
  const button = byId("meaning-copy");
  button.addEventListener("click", () => copy(byId("meaning-name").textContent, button));
  byId("meaning-close").addEventListener("click", () => box.hidePopover());
  box.addEventListener("toggle", (event) => {
    if (event.newState === "open") byId("meaning-close").focus({ preventScroll: true });
    else if (box.contains(document.activeElement) || document.activeElement === document.body) {
      box.invoker?.focus({ preventScroll: true });
    }
  });
  window.addEventListener("scroll", () => box.matches(":popover-open") && place(box, box.invoker));
}
