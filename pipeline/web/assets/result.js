// The volume of a case that is done: verdict, viewer, downloads, and its X-rays beside the given ones.
import { make, t } from "/assets/web.js";

const byId = (id) => document.getElementById(id);
let shown = null;
let watched = null; // the case whose reconstruction went on while the page looked at it
let viewer = null;

const DOWNLOADS = ["nifti:volume.nii.gz", "nrrd:volume.nrrd", "dicom:dicom.zip", "interval:interval.nii.gz", "record:record.json", "page:page.html"];

const verdict = (result) => {
  const place = byId("verdict");
  const kind = result.doubtful ? "bad" : result.warnings.length ? "warned" : "good";
  place.className = `verdict ${kind}`;
  place.replaceChildren(
    make("b", {}, t(`verdict_${kind}`)),
    make("p", {}, result.verdict),
    ...result.warnings.map((text) => make("p", { className: "doubt" }, text)),
    make("p", { className: "note" }, t("many_volumes")));
};

/** A link; what has to be made first is waited for, so that a refusal is a sentence and not a page. */
const download = (one, entry) => {
  const [name, file] = entry.split(":");
  const address = `/api/cases/${one.id}/${file}`;
  const link = make("a", { className: "button", href: address, download: "", "data-download": name }, t(`download_${name}`));
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    const status = byId("download-status");
    status.textContent = t("preparing");
    try {
      const answer = await fetch(address);
      if (!answer.ok) throw new Error((await answer.json()).error);
      const saved = make("a", { href: URL.createObjectURL(await answer.blob()), download: /filename="?([^";]+)/.exec(answer.headers.get("content-disposition"))[1] });
      saved.click();
      setTimeout(() => URL.revokeObjectURL(saved.href), 60000);
      status.textContent = "";
    } catch (error) {
      status.textContent = error.message;
    }
  });
  return link;
};

const beside = (one) =>
  one.result.views.map((view, number) =>
    make("div", {}, make("h4", {}, ["pa", "lat"].includes(view) ? t(`view_${view}`) : t("view_other", { name: view })),
      make("div", { className: "row" }, ...["used", "own", "difference"].map((kind) => {
        const name = t(kind === "used" ? "given" : kind);
        return make("figure", {}, make("img", { src: `/api/cases/${one.id}/${kind}-${number}.png?v=${one.version}`, alt: `${view}, ${name}` }), make("figcaption", {}, name));
      }))));

export const showResult = async (one) => {
  const done = one?.state === "done";
  if (["waiting", "running"].includes(one?.state)) watched = one.id;
  byId("result").hidden = !done;
  if (!done || shown === one.id) {
    if (!done) shown = null;
    return;
  }
  shown = one.id;
  if (watched === one.id) requestAnimationFrame(() => byId("result").focus());
  watched = null;
  verdict(one.result);
  byId("downloads").replaceChildren(...DOWNLOADS.filter((entry) => !entry.startsWith("interval") || one.result.doubt).map((entry) => download(one, entry)));
  byId("beside").replaceChildren(...beside(one));
  byId("assumptions").replaceChildren(...one.result.assumptions.map((text) => make("li", {}, text)));
  const { startViewer } = await import("/assets/viewer.js"); // NiiVue is large: it is loaded when there is something to see
  viewer ??= startViewer({ loading: t("viewer_loading"), failed: t("viewer_failed") });
  const wanted = { prediction: { url: `/api/cases/${one.id}/volume.nii.gz` }, fov_mm: one.result.fov_mm };
  byId("doubt").hidden = !one.result.doubt;
  if (one.result.doubt) {
    const { range, colours } = one.result.doubt;
    Object.assign(byId("doubt-opacity").dataset, { range, colours: colours.join(",") });
    byId("doubt-range").textContent = t("doubt_range", { range });
    wanted.doubt = { url: `/api/cases/${one.id}/doubt.nii.gz` };
  }
  const started = await viewer;
  if (shown === one.id) await started.load(wanted);
};
