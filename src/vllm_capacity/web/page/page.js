// The page: what each document changes on it. Everything comes from /api/v1.

import { setUpChart, showChart } from "./chart.js";
import { byId, element, keep, mark, say } from "./dom.js";
import { setUpFacts, showFacts } from "./facts.js";
import { enginesOf, keyOf, selected } from "./fleet.js";
import { isKnown } from "./format.js";
import { History } from "./history.js";
import { follow } from "./live.js";
import { showGpus, showTerms } from "./memory.js";
import { lookAt, setUpMeaning } from "./metric.js";
import { setUpPool, showPool } from "./pool.js";
import { ageEngines, setUpEngines, showArguments, showEngines, showSourceTable } from "./tables.js";
import { showAge, showFleet, showLink, showSources, showVerdict } from "./verdict.js";
import { lookAtWhatIf, setUpWhatIf } from "./whatif.js";

let status, receivedAt, connection = "connecting", changedAt = Date.now();
let chosen = readAddress(); // the key of the engine asked for; undefined: the hottest
let shown; // the engine that is shown, as of the last document

const history = new History(() => drawHistory());
const secondsSince = (moment) => (moment === undefined ? 0 : (Date.now() - moment) / 1000);

function heard(next) {
  status = next;
  receivedAt = Date.now();
  render();
}

function changed(next) {
  if (next === "live" && connection !== "connecting") history.refresh();
  if (next === "lost" && connection === "denied") changedAt = Date.now();
  if (next === "live" || connection === "live" || connection === "connecting") changedAt = Date.now();
  connection = next;
  tick();
}

function render() {
  const engines = enginesOf(status);
  if (!engines.length) return say(byId("headline"), "No target is configured");
  shown = selected(engines, chosen, shown?.key) ?? gone(engines);
  const { target, engine } = shown;
  lookAt(status, target, engine);
  document.documentElement.dataset.ready = status.sequence;
  showFleet(status, engines);
  showVerdict(status, target, engine);
  showPool(engine.values, engine.reasons);
  showFacts(engine.values);
  showTerms(target, engine);
  showGpus(gpusOf(target, engine));
  showArguments(target);
  showEngines(engines, shown.key);
  picker(engines);
  lookAtWhatIf(target, engine);
  if (isKnown(engine.engine)) {
    history.look(shown.key, target.target, engine.engine);
    history.add(status, engine);
  }
  drawHistory();
  document.title = `${engine.verdict.headline} · vLLM capacity`;
  tick();
  return undefined;
}

/** An engine that was asked for and is not there; where its target is silent, that target. */
function gone(engines) {
  const [name, label] = JSON.parse(chosen);
  const target = status.targets.find((one) => one.target === name);
  if (target && !target.engines.length) return engines.find((one) => one.target === target);
  const why = target ? target.sources.find((one) => one.source === "vllm")?.last_error
    : "the exporter does not watch this target";
  const headline = `${name}${isKnown(label) ? `, engine ${label}` : ""} is not there`;
  return {
    key: chosen,
    target: target ?? { target: name, sources: [], engines: [], arguments: [], memory_terms: [],
      missing_metrics: [], values: {}, prediction: { message: "Nothing is predicted", supported: false } },
    engine: { engine: null, model_name: null, state: "unknown", severity: "critical", values: {},
      reasons: {}, verdict: { headline, parts: why ? [why] : [] } },
  };
}

/** The GPUs that the engine is on; all of them where no engine is known to be on any. */
function gpusOf(target, engine) {
  const own = status.gpus.filter(({ engines }) =>
    engines.some(([name, label]) => name === target.target && (!isKnown(engine.engine) || label === engine.engine)));
  return own.length || status.gpus.some(({ engines }) => engines.length) ? own : status.gpus;
}

function drawHistory() {
  if (!status) return;
  // What passed without a document is a gap at the right edge, not a pause of the clock.
  const now = status.generated_timestamp_seconds + secondsSince(receivedAt);
  showChart(history.points, now, history.gap);
}

/** What changes by the mere passing of time: ages, and the words about them. */
function tick() {
  if (!status || !shown) return showLink(connection, { data: "live" }, secondsSince(changedAt));
  const since = secondsSince(receivedAt);
  const age = showAge(status, shown.target, since, connection);
  showSources(status, shown.target, since);
  showSourceTable(status, since);
  ageEngines(status, since);
  showLink(connection, age, secondsSince(changedAt));
  if (connection !== "live" && since % 5 < 1) drawHistory();
  return undefined;
}

function picker(engines) {
  const select = byId("picker");
  byId("picker-label").hidden = engines.length < 2;
  if (document.activeElement === select) return; // an open list does not move
  const name = ({ target, engine }) => [target.target, isKnown(engine.engine) && `engine ${engine.engine}`,
    engine.model_name].filter(Boolean).join(" · ");
  const options = [{ key: "", text: "hottest engine" }, ...engines.map((one) => ({ key: one.key, text: name(one) }))];
  keep(select, options, (one) => one.key, ({ key }) => ({ node: element("option", { value: key }) }),
    ({ node }, one) => say(node, one.text));
  select.value = chosen ?? "";
}

function choose(key) {
  chosen = key || undefined;
  const address = new URLSearchParams();
  if (chosen) {
    const [target, engine] = JSON.parse(chosen);
    address.set("target", target);
    if (isKnown(engine)) address.set("engine", engine);
  }
  window.history.replaceState(null, "", chosen ? `#${address}` : location.pathname + location.search);
  if (status) render();
}

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  return address.has("target") ? keyOf(address.get("target"), address.get("engine")) : undefined;
}

function setUpTheme() {
  const themes = ["auto", "light", "dark"];
  const button = byId("theme");
  const root = document.documentElement;
  const show = () => {
    const theme = root.dataset.theme ?? "auto";
    say(byId("theme-word"), theme);
    mark(button, "aria-label", `Theme: ${theme}`);
  };
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme ?? "auto") + 1) % themes.length];
    if (next === "auto") delete root.dataset.theme; else root.dataset.theme = next;
    try { localStorage.setItem("theme", next === "auto" ? "" : next); } catch { /* not kept, then */ }
    show();
  });
  show();
}

setUpTheme();
setUpMeaning();
setUpPool();
setUpFacts(byId("facts"));
setUpChart();
setUpEngines((key) => choose(key));
setUpWhatIf();
byId("picker").addEventListener("change", (event) => choose(event.target.value));
window.addEventListener("hashchange", () => { chosen = readAddress(); if (status) render(); });
setInterval(tick, 1000);
follow("api/v1/status", heard, changed);
