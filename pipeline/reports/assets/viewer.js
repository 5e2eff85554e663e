// Appended to NiiVue's own module, so that its names are in scope and nothing is loaded from elsewhere.
(async () => {
  const byId = (id) => document.getElementById(id);
  const status = byId("viewer-status");
  const pairs = JSON.parse(byId("viewer-data").textContent);
  const sliders = { x: byId("slide-x"), y: byId("slide-y"), z: byId("slide-z") };
  const axes = ["x", "y", "z"];
  const buttons = [...document.querySelectorAll("button[data-window]")];
  const viewers = {};
  let moving = false;

  const show = (fraction) => {
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
  const load = async (pair) => {
    status.textContent = "Loading …";
    for (const [name, viewer] of Object.entries(viewers)) {
      for (const old of [...viewer.volumes]) viewer.removeVolume(old);
      viewer.addVolume(await NVImage.loadFromBase64({ base64: pair[name], name: `${name}.nii.gz` }));
    }
    setWindow(buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0]);
    slide();
    status.textContent = "";
    document.body.dataset.viewer = "ready";
  };

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
    const choice = byId("viewer-patient");
    choice.addEventListener("change", () => load(pairs[Number(choice.value)]));
    await load(pairs[0]);
  } catch (error) {
    status.textContent = `The interactive viewer needs WebGL 2, which this browser did not give (${error.message ?? error}). The figures above show the same volumes.`;
    document.body.dataset.viewer = "failed";
  }
})();
