// The page: what the server says, what is shown of it, and what the user asks for.
import { showFilms } from "/assets/films.js";
import { showResult } from "/assets/result.js";

const words = JSON.parse(document.getElementById("words").textContent);
const byId = (id) => document.getElementById(id);
export const t = (key, values = {}) =>
  Object.entries(values).reduce((text, [name, value]) => text.replace(`{${name}}`, value), words[key] ?? key);

/** An element with properties (and `data-`, `aria-` attributes) and children; texts are texts, never markup. */
export const make = (tag, properties = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

const state = { networks: [], cases: new Map(), chosen: null, limits: {}, sending: "" };

// what the server says
export const ask = async (path, options = {}) => {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error(t("stopped"));
  }
  if (answer.status === 204) return null;
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error ?? `${answer.status}`);
  return content;
};
const post = (path, content) =>
  ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(content) });

const take = (cases) => {
  for (const one of cases) {
    const known = state.cases.get(one.id);
    if (known && known.version > one.version) continue;
    if (one.state === "removed") state.cases.delete(one.id);
    else state.cases.set(one.id, one);
    if (one.state === "removed" && state.chosen === one.id) state.chosen = null;
  }
  show();
};

const listen = () => {
  const events = new EventSource("/api/events");
  events.addEventListener("cases", (event) => take(JSON.parse(event.data)));
  events.onopen = () => (byId("notice").hidden = true);
  events.onerror = () => {
    byId("notice").textContent = t("connection_lost");
    byId("notice").hidden = false;
  };
  addEventListener("pagehide", () => events.close());
};

// what the user asks for
const doing = async (text, work) => {
  state.sending = text;
  complain("");
  show();
  try {
    return await work();
  } catch (error) {
    complain(error.message);
    return null;
  } finally {
    state.sending = "";
    show();
  }
};
const complain = (text) => {
  const place = byId("film-error");
  place.hidden = !text;
  place.replaceChildren(make("p", {}, make("strong", {}, `${t("refused")}: `), text));
  if (text) place.scrollIntoView({ block: "nearest" }); // what was asked for may be far below
};
export const choose = (id) => {
  state.chosen = id;
  history.replaceState(null, "", id ? `#${id}` : location.pathname);
  complain("");
  show();
};
const chosen = () => state.cases.get(state.chosen) ?? null;

const give = async (files) => {
  const list = [...files];
  if (!list.length) return;
  const total = list.reduce((sum, file) => sum + file.size, 0);
  const { most_bytes: most, most_files: count } = state.limits;
  if (total > most) return complain(t("too_large", { name: list[0].name, mb: Math.round(most / 2 ** 20) }));
  if (list.length > count) return complain(t("too_many", { count: list.length }));
  const form = new FormData();
  list.forEach((file) => form.append("files", file));
  const open = chosen();
  const adds = open?.state === "incomplete" && list.length === 1;
  form.append("network", byId("network").value);
  await doing(t("uploading"), async () => {
    const made = await ask(adds ? `/api/cases/${open.id}/films` : "/api/cases", { method: "POST", body: form });
    take([made]);
    choose(made.id);
  });
};

/** Overrule: options, order, network or name of the chosen case; what is read anew may be a new case. */
export const overrule = (changes) =>
  doing("", async () => {
    const made = await post(`/api/cases/${state.chosen}/options`, changes);
    take([made]);
    choose(made.id);
  });

const reconstruct = (event) =>
  doing("", async () => {
    const open = chosen();
    const wanted = byId("patient").value.trim();
    if (wanted && wanted !== open.patient && !["waiting", "running"].includes(open.state)) await rename(wanted);
    const made = await post(`/api/cases/${state.chosen}/reconstruct`, {});
    take([made]);
    choose(made.id);
    byId("progress-note").dataset.same = made.same_as ? "yes" : "";
    show();
    if (event.detail === 0) byId("cancel").focus(); // it was the keyboard, and its button is at rest now
  });
const rename = async (patient) => {
  let made = await post(`/api/cases/${state.chosen}/options`, { patient });
  take([made]);
  choose(made.id);
  while (made.state === "reading") {
    await new Promise((resolve) => setTimeout(resolve, 150));
    made = await ask(`/api/cases/${made.id}`);
  }
  take([made]);
};

// what is shown
const STAGES = ["starting", "reading", "network", "comparing", "writing", "drawing"];
const WEIGHTS = [0.03, 0.07, 0.6, 0.1, 0.15, 0.05]; // of the bar; the network's share is told while it runs

const showProgress = (one) => {
  const busy = ["waiting", "running"].includes(one.state);
  const same = byId("progress-note").dataset.same === "yes";
  byId("progress").hidden = !(busy || ["failed", "cancelled"].includes(one.state) || (one.state === "done" && same));
  const now = STAGES.indexOf(one.stage);
  const text = byId("progress-text");
  text.classList.toggle("busy", busy);
  const said = { waiting: t("state_waiting"), running: t(`stage_${one.stage || "starting"}`), cancelled: t("cancelled"), failed: `${t("failed")}: ${one.sentence}` };
  const line = said[one.state] ?? t("state_done");
  if (text.textContent !== line) text.textContent = line;
  const before = WEIGHTS.slice(0, Math.max(now, 0)).reduce((a, b) => a + b, 0);
  byId("progress-bar").hidden = byId("stages").hidden = !busy;
  byId("progress-bar").value = one.state === "running" ? before + WEIGHTS[Math.max(now, 0)] * one.share : 0;
  byId("stages").replaceChildren(
    ...STAGES.map((stage, i) => make("li", { className: i < now ? "past" : i === now && one.state === "running" ? "now" : "" }, t(`stage_${stage}`))),
  );
  byId("progress-note").textContent = same && !busy ? t("same") : busy ? t(one.state) : "";
};

