// The films of a case: each as it will be used, what was decided, and one control to overrule each decision.
import { ask, keepingFocus, make, overrule, t } from "/assets/web.js";

const byId = (id) => document.getElementById(id);
let shown = ""; // what the cards were made of: they are made anew only when that changes
let asked = {}; // what was asked for from headers, by case and film

const TURNS = ["auto", "as-is", "mirrored", "upside-down", "half-turn", "clockwise", "anticlockwise"];
const viewName = (name) => (["pa", "lat"].includes(name) ? t(`view_${name}`) : t("view_other", { name }));

/** The option's value for one view. */
const stated = (one, name, view, otherwise) => one.options[name]?.[view] ?? otherwise;
const restate = (one, network, name, view, value, otherwise) => {
  const values = network.views.map((_, i) => (i === view ? value : stated(one, name, i, otherwise)));
  return overrule({ options: { ...one.options, [name]: values }, order: one.reading?.order ?? one.order });
};

const select = (key, label, choices, value, act) =>
  make("select", { "data-key": key, "aria-label": label, className: value === choices[0][0] ? "" : "overruled", onchange: (event) => act(choices[event.target.selectedIndex][0]) },
    ...choices.map(([choice, text]) => make("option", { selected: choice === value }, text)));

const number = (key, label, value, placeholder, act) =>
  make("input", { type: "text", inputMode: "decimal", "data-key": key, "aria-label": label, title: label, className: value ? "overruled" : "", value: value ?? "", placeholder,
    onchange: (event) => act(event.target.value.trim().replace(",", ".") || null) });

const row = (subject, texts, ...controls) =>
  make("div", {}, make("dt", {}, t(`subject_${subject}`)), make("dd", {}, ...texts.map((text) => make("p", {}, text))),
    controls.length ? make("dd", { className: "control" }, ...controls) : null);

const short = (text, file) => {
  const rest = (text.startsWith(`${file}:`) ? text.slice(file.length + 1).trim() : text.startsWith(`${file} `) ? text.slice(file.length + 1) : text)
    .replace(/^(was|is) /, "");
  return rest.charAt(0).toUpperCase() + rest.slice(1);
};

const decisions = (one, network, film, view) => {
  const found = one.reading.films[film];
  const file = one.films[film];
  const said = (subject) => (found.said[subject.replace(/s$/, "")] ?? []).map((text) => short(text, file));
  const or = (subject, values) => { const texts = said(subject); return texts.length ? texts : [t(`nothing_${subject}`, values)]; };
  const change = (name, otherwise) => (value) => restate(one, network, name, view, value, otherwise);
  const name = (subject) => `${t("overrule")}: ${t(`subject_${subject}`)}, ${viewName(network.views[view])}`;
  const key = (subject) => `${subject}-${view}`;
  const window = stated(one, "window", view, "auto");
  const windows = [["auto", t("window_auto")], ["none", t("window_none")], ...(["auto", "none"].includes(window) ? [] : [[window, window]]), ["?", t("window_stated")]];
  const askWindow = (value) => {
    const wanted = value === "?" ? prompt(t("window_prompt")) : value;
    return wanted ? change("window", "auto")(wanted) : null;
  };
  const pitch = found.facts.pixel_spacing_mm?.[1];
  const rows = [
    row("tone", or("tone"),
      select(key("tone"), name("tone"), [["auto", t("auto")], ...["display", "line_integral", "transmission"].map((v) => [v, t(`intensity_${v}`)])], stated(one, "intensity", view, "auto"), change("intensity", "auto")),
      ...(found.facts.format === "DICOM" ? [make("div", { className: "note" }, t("window")), select(key("window"), `${t("window")}, ${viewName(network.views[view])}`, windows, window, askWindow)] : [])),
    row("turn", or("turn"), select(key("turn"), name("turn"), TURNS.map((v) => [v, v === "auto" ? t("auto") : t(`orientation_${v}`)]), stated(one, "orientation", view, "auto"), change("orientation", "auto"))),
    row("polarity", or("polarity"), select(key("polarity"), name("polarity"), [[null, t("auto")], [false, t("inverted_false")], [true, t("inverted_true")]], stated(one, "inverted", view, null), change("inverted", null))),
    row("size", or("size", { mm: pitch ? Number(pitch.toPrecision(4)) : "?" }), number(key("size"), `${t("subject_size")}, ${t("pixel_mm")}`, stated(one, "pixel_spacing_mm", view, null), pitch ? String(Number(pitch.toPrecision(4))) : "mm", change("pixel_spacing_mm", null))),
    row("distance", or(found.facts.source_to_detector_mm ? "distance" : "distances"),
      number(key("detector"), t("detector_mm"), stated(one, "source_to_detector_mm", view, null), t("to_detector"), change("source_to_detector_mm", null)),
      number(key("isocentre"), t("isocentre_mm"), stated(one, "source_to_isocentre_mm", view, null), t("to_patient"), change("source_to_isocentre_mm", null))),
    row("field", or("field")),
  ];
  if (said("other").length) rows.push(row("other", said("other")));
  return make("dl", { className: "decided" }, ...rows);
};

