// Requests /overview every two seconds and shows it. Everything received is inserted as text, never as markup.

import { lines, spanBar } from "./plots.js";

const EVERY_MS = 2000, TIMEOUT_MS = 10000;
const get = (id) => document.getElementById(id);
let lastAnswer = null, silentSince = null;

const TILES = [
  ["waiting", "Waiting for images"], ["ready", "Ready"], ["running", "Running"], ["sending", "Sending"],
  ["failed", "Refused by the archive"], ["quarantined", "Cannot be used"],
];
const SOURCES = { segmentation: "SEG", structured_report: "SR" };

// --- formatting ---

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "-";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

function bytes(count) {
  if (count === null) return "not counted yet";
  let unit = 0;
  for (; count >= 1024 && unit < 5; unit++) count /= 1024;
  return `${count.toFixed(unit ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hourCycle: "h23" });
const ago = (now, then) => (then === null ? "never" : `${duration(Math.max(1, Math.round(now - then))).replace(".0 s", " s")} ago`);

// --- page elements ---

function made(name, content, attributes = {}) {
  const element = Object.assign(document.createElement(name), attributes);
  element.append(...[content].flat());
  return element;
}

function rows(id, found, nothing) {
  const body = get(id).tBodies[0];
  const columns = get(id).tHead.rows[0].cells;
  const filled = found.map((cells) => made("tr", cells.map((cell, index) =>
    made("td", cell instanceof Node ? cell : String(cell), { className: columns[index].className }))));
  body.replaceChildren(...(filled.length ? filled : [made("tr", made("td", nothing, { colSpan: columns.length }))]));
}

function facts(id, pairs) {
  get(id).replaceChildren(...pairs.flatMap(([name, text, state]) => {
    const value = made("dd", text);
    if (state) value.dataset.state = state;
    return [made("dt", name), value];
  }));
}

function showState(state, text, reasons = []) {
  if (get("state").textContent !== text) get("state").textContent = text; // a screen reader reads it on change
  get("state").dataset.state = state;
  get("reasons").replaceChildren(...reasons.map((reason) => made("li", reason)));
}

// --- content ---

function show(seen) {
  document.body.classList.remove("stale");
  get("who").textContent =
    `${seen.ae_title}, port ${seen.port}; version ${seen.version}; running for ${duration(Math.floor(seen.now - seen.started)).replace(".0 s", " s")}`;
  const wrong = [...seen.not_alive, ...seen.not_ready];
  if (!wrong.length) showState("good", "Accepting studies");
  else showState("bad", seen.not_alive.length ? "Not working properly" : "Not accepting studies", wrong);
  document.title = `mammod: ${wrong.length ? "not ready" : "ready"}`;

  if (seen.jobs === null) showState("bad", "The ledger cannot be read: see the log", wrong);
  else get("tiles").replaceChildren(...TILES.map(([state, name]) => {
    const { count, oldest_seconds: oldest } = seen.jobs[state];
    const bad = count > 0 && ["failed", "quarantined"].includes(state);
    const tile = made("div", [made("dt", name), made("dd", [made("b", String(count)),
      made("small", count ? `oldest ${duration(oldest)}` : "none")])], { className: bad ? "bad" : "" });
    tile.dataset.tile = state;
    return tile;
  }));

  const { at, backlog, per_minute: rates, span_seconds: longest } = seen.history;
  const span = Math.min(longest, Math.max(600, seen.now - (at[0] ?? seen.now))); // a service that just started fills the plot
  lines(get("backlog"), "Unfinished jobs", backlog, at, seen.now, span);
  lines(get("throughput"), "Completed per minute", rates, at, seen.now, span);
  rows("stages", Object.entries(seen.stages).map(([stage, latency]) => latency
    ? [stage, latency.count, duration(latency.p50), duration(latency.p95), spanBar(latency.p50, latency.p95)]
    : [stage, 0, "-", "-", ""]), "");
  rows("last", seen.last_jobs.map((job) => [job.job_id, clock(job.created_at), SOURCES[job.source] ?? job.source, job.state,
    job.state === "done" || job.lesions ? job.lesions : "-", reports(job.reports), duration(job.seconds)]), "No job yet.");
  rows("callers", seen.callers.map((caller) => [caller.ae_title || "(none)", caller.address, ago(seen.now, caller.last_seen),
    caller.accepted, caller.rejected, (caller.last_rejection ?? "").replaceAll("_", " "), caller.instances, caller.refused]),
  "No caller yet.");
  showMachine(seen);
  showBundle(seen.bundle);
}

function reports(kinds) {
  return Object.entries(kinds).map(([kind, states]) => `${kind}: ${Object.entries(states).map(([state, count]) =>
    (count === 1 ? state : `${count} ${state}`)).join(", ")}`).join("; ") || "-";
}

function showMachine(seen) {
  const { archive, workers, spool, audit, queues, reports: boxes } = seen;
  const up = archive.up === null ? "not contacted yet" : archive.up ? `answers; last ${ago(seen.now, archive.last_answer)}`
    : `no answer, ${archive.failures_in_a_row} attempts: ${archive.problem}`;
  const full = spool.free === null || spool.free < spool.min_free ? "bad" : spool.free < 2 * spool.min_free ? "warn" : "";
  const queued = boxes === null ? [] : [
    ["Outbox", `${boxes.queued.count} reports waiting${boxes.queued.count ? `, oldest ${duration(boxes.queued.oldest_seconds)}` : ""}`],
    ...(boxes.committing.count ? [["Commitment", `${boxes.committing.count} stored, not yet committed`]] : [])];
  facts("machine", [
    [`Archive ${archive.name} (${archive.by})`, up, archive.up === false ? "bad" : archive.up ? "good" : ""],
    ["Last report stored", ago(seen.now, archive.last_stored)],
    ...queued,
    ...Object.entries(workers).map(([name, { alive, expected }]) =>
      [`${name}s`, `${alive} of ${expected} alive, ${queues[name === "decoder" ? "decode" : "classify"]} waiting`,
        alive < expected ? "warn" : ""]),
    ["Associations", `${seen.associations_open} open`],
    ["Disk", spool.free === null ? "cannot be read"
      : `${bytes(spool.free)} free of ${bytes(spool.disk)}; instances refused below ${bytes(spool.min_free)}`, full],
    ["Spool", `${bytes(spool.bytes)}; counted every ten minutes`],
    ...seen.certificates.map(({ setting, days_left: days }) => [setting, `${days} days left`,
      days < 3 ? "bad" : days < 30 ? "warn" : ""]),
    ["Audit trail", audit === null ? "none (not configured)"
      : `${audit.delivered} delivered, ${audit.waiting} waiting, ${audit.lost} lost`, audit !== null && audit.lost ? "bad" : ""],
    ["Since the start", `instances ${seen.totals.instances}, lesions ${seen.totals.lesions}, reports stored ${seen.totals.reports}`],
  ]);
}

function showBundle(bundle) {
  facts("bundle", [
    ["Bundle", `${bundle.name} ${bundle.version}, ${bundle.digest}`],
    ["Trained", bundle.trained ? "yes" : "UNTRAINED: its results mean nothing", bundle.trained ? "" : "bad"],
    ["Engine", bundle.engine],
    ["Intended use", bundle.intended_use],
    ["Measured", bundle.metrics.length ? bundle.metrics.slice(0, 3).map((one) =>
      `${one.name} ${one.value.toFixed(3)}${one.low === null ? "" : ` (${one.low.toFixed(3)} to ${one.high.toFixed(3)})`} on ${one.data}, ${one.count} lesions`).join("; ")
      : "nothing; no accuracy is claimed"],
  ]);
}

// --- the loop ---

async function ask() {
  try {
    const answer = await fetch("overview", { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    show(await answer.json());
    lastAnswer = Date.now() / 1000;
    silentSince = null;
  } catch (error) {
    silentSince ??= lastAnswer ?? Date.now() / 1000;
    document.body.classList.add("stale");
    document.title = "mammod: no answer";
    const below = lastAnswer === null ? "" : " The data below is from then.";
    showState("bad", `No answer since ${clock(silentSince)}: the service is stopped or cannot be reached.${below}`);
    if (!(error instanceof TypeError || error instanceof DOMException)) console.error(error); // a fault of this page, not of the network
  }
  setTimeout(ask, EVERY_MS);
}

ask();
