"use strict";

const tip = document.getElementById("tip");

function place(event) {
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
  const above = event.clientY - box.height - 14;
  tip.style.left = `${Math.max(x, 8)}px`;
  tip.style.top = `${above > 8 ? above : event.clientY + 18}px`;
}

for (const chart of document.querySelectorAll("svg.chart")) {
  const points = JSON.parse(chart.dataset.points);
  const hover = chart.querySelector(".hover");
  const [line, dot] = hover.children;
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const [x, y, text] = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    dot.setAttribute("cx", x);
    dot.setAttribute("cy", y);
    tip.textContent = text;
    hover.removeAttribute("hidden");
    tip.hidden = false;
    place(event);
  });
  chart.addEventListener("pointerleave", () => {
    hover.setAttribute("hidden", "");
    tip.hidden = true;
  });
}

const pause = document.getElementById("pause");
if (pause) {
  pause.addEventListener("click", () => {
    const paused = document.body.classList.toggle("paused");
    pause.setAttribute("aria-pressed", paused);
    pause.textContent = paused ? "Play" : "Pause";
  });
}

// For checks of the page: how many of its pictures were really drawn.
window.addEventListener("load", () => {
  const pictures = [...document.images];
  const drawn = pictures.filter((picture) => picture.complete && picture.naturalWidth > 0);
  document.documentElement.dataset.pictures = `${drawn.length}/${pictures.length}`;
});
