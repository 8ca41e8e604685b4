/* The budget bar: weights and cache in the memory of a GPU, as model, bits, context and requests change.
   Knows no model: bytes of a token and of the weights, the budget and the rate stand in data-sizes. */
(function () {
  "use strict";
  const whole = (number) => number.toLocaleString("en-GB");
  const giga = (bytes) => (bytes / 1e9).toFixed(1);

  function start(root) {
    const sizes = JSON.parse(root.dataset.sizes);
    const control = (name) => root.querySelector("[name=" + name + "]");
    const said = root.querySelector("output");

    function show() {
      const [perToken, weights, readWeights] = sizes.models[Number(control("model").value)];
      const bits = Number(control("bits").value);
      const context = sizes.contexts[Number(control("context").value)];
      const requests = Number(control("requests").value);
      const one = Math.floor((perToken * bits) / 16);
      const cache = one * context * requests;
      const asked = cache + weights;
      const read = cache + readWeights;
      const most = "At most " + whole(Math.floor(Math.max(0, sizes.budget - weights) / (one * context))) + " fit.";
      const sum = whole(one) + " bytes × " + whole(context) + " tokens × " + whole(requests) +
        (requests === 1 ? " request = " : " requests = ") + giga(cache) + " GB of cache, and " +
        giga(weights) + " GB of weights. ";
      const over = asked > sizes.budget;
      said.textContent = over
        ? sum + "Too much for " + giga(sizes.budget) + " GB. " + most
        : sum + "It fits. " + most + " A step reads " + giga(read) + " GB, at least " +
          (read / sizes.read / 1e6).toFixed(1) + " ms.";
      root.classList.toggle("over", over);
      const width = Math.max(sizes.budget, asked);
      for (const [name, part] of [["held", weights], ["pads", cache], ["free", width - asked]]) {
        const drawn = root.querySelector("div.p2p-bar ." + name);
        drawn.style.width = (100 * part) / width + "%";
        drawn.hidden = part === 0;
      }
      for (const [name, text, unit] of [["context", whole(context), " tokens"], ["requests", whole(requests), ""]]) {
        control(name).parentElement.querySelector("b").textContent = text;
        control(name).setAttribute("aria-valuetext", text + unit);
      }
    }

    const more = root.querySelector("button");
    for (const element of root.querySelectorAll("select, input, button")) element.disabled = false;
    root.addEventListener("input", show);
    more.addEventListener("click", () => { control("requests").stepUp(); show(); });
    show();
  }

  for (const root of document.querySelectorAll(".p2p-budget:not([data-live])")) {
    root.dataset.live = "yes";
    start(root);
  }
})();
