// The verdict in words, whom it is about, and how old it is.

import { byId, element, icon, keep, mark, say, setIcon } from "./dom.js";
import { duration, isKnown, word } from "./format.js";
import { ageOf, sourceOf } from "./fleet.js";

let announced;

export function showVerdict(status, target, engine) {
  const card = byId("verdict");
  mark(card, "data-severity", engine.severity);
  setIcon(byId("severity"), engine.severity);
  say(byId("state"), isKnown(engine.engine) ? word(engine.state) : "no answer");
  say(byId("headline"), engine.verdict.headline);
  keep(byId("parts"), engine.verdict.parts.map((text, i) => ({ text, i })), (part) => part.i,
    () => ({ node: element("li") }), (view, part) => say(view.node, part.text));
  say(byId("model"), engine.model_name ?? "model unknown");
  mark(byId("model"), "title", engine.model_name);
  say(byId("where"), [target.target, isKnown(engine.engine) && `engine ${engine.engine}`,
    target.vllm_version && `vLLM ${target.vllm_version}`].filter(Boolean).join(" · "));
  announce(engine);
}

/** What a screen reader says by itself: only when the headline changes, not each number in it. */
function announce(engine) {
  const { headline, parts } = engine.verdict;
  const gist = `${engine.severity} ${headline.replace(/[\d.,]+/g, "")}`;
  if (gist === announced) return;
  announced = gist;
  say(byId("announcement"), [headline, ...parts].join("; "));
}

export function showFleet(status, engines) {
  const isFleet = engines.length > 1;
  byId("fleet").hidden = !isFleet;
  if (isFleet) say(byId("fleet-sentence"), status.verdict.sentence);
  mark(byId("fleet-sentence"), "data-severity", status.verdict.severity);
}

/** The sources of the target as chips with their age; recomputed every second. */
export function showSources(status, target, sinceReceived) {
  const now = status.generated_timestamp_seconds + sinceReceived;
  keep(byId("sources"), target.sources, (one) => one.source, createChip, (view, one) => {
    const { severity, words } = sourceWords(one, now, status.stale_after_seconds);
    setIcon(view.icon, severity);
    mark(view.node, "data-severity", severity);
    say(view.text, `${one.source}: ${words}`);
    mark(view.node, "title", one.last_error);
  });
}

function createChip() {
  const view = { icon: icon(), text: element("span") };
  view.node = element("li", {}, view.icon, view.text);
  return view;
}

/** How a source does, in words with its age. */
export function sourceWords(source, now, staleAfter) {
  const at = source.last_success_timestamp_seconds;
  const age = isKnown(at) ? Math.max(0, now - at) : undefined;
  const ago = age === undefined ? "never" : `${duration(age)} ago`;
  if (source.up === true) {
    const isStale = source.source !== "config" && age !== undefined && age > staleAfter;
    return { severity: isStale ? "warning" : "ok", words: ago };
  }
  if (source.up === null || source.up === undefined) return { severity: "unknown", words: "not asked yet" };
  if (source.last_reason === "absent") return { severity: "unknown", words: "absent" };
  return { severity: "critical", words: age === undefined ? "failing, never worked" : `failing, last ${ago}` };
}

/** A line over the numbers when they are old, with why; and the numbers turn grey. */
export function showAge(status, target, sinceReceived, connection) {
  const age = ageOf(status, target, sinceReceived);
  const isStale = age !== undefined && age > status.stale_after_seconds && target.engines.length > 0;
  document.documentElement.toggleAttribute("data-stale", isStale);
  byId("stale").hidden = !isStale;
  const vllm = sourceOf(target, "vllm");
  const isSilent = !target.engines.length && vllm?.up !== true;
  if (!isStale) return { age, data: isSilent ? "silent" : "live" };
  const why = connection === "live" ? vllm?.last_error ?? "vLLM has not answered since"
    : "this page cannot reach the exporter";
  say(byId("stale"), `These numbers are ${duration(age)} old: ${why}.`);
  return { age, data: "old" };
}

const LINK = {
  connecting: () => "connecting…",
  live: (age) => (age === undefined ? "live" : `live · updated ${duration(age)} ago`),
  silent: (age) => (age === undefined ? "vLLM has never answered" : `vLLM silent for ${duration(age)}`),
  old: (age) => `data are ${duration(age)} old`,
  lost: (age, since) => `connection lost ${duration(since)} ago, retrying`,
  denied: () => "signed out: reload this page",
  paused: () => "paused while hidden",
};
const LINK_SEVERITY = { live: "ok", silent: "critical", old: "warning", lost: "critical", denied: "critical" };

/** The live indicator in the header; `data` says how the target does while the page is connected. */
export function showLink(connection, { age, data }, lostSeconds) {
  const kind = connection === "live" ? data : connection;
  const severity = LINK_SEVERITY[kind] ?? "unknown";
  mark(byId("link"), "data-severity", severity);
  mark(byId("link"), "data-kind", kind);
  setIcon(byId("link-icon"), severity);
  say(byId("link-words"), LINK[kind](age, lostSeconds));
}
