// What if: other arguments or other requests, computed by the exporter's own predictor.

import { byId, element, keep, mark, say } from "./dom.js";
import { bytes, count, isKnown, number, signed, UNKNOWN } from "./format.js";
import { copy } from "./metric.js";

const WAIT_MILLISECONDS = 250;

const ROWS = [
  ["KV cache blocks", (o) => o.blocks, count],
  ["KV cache tokens", (o) => o.capacity_tokens, count],
  ["KV cache size", (o) => o.capacity_bytes, bytes],
  ["Requests of full length at once", (o) => o.full_length_concurrency, number],
  ["Requests of the mean size at once", (o) => o.requests?.mean, count],
  ["Room for more requests now", (o) => o.headroom_requests, count],
];

const FIELDS = ["kv_cache_dtype", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization",
  "max_model_len", "mean_prompt_tokens", "mean_output_tokens"];
const DTYPES = ["", "fp8", "auto"];

const OLD_MILLISECONDS = 14000;

let subject, timer, controller, isSeen = false, askedAt;

export function setUpWhatIf() {
  const form = byId("whatif-form");
  form.prepend(...FIELDS.map(createField));
  form.addEventListener("input", later);
  form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  form.addEventListener("reset", () => setTimeout(ask));
  const button = byId("whatif-copy");
  button.addEventListener("click", () => copy(byId("whatif-flags").textContent, button));
  new IntersectionObserver((entries) => {
    isSeen = entries.at(-1).isIntersecting;
    askIfOld();
  }).observe(byId("whatif"));
}

function createField(name) {
  const id = `fault-${name}`;
  const field = name === "kv_cache_dtype"
    ? element("select", { name, "aria-describedby": id }, ...DTYPES.map((value) => element("option", { value }, value || "as today")))
    : element("input", { name, inputmode: "decimal", "aria-describedby": id });
  const label = name.startsWith("mean") ? name.replaceAll("_", " ") : name;
  return element("label", {}, `${label} `, field, element("span", { class: "fault", id }));
}

/** The engine that is asked about; another one is asked about anew once somebody looks. */
export function lookAtWhatIf(target, engine) {
  byId("whatif").hidden = !isKnown(engine.engine);
  if (!isKnown(engine.engine)) return;
  const isSame = subject?.target === target.target && subject?.engine === engine.engine;
  subject = { target: target.target, engine: engine.engine };
  if (!isSame) askedAt = undefined;
  askIfOld();
}

/** Today's numbers follow the engine, while somebody looks. */
function askIfOld() {
  if (isSeen && !(performance.now() - askedAt < OLD_MILLISECONDS)) ask();
}

function later() {
  clearTimeout(timer);
  timer = setTimeout(ask, WAIT_MILLISECONDS);
}

async function ask() {
  clearTimeout(timer);
  if (!subject) return;
  askedAt = performance.now();
  controller?.abort();
  controller = new AbortController();
  const { signal } = controller;
  const given = [...new FormData(byId("whatif-form"))].filter(([, value]) => value !== "");
  mark(byId("whatif-result"), "aria-busy", "true");
  try {
    const query = new URLSearchParams([...Object.entries(subject), ...given]);
    const response = await fetch(`api/v1/predict?${query}`, { signal });
    const answer = await response.json();
    if (signal.aborted) return;
    if (response.ok) show(answer); else refuse(answer);
  } catch (error) {
    if (!signal.aborted) refuse({ title: "The exporter did not answer", detail: error.message });
  }
  if (!signal.aborted) mark(byId("whatif-result"), "aria-busy", undefined);
}

function show(answer) {
  faults([]);
  const { today, changed, difference } = answer;
  placeholders(today.arguments, answer.workload);
  const isChanged = [...new FormData(byId("whatif-form"))].some(([, value]) => value !== "");
  const problem = changed.starts ? "" : `vLLM would not start: ${changed.error ?? "the reason is unknown"}`;
  message(problem, "critical");
  byId("whatif-table").hidden = false;
  keep(byId("whatif-rows"), ROWS, ([label]) => label, ([label]) => {
    const cells = ["today", "changed", "difference"].map(() => element("td", { class: "n" }));
    return { node: element("tr", {}, element("th", { scope: "row" }, label), ...cells), cells };
  }, ({ cells }, [, of, words]) => {
    const [before, after] = [of(today), of(changed)];
    const by = of(difference) ?? (isKnown(before) && isKnown(after) ? after - before : undefined);
    say(cells[0], words(before));
    say(cells[1], isChanged ? words(after) : "");
    say(cells[2], !isChanged ? "" : isKnown(by) ? signed(words)(by) : UNKNOWN);
    mark(cells[2], "data-sign", isChanged && isKnown(by) && by !== 0 && (by > 0 ? "more" : "less"));
    cells.forEach((cell) => mark(cell, "data-unknown", cell.textContent === UNKNOWN && ""));
  });
  byId("whatif-copyable").hidden = !answer.flags;
  say(byId("whatif-flags"), answer.flags ?? "");
  alternatives(answer.alternatives ?? []);
}

function alternatives(all) {
  const list = all.filter((one) => one.starts !== false && (one.gained_requests > 0 || one.gained_blocks > 0));
  byId("whatif-alternatives").hidden = !list.length;
  keep(byId("whatif-list"), list, (one) => one.flags, () => {
    const view = { flags: element("code"), gain: element("b"), price: element("span", { class: "unit" }) };
    view.node = element("li", {}, view.flags, " ", view.gain, " ", view.price);
    return view;
  }, (view, one) => {
    say(view.flags, one.flags);
    say(view.gain, gain(one));
    say(view.price, one.price ?? "");
  });
}

function gain({ gained_requests: requests, gained_blocks: blocks }) {
  const parts = [requests && `${signed(number)(requests)} requests`, blocks && `${signed(count)(blocks)} blocks`];
  return parts.filter(Boolean).join(", ");
}

/** Empty fields show what counts today. */
function placeholders(today, workload) {
  const known = { ...today, ...workload };
  for (const field of byId("whatif-form").querySelectorAll("input")) {
    mark(field, "placeholder", isKnown(known[field.name]) ? format(known[field.name]) : UNKNOWN);
  }
  const dtype = byId("whatif-form").elements.kv_cache_dtype.options[0];
  say(dtype, `as today${isKnown(today?.kv_cache_dtype) ? ` (${today.kv_cache_dtype})` : ""}`);
}

const format = (value) => (typeof value === "number" && !Number.isInteger(value) ? number(value) : String(value));

/** Problem details in words: each fault at its field, the rest above. */
function refuse(problem) {
  const list = problem.faults ?? [];
  const rest = list.filter((fault) => !faultField(fault));
  const isAllAtFields = list.length > 0 && !rest.length;
  const words = [problem.title, !isAllAtFields && problem.detail,
    ...rest.map((one) => `${one.key} ${one.problem}`)];
  message([...new Set(words.filter(Boolean))].join(": "), "warning");
  faults(list);
  byId("whatif-table").hidden = true;
  byId("whatif-copyable").hidden = true;
  byId("whatif-alternatives").hidden = true;
}

const faultField = ({ key }) => byId("whatif-form").elements[key];

function faults(list) {
  for (const field of byId("whatif-form").elements) {
    if (!field.name) continue;
    const fault = list.find((one) => one.key === field.name);
    mark(field, "aria-invalid", fault && "true");
    say(byId(`fault-${field.name}`), fault?.problem ?? "");
  }
}

function message(words, severity) {
  byId("whatif-message").hidden = !words;
  mark(byId("whatif-message"), "data-severity", severity);
  say(byId("whatif-message"), words);
}
