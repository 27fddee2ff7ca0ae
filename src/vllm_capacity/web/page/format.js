// Numbers in words. What is unknown is undefined, and is said to be so, never drawn as 0.

const NBSP = "\u00a0";
export const UNKNOWN = "unknown";
export const isKnown = (value) => value !== undefined && value !== null;
const isInfinite = (value) => value === "+Inf" || value === Infinity;

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const wall = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const wallExact = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

const told = (words) => (value) =>
  !isKnown(value) ? UNKNOWN : isInfinite(value) ? "∞" : words(value);

export const count = told((n) => whole.format(n));
export const number = told((n) => (Math.abs(n) >= 1000 ? whole : digits).format(n));
export const percent = told((x) => {
  const share = x * 100;
  const places = Math.abs(share) >= 0.05 && Math.abs(share) < 9.95 ? 1 : 0;
  return `${share.toFixed(places)}${NBSP}%`;
});
export const signed = (words) => told((n) => {
  const text = words(Math.abs(n));
  return text === words(0) ? text : `${n > 0 ? "+" : "−"}${text}`;
});

export const signedPercent = signed(percent);

export const bytes = told((n) => {
  const sizes = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = Math.abs(n);
  let unit = 0;
  while (size >= 1024 && unit < sizes.length - 1) { size /= 1024; unit += 1; }
  const places = unit === 0 || size >= 100 ? 0 : size >= 10 ? 1 : 2;
  return `${n < 0 ? "−" : ""}${size.toFixed(places)}${NBSP}${sizes[unit]}`;
});

export const duration = told((seconds) => {
  if (seconds < 90) return `${Math.round(seconds)}${NBSP}s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)}${NBSP}min`;
  if (seconds < 172800) return `${digits.format(Math.round(seconds / 360) / 10)}${NBSP}h`;
  return `${Math.round(seconds / 86400)}${NBSP}days`;
});

/** Time until the cache is full; +Inf while it does not fill. */
export const fullIn = (seconds) =>
  isInfinite(seconds) ? "not filling" : seconds === 0 ? "now" : duration(seconds);

export const clock = (seconds) => wall.format(seconds * 1000);
export const clockExact = (seconds) => wallExact.format(seconds * 1000);

const LIMITS = {
  none: "nothing", kv_cache: "KV cache", sequences: "max_num_seqs",
  batched_tokens: "max_num_batched_tokens", deferred: "something else (deferred)",
};
export const limit = (value) => LIMITS[value] ?? value ?? UNKNOWN;
export const word = (value) => (isKnown(value) ? String(value).replaceAll("_", " ") : UNKNOWN);

/** A label's value out of what a metric says; without a label the metric's own value. */
export const reading = (values, name, label) => {
  const value = values?.[name];
  return label === undefined ? value : value?.[label];
};

/** The only value of a metric by source, or the first by the order of preference. */
export const anyOf = (values, name) => {
  const sources = Object.entries(values?.[name] ?? {});
  const best = sources.find(([source]) => source === "reported") ?? sources[0];
  return best ? { label: best[0], value: best[1] } : {};
};