const refusal = (sentence, remedies, one) =>
  make("div", { className: "refusal", role: "alert" }, make("p", {}, make("strong", {}, `${t("refused")}: `), sentence),
    remedies.length ? make("div", { className: "buttons" }, ...remedies.map((remedy) => make("button", { type: "button", "data-key": `remedy-${remedy.option}`, onclick: () => apply(remedy, one) }, t(`remedy_${remedy.option}`)))) : null);
const apply = ({ option, value, view }, one) => {
  if (option === "swap") return swap(one);
  const wanted = option === "orientation" ? one.films.map((_, i) => (view === undefined || i === view ? value : stated(one, option, i, "auto"))) : value;
  return overrule({ options: { ...one.options, [option]: wanted }, order: one.reading?.order ?? one.order });
};
/** The two change places; what was said of a film goes with it. */
const swap = (one) => {
  const order = [...(one.reading?.order ?? one.films.map((_, i) => i))].reverse();
  const options = Object.fromEntries(Object.entries(one.options).map(([name, value]) => [name, Array.isArray(value) ? [...value].reverse() : value]));
  return overrule({ order, options });
};

const header = (one, film) => {
  const place = `${one.id}/${film}`;
  const known = asked[place];
  const toggle = async () => {
    if (known) delete asked[place];
    else asked[place] = await ask(`/api/cases/${one.id}/header/${film}`).catch((error) => ({ "": error.message }));
    shown = "";
    showFilms(...last);
  };
  const button = make("button", { type: "button", className: "plain", "data-key": `header-${film}`, "aria-expanded": String(Boolean(known)), onclick: toggle }, t(known ? "header_hide" : "header"));
  if (!known) return button;
  const entries = Object.entries(known).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  return make("div", {}, button, entries.length ? make("dl", { className: "known" }, ...entries) : make("p", { className: "note" }, t("header_none")));
};

