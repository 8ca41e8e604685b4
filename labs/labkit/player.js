// Steps through the panels that labkit.player has written into the page. It draws nothing: every state is there already,
// so that what is shown cannot differ from the log. Called with every root of an id: a notebook that was restarted counts from
// one again, and an older output with the same id may stand in the page.
function p2pPlayer(root) {
  if (root.dataset.ready) return;
  root.dataset.ready = "yes";
  const panels = Array.from(root.querySelectorAll(":scope > .p2p-panels > .p2p-panel"));
  const button = (name) => root.querySelector(`button[data-do="${name}"]`);
  const live = root.querySelector(".p2p-live");
  const failures = panels.map((panel, step) => (panel.dataset.failure ? step : -1)).filter((step) => step >= 0);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  let at = panels.length - 1;
  let timer = null;

  function show(step, announce) {
    at = Math.max(0, Math.min(panels.length - 1, step));
    panels.forEach((panel, index) => { panel.hidden = index !== at; });
    root.dataset.step = String(at);
    // A button that is disabled while it has the focus would lose it to the page; Play is always there.
    const focused = document.activeElement;
    button("first").disabled = button("back").disabled = at === 0;
    button("next").disabled = button("last").disabled = at === panels.length - 1;
    button("failure").disabled = !failures.some((step) => step > at);
    if (focused && focused.disabled && root.contains(focused)) button("play").focus();
    // Joined with spaces: end to end, "block 3." and "7 of 11 blocks free" would be read as block 3.7.
    const words = Array.from(panels[at].querySelectorAll(".p2p-words > p"), (line) => line.textContent.trim());
    if (announce) live.textContent = words.join(" ");
  }

  function stop() {
    if (timer !== null) window.clearInterval(timer);
    timer = null;
    button("play").textContent = "Play";
  }

  function play() {
    if (timer !== null) return stop();
    if (at === panels.length - 1) show(0, true);
    button("play").textContent = "Pause";
    // Slower for a reader who asked for less motion: the page still changes, only without haste.
    timer = window.setInterval(() => {
      show(at + 1, true);
      if (at === panels.length - 1) stop();
    }, calm.matches ? 4000 : 1800);
  }

  const moves = {
    first: () => 0,
    back: () => at - 1,
    next: () => at + 1,
    last: () => panels.length - 1,
    failure: () => failures.find((step) => step > at) ?? at,
  };
  function go(name) {
    stop();
    show(moves[name](), true);
  }
  root.addEventListener("click", (event) => {
    const pressed = event.target.closest("button[data-do]");
    if (!pressed) return;
    if (pressed.dataset.do === "play") play();
    else go(pressed.dataset.do);
  });
  const keys = { ArrowLeft: "back", ArrowRight: "next", Home: "first", End: "last", f: "failure", F: "failure" };
  root.addEventListener("keydown", (event) => {
    // On a button or a summary the space bar presses that.
    const plays = event.key === " " && !event.target.closest("button, summary");
    if (!(plays || event.key in keys) || event.ctrlKey || event.altKey || event.metaKey) return;
    // Notebooks move between cells with the same keys.
    event.preventDefault();
    event.stopPropagation();
    if (plays) play();
    else go(keys[event.key]);
  });

  // A finger that moves sideways turns the page; one that moves down scrolls, and so does one on a table that is too wide.
  let from = null;
  const area = root.querySelector(":scope > .p2p-panels");
  area.addEventListener("touchstart", (event) => {
    const wide = event.target.closest(".p2p-scroll");
    const scrolls = wide && wide.scrollWidth > wide.clientWidth;
    from = event.touches.length === 1 && !scrolls ? event.touches[0] : null;
  }, { passive: true });
  area.addEventListener("touchcancel", () => { from = null; }, { passive: true });
  area.addEventListener("touchend", (event) => {
    if (from === null) return;
    const to = event.changedTouches[0];
    const [x, y] = [to.clientX - from.clientX, to.clientY - from.clientY];
    from = null;
    if (Math.abs(x) > 40 && Math.abs(x) > 2 * Math.abs(y)) go(x < 0 ? "next" : "back");
  }, { passive: true });

  // The table stays open, or closed, from step to step.
  const twins = Array.from(root.querySelectorAll(".p2p-twin"));
  twins.forEach((twin) => twin.addEventListener("toggle", () => {
    twins.forEach((other) => { other.open = twin.open; });
  }));
  root.querySelector(".p2p-controls").hidden = false;
  // Open in the page for readers without JavaScript; the panels say the same one by one.
  root.querySelector(".p2p-steps").parentElement.open = false;
  show(0, false);
}
