// The connection: server-sent events, polling where there are none, and words for how it stands.

const RETRY_SECONDS = [1, 2, 4, 8, 10];
const PAUSE_HIDDEN_SECONDS = 30;
const SILENT_SECONDS = 30;

/**
 * Follow a document that changes.
 * @param path of the document, which is also its event stream
 * @param heard called with each document
 * @param changed called with "connecting", "live", "lost", "denied" or "paused" when that changes
 */
export function follow(path, heard, changed) {
  let source, timer, watchdog, hiding, state;
  let attempt = 0;
  let seconds = 5;
  let isPolling = !window.EventSource;

  const become = (next) => { if (next !== state) changed((state = next)); };

  function take(text) {
    const status = JSON.parse(text);
    seconds = status.scrape_interval_seconds ?? seconds;
    attempt = 0;
    become("live");
    watch();
    heard(status);
  }

  // A proxy may hold events back: a stream that says nothing is given up for polling.
  function watch() {
    clearTimeout(watchdog);
    if (isPolling) return;
    watchdog = setTimeout(() => {
      isPolling = true;
      close();
      poll();
    }, 1000 * Math.max(SILENT_SECONDS, 4 * seconds));
  }

  function close() {
    source?.close();
    source = undefined;
    clearTimeout(timer);
    clearTimeout(watchdog);
  }

  function later(job, delay) {
    clearTimeout(timer);
    timer = setTimeout(job, delay * 1000);
  }

  function lost(isDenied = false) {
    close();
    become(isDenied ? "denied" : "lost");
    const wait = RETRY_SECONDS[Math.min(attempt, RETRY_SECONDS.length - 1)];
    attempt += 1;
    later(reopen, wait * (0.8 + 0.4 * Math.random()));
  }

  function listen() {
    source = new EventSource(path);
    source.addEventListener("status", (event) => take(event.data));
    source.onerror = () => lost();
    watch();
  }

  /** One document by an ordinary request, which unlike an event stream tells why it fails. */
  async function ask() {
    const response = await fetch(path, { cache: "no-store", headers: { Accept: "application/json" } });
    if (response.status === 401 || response.status === 403) return lost(true);
    if (!response.ok) return lost();
    take(await response.text());
    return undefined;
  }

  async function poll() {
    try {
      await ask();
      if (state === "live") later(poll, Math.max(2, seconds));
    } catch { lost(); }
  }

  async function reopen() {
    if (isPolling) return poll();
    try {
      await ask();
      if (state === "live") listen();
    } catch { lost(); }
    return undefined;
  }

  function visibility() {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(pause, 1000 * PAUSE_HIDDEN_SECONDS);
    else if (state === "paused" || state === "lost") { attempt = 0; close(); reopen(); }
  }

  function pause() {
    close();
    become("paused");
  }

  document.addEventListener("visibilitychange", visibility);
  window.addEventListener("online", visibility);
  become("connecting");
  if (isPolling) poll(); else listen();
}
