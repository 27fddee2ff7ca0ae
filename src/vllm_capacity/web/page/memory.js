// Where the memory of each GPU goes, and predicted terms against reported ones.

import { byId, element, keep, mark, say, shape } from "./dom.js";
import { bytes, count, isKnown, signedPercent, UNKNOWN, word } from "./format.js";
import { metricButton, showNumber } from "./metric.js";

const STACKS = [["held", "now", "nvml"], ["reported", "reported", "reported"], ["predicted", "predicted", "predicted"]];
const ORDER = ["weights", "kv_cache", "cuda_graph", "non_torch", "context", "reserved",
  "activation_peak", "other_processes", "unaccounted", "unattributed"];

const NAMES = { weights: "weights", activation_peak: "activation peak", non_torch: "outside PyTorch",
  cuda_graph: "CUDA graphs", kv_cache: "KV cache" };
const nameOf = (component) => NAMES[component] ?? word(component);

export function showGpus(gpus) {
  byId("gpus").hidden = !gpus.length;
  keep(byId("gpu-list"), gpus, (gpu) => `${gpu.gpu_uuid} ${gpu.mig_uuid ?? ""}`, createGpu, updateGpu);
}

function createGpu() {
  const view = {
    name: element("h3"), sum: element("p", { class: "sum" }), bars: {}, legend: element("ul", { class: "legend" }),
    rows: element("div", { class: "stacks" }), growth: element("p", { class: "note" }),
  };
  for (const [key, label] of STACKS) {
    const title = shape("title");
    const bar = shape("svg", { class: "stack", role: "img" }, title, shape("g"),
      shape("line", { class: "budget", y1: "0", y2: "100%" }));
    const row = element("div", { class: "stack-row" }, element("span", { class: "unit" }, label), bar);
    view.bars[key] = { row, bar, title };
    view.rows.append(row);
  }
  view.node = element("article", { class: "gpu" },
    element("div", { class: "gpu-head" }, view.name, view.sum), view.rows, view.legend, view.growth);
  return view;
}

function updateGpu(view, gpu) {
  say(view.name, [`GPU ${gpu.gpu}`, gpu.name, gpu.mig_uuid && "MIG instance"].filter(Boolean).join(" · "));
  mark(view.name, "title", gpu.mig_uuid ?? gpu.gpu_uuid);
  const budget = isKnown(gpu.budget_bytes) ? `, budget ${bytes(gpu.budget_bytes)}` : ", budget unknown";
  say(view.sum, `${bytes(gpu.used_bytes)} of ${bytes(gpu.total_bytes)} used${budget}`);
  const whole = Math.max(gpu.total_bytes ?? 0, gpu.budget_bytes ?? 0, gpu.used_bytes,
    ...STACKS.map(([key]) => positive(gpu[key] ?? {})));
  for (const [key, label] of STACKS) drawStack(view.bars[key], gpu[key] ?? {}, label, whole, gpu.budget_bytes);
  legend(view.legend, gpu);
  const growth = gpu.unaccounted_growth_bytes_per_second;
  const hours = isKnown(growth) ? growth * 3600 : undefined;
  const isGrowing = Math.abs(hours ?? 0) >= 1048576;
  say(view.growth, isGrowing ? `Unaccounted memory ${hours > 0 ? "grows" : "shrinks"} by ${bytes(Math.abs(hours))} an hour.` : "");
}

const components = (stack) => ORDER.filter((name) => isKnown(stack[name]))
  .concat(Object.keys(stack).filter((name) => !ORDER.includes(name)))
  .map((name) => ({ name, size: stack[name] }));

const positive = (stack) => components(stack).reduce((sum, { size }) => sum + Math.max(0, size), 0);

function drawStack({ row, bar, title }, stack, label, whole, budget) {
  const shown = components(stack);
  row.hidden = !shown.length;
  say(title, `${label}: ${shown.map(({ name, size }) => `${nameOf(name)} ${bytes(size)}`).join(", ")}`);
  let from = 0;
  const placed = shown.filter(({ size }) => size > 0).map((one) => {
    const at = from;
    from += one.size;
    return { ...one, at };
  });
  keep(bar.querySelector("g"), placed, (one) => one.name,
    (one) => ({ node: shape("rect", { class: `c-${one.name}`, y: 0, height: "100%" }) }),
    ({ node }, { at, size }) => {
      mark(node, "x", `${((100 * at) / whole).toFixed(3)}%`);
      mark(node, "width", `${((100 * size) / whole).toFixed(3)}%`);
    });
  const line = bar.querySelector("line");
  mark(line, "visibility", isKnown(budget) ? undefined : "hidden");
  for (const end of ["x1", "x2"]) mark(line, end, isKnown(budget) ? `${((100 * budget) / whole).toFixed(3)}%` : 0);
}