const card = (one, network, film, view) => {
  const found = one.reading?.films[film];
  const file = one.films[film];
  const ready = one.reading?.state === "ready";
  const version = one.version;
  const picture = (kind, index) => `/api/cases/${one.id}/${kind}-${index}.png?v=${version}`;
  const title = view === null ? [file] : [viewName(network.views[view]), make("span", { className: "badge" }, t(`found_${one.reading.found_by}`))];
  const facts = found?.facts.format ? [found.facts.format, found.facts.size?.toReversed().join("×"), found.facts.bits ? `${found.facts.bits} bit` : null].filter(Boolean).join(", ") : "";
  const inset = found && !found.error && ready ? make("div", { className: "inset" }, make("img", { src: picture("given", film), alt: `${file}, ${t("as_given")}` }), make("span", {}, t("as_given"))) : null;
  const main = found && !found.error ? make("div", { className: "frame" }, make("img", { src: ready ? picture("used", view) : picture("given", film), alt: `${file}, ${t(ready ? "as_used" : "as_given")}` })) : null;
  return make("article", { className: `film${found?.error ? " wrong" : ""}`, "data-film": film, "data-view": view ?? "" },
    make("h3", {}, ...title),
    make("p", { className: "file" }, [view === null ? null : file, facts].filter(Boolean).join(" · ")),
    found?.error ? refusal(found.error, (found.remedies ?? []).map((remedy) => ({ ...remedy, view: view ?? undefined })), one) : null,
    ...(found?.warnings ?? []).map((text) => make("p", { className: "doubt" }, make("strong", {}, `${t("warning")}: `), text)),
    make("div", { className: "look" },
      main ? make("figure", { className: "picture" }, main, inset, make("figcaption", {}, t(ready ? "as_used" : "as_given"))) : null,
      ready ? decisions(one, network, film, view) : null),
    found?.facts.format === "DICOM" ? header(one, film) : null);
};

const together = (one, network) => {
  const reading = one.reading;
  const boxes = [];
  if (reading.sentence && reading.state !== "incomplete") boxes.push(refusal(reading.sentence, reading.remedies, one));
  if (reading.state === "incomplete") boxes.push(make("p", { className: "doubt" }, reading.sentence));
  if (one.films.length < network.views.length) return boxes;
  const checks = ["check_order", "check_header", "crop_collimation", "opposite_side"].map((name) => {
    const normal = name.startsWith("check");
    const value = one.options[name] ?? normal;
    return make("label", {}, make("input", { type: "checkbox", checked: value, "data-key": name, onchange: (event) => overrule({ options: { ...one.options, [name]: event.target.checked }, order: one.reading.order }) }), t(name));
  });
  const changed = Object.keys(one.options).length || reading.found_by === "stated";
  boxes.push(make("div", { className: "pair-box" },
    make("h3", {}, t("pair")),
    ...reading.warnings.map((text) => make("p", { className: "doubt" }, make("strong", {}, `${t("warning")}: `), text)),
    ...reading.pair.map((text) => make("p", {}, text)),
    make("details", { open: openDetails, ontoggle: (event) => (openDetails = event.target.open) }, make("summary", { "data-key": "details" }, t("settings")), make("div", { className: "checks" }, ...checks)),
    make("div", { className: "buttons" },
      one.films.length === 2 && reading.order ? make("button", { type: "button", "data-key": "swap", id: "swap", onclick: () => swap(one) }, t("swap")) : null,
      changed ? make("button", { type: "button", "data-key": "reset", id: "reset", onclick: () => overrule({ options: {}, order: null }) }, t("reset")) : null)));
  return boxes;
};
let openDetails = false;
let last = [null, undefined];

export const showFilms = (one, network) => {
  last = [one, network];
  const made = JSON.stringify(one && [one.id, one.films, one.order, one.options, one.reading, one.state === "reading", one.sentence]);
  if (made === shown) return;
  shown = made;
  const [cards, pair] = [byId("film-cards"), byId("pair")];
  cards.setAttribute("aria-busy", String(one?.state === "reading"));
  if (!one) {
    cards.replaceChildren();
    pair.replaceChildren();
    return;
  }
  if (one.state === "reading" && cards.dataset.case === one.id) return; // what was there stays until it is read anew
  cards.dataset.case = one.id;
  const order = one.reading?.order ?? null;
  const places = order ? order.map((film, view) => [film, view]) : one.films.map((_, film) => [film, null]);
  keepingFocus(cards, places.map(([film, view]) => card(one, network, film, view)));
  keepingFocus(pair, one.reading ? together(one, network) : one.sentence ? [refusal(one.sentence, [], one)] : []);
};
