// What a page of the book does after loading, beside its theme: keyboard access to regions that scroll, search without a
// server, and folded parts opened for print. Knows nothing of the figures; each brings its own script.
"use strict";
(function () {
  // A page opened from a file may not read its neighbours, so search lists titles without excerpts there.
  if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
    DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  }

  const SCROLLERS =
    ".pst-scrollable-table-container, .bd-article pre, .cell_output .output, .math, mjx-container, .bd-article figure";

  function nameOf(element) {
    if (element.matches("pre")) return element.closest(".cell_output") ? "Output" : "Code";
    if (element.matches(".math, mjx-container")) return "Formula";
    return element.matches(".pst-scrollable-table-container") ? "Table" : "Output";
  }

  // A region that scrolls must be reachable by keyboard; one that does not should cost no tab stop.
  function markScrollers() {
    for (const element of document.querySelectorAll(SCROLLERS)) {
      const style = getComputedStyle(element);
      const may = /auto|scroll/.test(style.overflowX + style.overflowY);
      const wide = element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1;
      if (may && wide && !element.querySelector("a[href], button, input, select, textarea")) {
        element.tabIndex = 0;
        if (!element.hasAttribute("role")) {
          element.setAttribute("role", "group");
          element.dataset.scrolls = "";
        }
        if (!element.hasAttribute("aria-label")) element.setAttribute("aria-label", nameOf(element) + ", scrolls");
      } else if ("scrolls" in element.dataset) {
        element.removeAttribute("tabindex");
        element.removeAttribute("role");
        element.removeAttribute("aria-label");
        delete element.dataset.scrolls;
      }
    }
  }

  // The theme's switch has three states and no name for the present one.
  function nameThemeSwitch() {
    const mode = document.documentElement.dataset.mode || "auto";
    const names = { light: "light", dark: "dark", auto: "as the system" };
    for (const button of document.querySelectorAll(".theme-switch-button")) {
      button.setAttribute("aria-label", "Colours: " + (names[mode] || mode) + ". Change");
    }
  }

  // The theme opens and closes the sidebars, by Escape too, but does not say which they are.
  function nameSidebarStates() {
    for (const side of ["primary", "secondary"]) {
      const box = document.getElementById("pst-" + side + "-sidebar-checkbox");
      const button = document.querySelector("button." + side + "-toggle");
      if (!box || !button) continue;
      const say = () => button.setAttribute("aria-expanded", String(box.checked));
      box.addEventListener("change", say);
      button.addEventListener("click", () => setTimeout(say, 0));
      // In the capturing phase: the theme's own listener lets the key go no further.
      document.addEventListener("keydown", (event) => event.key === "Escape" && setTimeout(say, 0), true);
    }
  }

  // Paper has no clicks: open what is folded, then fold it again. The table twin of a figure stays folded beside its picture.
  // It is white too: the dark theme would leave black headings on a dark page.
  let opened = [];
  let theme;
  addEventListener("beforeprint", () => {
    theme = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
    opened = [...document.querySelectorAll(".bd-article details:not([open])")].filter((d) => !d.closest("figure"));
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
    if (theme) document.documentElement.dataset.theme = theme;
  });

  addEventListener("DOMContentLoaded", () => {
    nameSidebarStates();
    nameThemeSwitch();
    new MutationObserver(nameThemeSwitch).observe(document.documentElement, { attributeFilter: ["data-mode"] });
    markScrollers();
  });
  addEventListener("load", () => {
    const ready = window.MathJax && window.MathJax.startup && window.MathJax.startup.promise;
    Promise.resolve(ready).then(markScrollers, markScrollers);
    // The theme sets its own tab stops after loading and on resize; ours come last.
    setTimeout(markScrollers, 400);
  });
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(markScrollers, 400);
  });
  addEventListener("toggle", () => setTimeout(markScrollers, 0), true);
})();
