// Appended to NiiVue's own module, so that its names are in scope and nothing is loaded from elsewhere.
(async () => {
  const byId = (id) => document.getElementById(id);
  const status = byId("viewer-status");
  const pairs = JSON.parse(byId("viewer-data").textContent);
  const sliders = { x: byId("slide-x"), y: byId("slide-y"), z: byId("slide-z") };
  const axes = ["x", "y", "z"];
  const buttons = [...document.querySelectorAll("button[data-window]")];
  const viewers = {};
  const doubt = { opacity: byId("doubt-opacity"), value: byId("doubt-value") };
  let moving = false;

  // "−40 ± 85 HU" where the cross-hair is, of a page with a doubt
  const read = () => {
    const viewer = viewers.prediction;
    if (!doubt.value || viewer.volumes.length < 2) return;
    const mm = viewer.frac2mm(viewer.scene.crosshairPos);
    const [hu, half] = viewer.volumes.map((volume) => Math.round(volume.getValue(...[...volume.mm2vox(mm)].slice(0, 3))));
    doubt.value.textContent = `${hu} ± ${half} HU`.replace("-", "−");
  };
  const show = (fraction) => {
    read();
    axes.forEach((axis, i) => {
      sliders[axis].value = fraction[i];
      byId(`value-${axis}`).textContent = `${Math.round((fraction[i] - 0.5) * pairs[0].fov_mm)} mm`;
    });
  };
  const slide = () => {
    const fraction = axes.map((axis) => Number(sliders[axis].value));
    for (const viewer of Object.values(viewers)) {
      viewer.scene.crosshairPos = fraction;
      viewer.drawScene();
    }
    show(fraction);
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
  const load = async (pair) => {
    status.textContent = "Loading …";
    for (const [name, viewer] of Object.entries(viewers)) {
      for (const old of [...viewer.volumes]) viewer.removeVolume(old);
      viewer.addVolume(await NVImage.loadFromBase64({ base64: pair[name], name: `${name}.nii.gz` }));
    }
    if (doubt.opacity && pair.doubt) {
      const viewer = viewers.prediction;
      const [low, high] = [0, Number(doubt.opacity.dataset.range)];
      const options = { base64: pair.doubt, name: "doubt.nii.gz", colormap: "doubt", cal_min: low, cal_max: high };
      viewer.addVolume(await NVImage.loadFromBase64(options));
      cover();
    }
    setWindow(buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0]);
    slide();
    status.textContent = "";
    document.body.dataset.viewer = "ready";
  };

  // even steps of #rrggbb, as NiiVue has colour maps
  const colours = (steps) => ({
    R: steps.map((step) => parseInt(step.slice(1, 3), 16)),
    G: steps.map((step) => parseInt(step.slice(3, 5), 16)),
    B: steps.map((step) => parseInt(step.slice(5, 7), 16)),
    A: steps.map(() => 255),
    I: steps.map((_, i) => Math.round((255 * i) / (steps.length - 1))),
  });

  try {
    // a page may show the prediction alone
    for (const name of ["truth", "prediction"].filter((name) => byId(`canvas-${name}`))) {
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
      });
      await viewer.attachToCanvas(byId(`canvas-${name}`));
      if (doubt.opacity) viewer.addColormap("doubt", colours(doubt.opacity.dataset.colours.split(",")));
      viewer.setSliceType(SLICE_TYPE.MULTIPLANAR);
      viewers[name] = viewer;
    }
    const [first, second] = Object.values(viewers);
    if (second) {
      first.broadcastTo([second], { "2d": true, "3d": true });
      second.broadcastTo([first], { "2d": true, "3d": true });
    }
    for (const viewer of Object.values(viewers)) {
      viewer.onLocationChange = () => {
        if (!moving) show([...viewer.scene.crosshairPos]);
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
    if (doubt.opacity) doubt.opacity.addEventListener("input", cover);
    const choice = byId("viewer-patient");
    choice.addEventListener("change", () => load(pairs[Number(choice.value)]));
    await load(pairs[0]);
  } catch (error) {
    status.textContent = `The interactive viewer needs WebGL 2, which this browser did not give (${error.message ?? error}). The figures above show the same volumes.`;
    document.body.dataset.viewer = "failed";
  }
})();
