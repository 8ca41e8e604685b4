/* The batch builder: pick requests, watch the padding. One table is both the control and the figure.
   Knows nothing of the numbers: each row carries its prompt length in data-tokens. */
(function () {
  "use strict";
  const whole = (number) => number.toLocaleString("en-GB");

  function start(root) {
    const rows = Array.from(root.querySelectorAll("tbody tr"));
    const said = root.querySelector("output");
    const longest = Math.max(...rows.map((row) => Number(row.dataset.tokens)));

    function show() {
      const picked = rows.filter((row) => row.querySelector("input").checked);
      const width = Math.max(0, ...picked.map((row) => Number(row.dataset.tokens)));
      let tokens = 0;
      for (const row of rows) {
        const own = Number(row.dataset.tokens);
        const inside = picked.includes(row);
        const pads = inside ? width - own : 0;
        tokens += inside ? own : 0;
        row.classList.toggle("in", inside);
        row.querySelector(".held").style.width = (100 * own) / longest + "%";
        row.querySelector(".pads").style.width = (100 * pads) / longest + "%";
        row.querySelector(".pads").hidden = pads === 0;
        row.querySelector(".count").textContent = inside ? whole(pads) : "-";
      }
      const slots = picked.length * width;
      said.textContent = picked.length === 0
        ? "The batch is empty."
        : picked.length + (picked.length === 1 ? " row of " : " rows of ") + whole(width) + " slots = " + whole(slots) +
          " slots; " + whole(tokens) + " hold tokens. Padding: " + (100 * (1 - tokens / slots)).toFixed(1) + " %.";
    }

    function pick(wanted) {
      rows.forEach((row, number) => { row.querySelector("input").checked = wanted.includes(number); });
      show();
    }

    root.addEventListener("change", show);
    for (const button of root.querySelectorAll("button")) {
      button.disabled = false;
      button.addEventListener("click", () => pick(JSON.parse(button.dataset.pick)));
    }
    show();
  }

  for (const root of document.querySelectorAll(".p2p-builder:not([data-live])")) {
    root.dataset.live = "yes";
    start(root);
  }
})();