function legend(list, gpu) {
  const names = [...new Set(STACKS.flatMap(([key]) => components(gpu[key] ?? {}).map(({ name }) => name)))];
  names.sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
  keep(list, names, (name) => name, (name) => {
    const view = { swatch: element("span", { class: `swatch c-${name}` }), value: element("b"), rest: element("span", { class: "unit" }) };
    view.node = element("li", {}, view.swatch, element("span", {}, `${nameOf(name)} `), view.value, view.rest);
    return view;
  }, (view, name) => {
    const [held, reported, predicted] = STACKS.map(([key]) => gpu[key]?.[name]);
    say(view.value, isKnown(held) ? bytes(held) : isKnown(reported) ? bytes(reported) : bytes(predicted));
    const others = isKnown(held) && isKnown(predicted) ? ` predicted ${bytes(predicted)}` : isKnown(held) ? "" : " not in use";
    say(view.rest, others);
  });
}

const CAPACITY = [
  ["KV cache tokens", "kv_cache_tokens", "predicted_kv_cache_capacity_tokens"],
  ["KV cache blocks", "kv_cache_blocks", "predicted_kv_cache_blocks"],
];

/** One table: the terms of the memory budget, then what follows from them. */
export function showTerms(target, engine) {
  const { prediction } = target;
  say(byId("prediction-message"), sentence(prediction));
  mark(byId("prediction-message"), "data-severity", prediction.supported ? "ok" : "unknown");
  const terms = target.memory_terms.map((term) => ({ ...term, key: term.term, show: bytes,
    label: nameOf(term.term), quantity: term.term === "kv_cache" ? undefined : term.term,
    predicted: term.predicted_bytes, reported: term.reported_bytes, low: term.predicted_low_bytes,
    high: term.predicted_high_bytes }));
  const rows = [...terms, ...capacityRows(engine.values)];
  const isKnownTerm = (row) => isKnown(row.predicted) || isKnown(row.reported);
  const shown = rows.filter(isKnownTerm);
  byId("terms-table").hidden = !shown.length;
  keep(byId("term-rows"), shown, (row) => row.key, createTerm, updateTerm);
}

function sentence({ message, architecture, kv_cache_dtype: dtype, tensor_parallel_size: tp }) {
  const what = [architecture, dtype && `KV cache ${dtype}`, tp && `tensor parallel ${tp}`].filter(Boolean);
  return [message, ...what].join(" · ");
}

function capacityRows(values) {
  const reportedTokens = values.kv_cache_capacity_tokens?.reported ?? values.kv_cache_capacity_tokens?.derived;
  const measured = [reportedTokens, values.kv_cache_blocks];
  return CAPACITY.map(([label, quantity, metric], i) => ({
    key: quantity, label, show: count,
    predicted: values[metric], reported: measured[i], origin: isKnown(values[metric]) ? "derived" : null,
    error_ratio: values.prediction_error_ratio?.[quantity], metric, quantity,
  }));
}

// Terms are predicted without what the log measured, to be compared with it: no metric of the
// prediction in use says the same, but that of their error does.
function createTerm(row) {
  const cells = ["predicted", "reported", "error", "origin"].map(() => element("td"));
  const number = (name, label, at) =>
    (name ? metricButton(name, { label: `${label}: ${row.label}`, at }) : element("span"));
  const view = { cells, predicted: number(row.metric, "Predicted"), range: element("span", { class: "range" }),
    error: number(row.quantity && "prediction_error_ratio", "Error", row.quantity) };
  cells[0].append(view.predicted, view.range);
  cells[2].append(view.error);
  view.node = element("tr", {}, element("th", { scope: "row" }, row.label), ...cells);
  return view;
}

function updateTerm({ cells, predicted, error, range }, row) {
  const isRange = isKnown(row.low) && isKnown(row.high) && row.low !== row.high;
  showNumber(predicted, row.show(row.predicted));
  say(range, isRange ? `${row.show(row.low)} – ${row.show(row.high)}` : "");
  showNumber(cells[1], row.show(row.reported));
  showNumber(error, signedPercent(row.error_ratio));
  say(cells[3], row.origin ?? UNKNOWN);
}
