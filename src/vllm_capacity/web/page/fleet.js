// Which engines there are, the hottest first, and which of them is looked at.

import { isKnown } from "./format.js";

const RANK = { critical: 3, warning: 2, unknown: 1, ok: 0 };
const LEAD = 0.1; // by how much hotter another must be before the page turns to it by itself

export const keyOf = (target, engine) => JSON.stringify([target, engine ?? null]);

/** Every engine with its target; a target without one stands for itself. */
export function enginesOf(status) {
  return status.targets.flatMap((target) => {
    const own = target.engines.length ? target.engines : [silent(target)];
    return own.map((engine) => ({ key: keyOf(target.target, engine.engine), target, engine }));
  });
}

/** What is known of a target that names no engine. */
function silent(target) {
  const vllm = sourceOf(target, "vllm");
  const tried = vllm?.up === false;
  const headline = tried ? `${target.target} does not answer` : `${target.target} has not been asked yet`;
  const parts = tried ? [vllm.last_error ?? "the reason is unknown"] : [];
  return {
    engine: null, model_name: null, state: "unknown", severity: tried ? "critical" : "unknown",
    verdict: { headline, parts }, values: {}, reasons: {},
  };
}

export const sourceOf = (target, name) => target.sources.find((one) => one.source === name);

const heat = ({ engine }) => engine.values.saturation_ratio ?? 0;
const usage = ({ engine }) => engine.values.kv_cache_usage_ratio ?? 0;

/** The hottest first, in the order in which the exporter names its hottest engine. */
export function byHeat(a, b) {
  return RANK[b.engine.severity] - RANK[a.engine.severity] || heat(b) - heat(a) ||
    usage(b) - usage(a);
}

/** The engine to show: the chosen one, else the hottest, without turning at every scrape. */
export function selected(engines, chosen, shown) {
  if (isKnown(chosen)) return engines.find((one) => one.key === chosen);
  const hottest = [...engines].sort(byHeat)[0];
  const current = engines.find((one) => one.key === shown);
  if (!current) return hottest;
  const isHotter = RANK[hottest.engine.severity] > RANK[current.engine.severity] ||
    heat(hottest) - heat(current) > LEAD;
  return isHotter ? hottest : current;
}

/** Seconds since the target last answered, by the server's clock; undefined if it never did. */
export function ageOf(status, target, sinceReceived) {
  const last = sourceOf(target, "vllm")?.last_success_timestamp_seconds;
  if (!isKnown(last)) return undefined;
  return Math.max(0, status.generated_timestamp_seconds - last + sinceReceived);
}
