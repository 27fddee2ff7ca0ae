// The last hour of one engine: what the exporter remembers, and what came in since.

import { isKnown, reading } from "./format.js";

const HOUR_SECONDS = 3600;
const REFRESH_SECONDS = 30; // steps with their preemptions; what happens in between comes by events

const COLUMNS = {
  kv_cache_usage_ratio: "used", usage_peak_ratio: "peak", predicted_usage_ratio: "predicted",
  predicted_low_ratio: "low", predicted_high_ratio: "high", committed_ratio: "committed",
  running_requests: "running", waiting_requests: "waiting", preemptions: "preemptions",
  restarts: "restarts",
};

/** The history of one engine at a time, never more than an hour of it. */
export class History {
  #key; #target; #engine; #steps = []; #recent = []; #latest; #controller; #fetchedAt = -Infinity;
  #step = 5;

  constructor(changed) { this.changed = changed; }

  get points() { return [...this.#steps, ...this.#recent, ...(this.#latest ? [this.#latest] : [])]; }

  /** Seconds between points beyond which they are not joined. */
  get gap() { return 2.6 * this.#step; }

  /** Look at an engine; another one than before starts anew. */
  look(key, target, engine) {
    if (key === this.#key) return;
    this.#key = key;
    [this.#target, this.#engine] = [target, engine];
    this.#steps = [];
    this.#recent = [];
    this.#latest = undefined;
    this.refresh();
  }

  /** After a lost connection: ask at the next document for what was missed, and keep the rest. */
  refresh() {
    this.#controller?.abort();
    this.#fetchedAt = -Infinity;
  }

  /** One more observation, and from time to time the exporter's own steps. */
  add(status, engine) {
    this.#step = Math.max(this.#step, status.scrape_interval_seconds ?? 0);
    const point = pointOf(status.generated_timestamp_seconds, engine.values);
    const before = (this.#recent.at(-1) ?? this.#steps.at(-1))?.at ?? -Infinity;
    if (this.#latest && this.#latest.at > before + 0.7 * this.#step) this.#recent.push(this.#latest);
    this.#latest = isKnown(point.used) ? point : undefined;
    this.#trim(point.at);
    if (point.at - this.#fetchedAt >= REFRESH_SECONDS) {
      this.#fetchedAt = point.at;
      this.#fetch(point.at);
    }
  }

  #trim(now) {
    const isRecent = (point) => point.at >= now - HOUR_SECONDS;
    this.#steps = this.#steps.filter(isRecent);
    this.#recent = this.#recent.filter(isRecent);
  }

  async #fetch(now) {
    this.#controller?.abort();
    const controller = (this.#controller = new AbortController());
    const query = new URLSearchParams({ target: this.#target, engine: this.#engine });
    // The last step may still have been growing: it is asked for again.
    const since = this.#steps.at(-2)?.at;
    if (isKnown(since)) query.set("since", since);
    try {
      const response = await fetch(`api/v1/history?${query}`, { signal: controller.signal });
      if (!response.ok) return;
      this.#merge(await response.json(), now);
    } catch { /* the next refresh asks again; until then events are drawn */ }
  }

  #merge(history, now) {
    this.#step = history.step_seconds;
    const fresh = pointsOf(history.columns);
    if (!fresh.length) return;
    this.#steps = [...this.#steps.filter((point) => point.at < fresh[0].at), ...fresh];
    const last = fresh.at(-1).at;
    this.#recent = this.#recent.filter((point) => point.at > last);
    this.#trim(now);
    this.changed();
  }
}

function pointsOf(columns) {
  const names = Object.entries(COLUMNS).filter(([column]) => columns[column]);
  return columns.timestamp_seconds.map((at, i) => {
    const point = { at };
    for (const [column, name] of names) point[name] = columns[column][i] ?? undefined;
    return point;
  });
}

function pointOf(at, values) {
  const total = values.kv_cache_blocks;
  const share = (blocks) => (isKnown(blocks) && total ? blocks / total : undefined);
  const waiting = Object.values(values.waiting_requests ?? {});
  return {
    at,
    used: values.kv_cache_usage_ratio,
    predicted: share(values.predicted_kv_cache_used_blocks),
    low: share(reading(values, "predicted_kv_cache_used_blocks_bound", "low")),
    high: share(reading(values, "predicted_kv_cache_used_blocks_bound", "high")),
    committed: share(reading(values, "kv_cache_committed_blocks", "expected")),
    running: values.running_requests,
    waiting: waiting.length ? waiting.reduce((sum, n) => sum + n, 0) : undefined,
  };
}