const showNetwork = (one) => {
  byId("network-step").hidden = !one;
  if (!one) return;
  const select = byId("network");
  if (select.dataset.case !== one.id || document.activeElement !== select) select.value = one.network;
  const patient = byId("patient");
  if (patient.dataset.case !== one.id) patient.value = one.patient === "patient" ? "" : one.patient;
  patient.placeholder = "patient";
  select.dataset.case = patient.dataset.case = one.id;
  const facts = state.networks.find((network) => network.id === one.network);
  byId("network-facts").textContent = t("network_facts", { size: facts.size, voxel: Number(facts.voxel_mm.toPrecision(3)), patients: facts.patients });
  const busy = ["waiting", "running"].includes(one.state);
  select.disabled = patient.disabled = busy;
  const button = byId("reconstruct");
  const renamed = one.state === "done" && patient.value.trim() && patient.value.trim() !== one.patient;
  button.disabled = !(["ready", "failed", "cancelled"].includes(one.state) || renamed) || Boolean(state.sending);
  button.textContent = ["failed", "cancelled"].includes(one.state) ? t("again") : t("reconstruct");
  button.title = ["incomplete", "refused"].includes(one.state) ? t("need_two") : "";
  const cancel = byId("cancel");
  const left = !busy && document.activeElement === cancel;
  cancel.hidden = !busy;
  if (left) button.focus();
  showProgress(one);
};

const nameOf = (one) => (one.sample ? t("sample_name") : one.patient !== "patient" ? one.patient : one.films.join(", "));
const showHistory = () => {
  const list = [...state.cases.values()].sort((a, b) => b.created - a.created);
  const items = list.map((one) => {
    const time = new Date(one.created * 1000).toLocaleTimeString(document.documentElement.lang, { hour: "2-digit", minute: "2-digit" });
    const took = one.state === "done" ? `, ${Math.max(1, Math.round(one.ended - one.began))}\u00a0s` : one.state === "running" ? `, ${t(`stage_${one.stage || "starting"}`)}` : "";
    const open = make(
      "button",
      { type: "button", className: "open", "data-key": `open-${one.id}`, "aria-current": String(one.id === state.chosen), onclick: () => choose(one.id) },
      make("span", {}, nameOf(one)),
      make("small", {}, `${time}, ${one.network}, `, make("span", { className: `state-${one.state}` }, t(`state_${one.state}`)), took),
    );
    const remove = make("button", { type: "button", className: "remove", "data-key": `remove-${one.id}`, "aria-label": `${t("remove")}: ${nameOf(one)}`, title: t("remove"),
      onclick: () => confirm(t("remove_sure")) && ask(`/api/cases/${one.id}`, { method: "DELETE" }).catch((error) => complain(error.message)) }, "×");
    return make("li", { className: one.id === state.chosen ? "chosen" : "" }, open, remove);
  });
  keepingFocus(byId("history"), items.length ? items : [make("li", { className: "note" }, t("history_empty"))]);
};

/** Replace an element's children, and give the focus back to the one that had it. */
export const keepingFocus = (place, children) => {
  const key = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  place.replaceChildren(...children);
  if (key) place.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
};

const show = () => {
  const one = chosen();
  document.body.dataset.state = one?.state ?? "none";
  byId("drop").classList.toggle("small", Boolean(one));
  byId("drop-text").textContent = t(one?.state === "incomplete" ? "drop_missing" : one ? "drop_again" : "drop");
  const facts = state.networks.find((network) => network.id === one?.network);
  const status = byId("films-status");
  const text = state.sending || (one?.state === "reading" ? t("reading") : one?.sample ? t(facts.seen_sample ? "sample_seen" : "sample_note") : "");
  if (status.textContent !== text) status.textContent = text;
  status.classList.toggle("busy", Boolean(state.sending) || one?.state === "reading");
  showFilms(one, facts);
  showNetwork(one);
  showResult(one);
  showHistory();
};

const begin = async () => {
  const zone = document.documentElement;
  let depth = 0;
  const over = (on) => byId("drop").classList.toggle("over", on);
  // the whole page is the place to drop on, before the viewer's canvas hears of it
  const onDrag = (kind, act) => zone.addEventListener(kind, (event) => { event.preventDefault(); event.stopPropagation(); act(event); }, { capture: true });
  onDrag("dragenter", () => { depth += 1; over(true); });
  onDrag("dragleave", () => { depth -= 1; if (depth <= 0) over(false); });
  onDrag("dragover", () => {});
  onDrag("drop", (event) => { depth = 0; over(false); give(event.dataTransfer.files); });
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", async (event) => { await give(event.target.files); event.target.value = ""; });
  byId("sample").addEventListener("click", () =>
    doing(t("sampling"), async () => {
      const made = await ask(`/api/cases/sample?network=${encodeURIComponent(byId("network").value)}`, { method: "POST" });
      take([made]);
      choose(made.id);
    }));
  byId("reconstruct").addEventListener("click", reconstruct);
  byId("cancel").addEventListener("click", () => post(`/api/cases/${state.chosen}/cancel`, {}).then((made) => take([made])).catch((error) => complain(error.message)));
  byId("patient").addEventListener("input", show);
  byId("network").addEventListener("change", (event) => chosen() && overrule({ network: event.target.value }));
  const found = await ask("/api/state");
  state.networks = found.networks;
  state.limits = found;
  byId("network").replaceChildren(...found.networks.map((network) => make("option", { value: network.id }, network.id)));
  for (const one of found.cases) state.cases.set(one.id, one);
  if (state.cases.has(location.hash.slice(1))) state.chosen = location.hash.slice(1);
  show();
  listen();
  document.body.dataset.page = "ready";
};
begin().catch((error) => complain(error.message));
