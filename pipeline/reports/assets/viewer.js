// Appended to NiiVue's own module, so that its names are in scope and nothing is loaded from elsewhere.
// It works on the elements of viewer.html.j2; a page that carries its volumes starts it at the end of this file.
const axes = ["x", "y", "z"];
const byId = (id) => document.getElementById(id);

const makeNiivue = async (canvas) => {
  const viewer = new Niivue({
    isRadiologicalConvention: true,
    sagittalNoseLeft: true, // as in the left lateral radiograph
    backColor: [0, 0, 0, 1],
    show3Dcrosshair: true,
    crosshairWidth: 1.4,
    crosshairWidthUnit: "mm", // the same on every grid
    crosshairColor: [0.35, 0.75, 1, 0.8],
    multiplanarShowRender: SHOW_RENDER.ALWAYS,
    multiplanarLayout: MULTIPLANAR_TYPE.GRID,
    multiplanarPadPixels: 4,
    isOrientCube: false,
    loadingText: "",
    dragAndDropEnabled: false, // what is dropped is not for the viewer
    viewModeHotKey: "", // a key that is hit by chance changes nothing
    clipPlaneHotKey: "",
    cycleClipPlaneHotKey: "",
  });
  await viewer.attachToCanvas(canvas);
  viewer.setSliceType(SLICE_TYPE.MULTIPLANAR);
  return viewer;
};

// a volume is base64, or {url} of one on the same server
const loadVolume = (source, options) =>
  source.url ? NVImage.loadFromUrl({ url: source.url, ...options }) : NVImage.loadFromBase64({ base64: source, ...options });

// even steps of #rrggbb, as NiiVue has colour maps
const colourMap = (steps) => ({
  R: steps.map((step) => parseInt(step.slice(1, 3), 16)),
  G: steps.map((step) => parseInt(step.slice(3, 5), 16)),
  B: steps.map((step) => parseInt(step.slice(5, 7), 16)),
  A: steps.map(() => 255),
  I: steps.map((_, i) => Math.round((255 * i) / (steps.length - 1))),
});

/**
 * Wire sliders, windows and canvases together.
 *
 * Returns `load(pair)`: shows `pair.prediction`, `pair.truth` where the page has a canvas for it, and over the prediction
 * `pair.doubt`, half of what lies between its bounds in HU; `pair.fov_mm` is the cube's edge.
 */
const startViewer = async (words = {}) => {
  const status = byId("viewer-status");
  const sliders = Object.fromEntries(axes.map((axis) => [axis, byId(`slide-${axis}`)]));
  const buttons = [...document.querySelectorAll("button[data-window]")];
  const doubt = { opacity: byId("doubt-opacity"), scale: byId("doubt-scale"), value: byId("doubt-value") };
  const viewers = {};
  let pair = null;
  let moving = false;

  const show = (fraction) => {
    axes.forEach((axis, i) => {
      const millimetres = `${Math.round((fraction[i] - 0.5) * pair.fov_mm)} mm`;
      sliders[axis].value = fraction[i];
      sliders[axis].setAttribute("aria-valuetext", millimetres);
      byId(`value-${axis}`).textContent = millimetres;
    });
    if (doubt.value) doubt.value.textContent = read();
  };
  // "−40 ± 85 HU" where the cross-hair is
  const read = () => {
    const viewer = viewers.prediction;
    if (!viewer.volumes.length) return "";
    const mm = viewer.frac2mm(viewer.scene.crosshairPos);
    const values = viewer.volumes.map((volume) => Math.round(volume.getValue(...[...volume.mm2vox(mm)].slice(0, 3))));
    return `${values.join(" ± ")} HU`.replace("-", "−");
  };
  const slide = () => {
    const fraction = axes.map((axis) => Number(sliders[axis].value));
    for (const viewer of Object.values(viewers)) {
      viewer.scene.crosshairPos = fraction;
      viewer.drawScene();
    }
    show(fraction);
  };
  // arrow keys do for the rendering what dragging does
  const TURNS = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] };
  const turn = (event) => {
    if (!TURNS[event.key]) return;
    event.preventDefault();
    for (const viewer of Object.values(viewers)) {
      const { renderAzimuth, renderElevation } = viewer.scene;
      viewer.setRenderAzimuthElevation(renderAzimuth + TURNS[event.key][0], renderElevation + TURNS[event.key][1]);
    }
  };
  const setWindow = (button) => {
    const [low, high] = button.dataset.window.split(",").map(Number);
    for (const viewer of Object.values(viewers)) {
      viewer.volumes[0].cal_min = low;
      viewer.volumes[0].cal_max = high;
      viewer.updateGLVolume();
    }
    buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
  };
  const cover = () => {
    const viewer = viewers.prediction;
    if (viewer.volumes.length > 1) viewer.setOpacity(1, Number(doubt.opacity.value));
  };
  const load = async (wanted) => {
    pair = wanted;
    document.body.dataset.viewer = "loading";
    status.textContent = words.loading ?? "Loading …";
    for (const [name, viewer] of Object.entries(viewers)) {
      for (const old of [...viewer.volumes]) viewer.removeVolume(old);
      viewer.addVolume(await loadVolume(pair[name], { name: `${name}.nii.gz` }));
    }
    if (doubt.opacity && pair.doubt) {
      const { range, colours } = doubt.opacity.dataset;
      viewers.prediction.addColormap("doubt", colourMap(colours.split(",")));
      if (doubt.scale) doubt.scale.style.background = `linear-gradient(to right, ${colours})`;
      const options = { name: "doubt.nii.gz", colormap: "doubt", cal_min: 0, cal_max: Number(range) };
      viewers.prediction.addVolume(await loadVolume(pair.doubt, options));
      cover();
    }
    setWindow(buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0]);
    slide();
    status.textContent = "";
    document.body.dataset.viewer = "ready";
  };

  const fail = (error) => {
    const reason = error.message ?? error;
    status.textContent = words.failed
      ? `${words.failed} (${reason})`
      : `The interactive viewer needs WebGL 2, which this browser did not give (${reason}). The figures above show the same volumes.`;
    document.body.dataset.viewer = "failed";
  };
  try {
    // a page may show the prediction alone
    for (const name of ["truth", "prediction"].filter((name) => byId(`canvas-${name}`))) {
      viewers[name] = await makeNiivue(byId(`canvas-${name}`));
    }
    const [first, second] = Object.values(viewers);
    if (second) {
      first.broadcastTo([second], { "2d": true, "3d": true });
      second.broadcastTo([first], { "2d": true, "3d": true });
    }
    for (const viewer of Object.values(viewers)) {
      viewer.canvas.addEventListener("keydown", turn);
      viewer.onLocationChange = () => {
        if (!moving && pair) show([...viewer.scene.crosshairPos]);
      };
    }
    for (const slider of Object.values(sliders)) {
      slider.addEventListener("input", () => {
        moving = true;
        slide();
        moving = false;
      });
    }
    buttons.forEach((button) => button.addEventListener("click", () => setWindow(button)));
    doubt.opacity?.addEventListener("input", cover);
  } catch (error) {
    return { load: () => fail(error) };
  }
  return { load: (wanted) => load(wanted).catch(fail) };
};

const carried = byId("viewer-data");
if (carried) {
  const pairs = JSON.parse(carried.textContent);
  const viewer = await startViewer();
  const choice = byId("viewer-patient");
  choice?.addEventListener("change", () => viewer.load(pairs[Number(choice.value)]));
  await viewer.load(pairs[0]);
}
export { startViewer };
