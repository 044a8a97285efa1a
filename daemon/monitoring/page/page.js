// Asks the service for /overview every two seconds and shows it. All that comes is put in as text, never as markup.

import { lines, spanBar } from "./plots.js";

const EVERY_MS = 2000, LIMIT_MS = 10000;
const get = (id) => document.getElementById(id);
let lastAnswer = null, silentSince = null;

const TILES = [
  ["waiting", "Waiting for images"], ["ready", "Ready"], ["running", "Running"], ["sending", "Sending"],
  ["failed", "Refused by the archive"], ["quarantined", "Cannot be used"],
];
const SOURCES = { segmentation: "SEG", structured_report: "SR" };

// --- how things are written ---

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

// --- pieces of the page ---

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
    const told = made("dd", text);
    if (state) told.dataset.state = state;
    return [made("dt", name), told];
  }));
}

function say(state, text, reasons = []) {
  if (get("state").textContent !== text) get("state").textContent = text; // it is read aloud when it changes
  get("state").dataset.state = state;
  get("reasons").replaceChildren(...reasons.map((reason) => made("li", reason)));
}

// --- what is shown ---

function show(seen) {
  document.body.classList.remove("stale");
  get("who").textContent =
    `${seen.ae_title}, port ${seen.port}; version ${seen.version}; running for ${duration(Math.floor(seen.now - seen.started)).replace(".0 s", " s")}`;
  const wrong = [...seen.not_alive, ...seen.not_ready];
  if (!wrong.length) say("good", "Accepting studies");
  else say("bad", seen.not_alive.length ? "Not working properly" : "Not accepting studies", wrong);
  document.title = `mammod: ${wrong.length ? "not ready" : "ready"}`;

  if (seen.jobs === null) say("bad", "The ledger cannot be read: see the log", wrong);
  else get("tiles").replaceChildren(...TILES.map(([state, name]) => {
    const { count, oldest_seconds: oldest } = seen.jobs[state];
    const bad = count > 0 && ["failed", "quarantined"].includes(state);
    const tile = made("div", [made("dt", name), made("dd", [made("b", String(count)),
      made("small", count ? `oldest ${duration(oldest)}` : "none")])], { className: bad ? "bad" : "" });
    tile.dataset.tile = state;
    return tile;
  }));

  const { at, backlog, per_minute: rates, span_seconds: longest } = seen.history;
  const span = Math.min(longest, Math.max(600, seen.now - (at[0] ?? seen.now))); // a service just started fills the plot
  lines(get("backlog"), "Jobs that are not finished", backlog, at, seen.now, span);
  lines(get("throughput"), "Done per minute", rates, at, seen.now, span);
  rows("stages", Object.entries(seen.stages).map(([stage, took]) => took
    ? [stage, took.count, duration(took.p50), duration(took.p95), spanBar(took.p50, took.p95)]
    : [stage, 0, "-", "-", ""]), "");
  rows("last", seen.last_jobs.map((job) => [job.job_id, clock(job.created_at), SOURCES[job.source] ?? job.source, job.state,
    job.state === "done" || job.lesions ? job.lesions : "-", reports(job.reports), duration(job.seconds)]), "No job yet.");
  rows("callers", seen.callers.map((caller) => [caller.ae_title || "(none said)", caller.address, ago(seen.now, caller.last_seen),
    caller.accepted, caller.rejected, (caller.last_rejection ?? "").replaceAll("_", " "), caller.instances, caller.refused]),
  "Nobody yet.");
  showMachine(seen);
  showBundle(seen.bundle);
}

function reports(kinds) {
  return Object.entries(kinds).map(([kind, states]) => `${kind}: ${Object.entries(states).map(([state, count]) =>
    (count === 1 ? state : `${count} ${state}`)).join(", ")}`).join("; ") || "-";
}

function showMachine(seen) {
  const { archive, workers, spool, audit, queues, reports: boxes } = seen;
  const up = archive.up === null ? "not asked yet" : archive.up ? `answers; last ${ago(seen.now, archive.last_answer)}`
    : `no answer, ${archive.failures_in_a_row} attempts: ${archive.problem}`;
  const full = spool.free === null || spool.free < spool.min_free ? "bad" : spool.free < 2 * spool.min_free ? "warn" : "";
  const queued = boxes === null ? [] : [
    ["Outbox", `${boxes.queued.count} reports wait${boxes.queued.count ? `, oldest ${duration(boxes.queued.oldest_seconds)}` : ""}`],
    ...(boxes.committing.count ? [["Commitment", `${boxes.committing.count} stored, not yet promised`]] : [])];
  facts("machine", [
    [`Archive ${archive.name} (${archive.by})`, up, archive.up === false ? "bad" : archive.up ? "good" : ""],
    ["Last report stored", ago(seen.now, archive.last_stored)],
    ...queued,
    ...Object.entries(workers).map(([name, { alive, expected }]) =>
      [`${name}s`, `${alive} of ${expected} alive, ${queues[name === "decoder" ? "decode" : "classify"]} waiting`,
        alive < expected ? "warn" : ""]),
    ["Associations", `${seen.associations_open} open`],
    ["Disk", spool.free === null ? "cannot be looked at"
      : `${bytes(spool.free)} free of ${bytes(spool.disk)}; refuses below ${bytes(spool.min_free)}`, full],
    ["Spool", `${bytes(spool.bytes)}; counted every ten minutes`],
    ...seen.certificates.map((one) => [one.setting, `${one.days_left} days left`,
      one.days_left < 3 ? "bad" : one.days_left < 30 ? "warn" : ""]),
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
    const answer = await fetch("overview", { signal: AbortSignal.timeout(LIMIT_MS), cache: "no-store" });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    show(await answer.json());
    lastAnswer = Date.now() / 1000;
    silentSince = null;
  } catch (error) {
    silentSince ??= lastAnswer ?? Date.now() / 1000;
    document.body.classList.add("stale");
    document.title = "mammod: no answer";
    const below = lastAnswer === null ? "" : " What stands below is from then.";
    say("bad", `No answer since ${clock(silentSince)}: the service is stopped, or the way to it is cut.${below}`);
    if (!(error instanceof TypeError || error instanceof DOMException)) console.error(error); // of ours, not of the network
  }
  setTimeout(ask, EVERY_MS);
}

ask();
