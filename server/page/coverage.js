/** Shows what became of every second: transcribed, silent, skipped, dropped. */

import { clock } from "./text.js";

export const FATES = ["transcribed", "silent", "skipped", "dropped"];
const MEANINGS = {
  transcribed: "transcribed",
  silent: "silence",
  skipped: "skipped",
  dropped: "dropped",
};
const STRIPES = { skipped: [1], dropped: [1, -1] }; // directions: fates differ by more than colour
const STRIPE = 7; // pixels between two stripes

/** Draw the fates over a canvas as wide as the recording. */
export function drawCoverage(canvas, coverage, duration) {
  const { context, width, height } = prepare(canvas);
  fill(context, coverage ? "transcribed" : "silent", 0, width, height);
  for (const { start, end, fate } of coverage?.spans ?? []) {
    fill(context, fate, (start / duration) * width, (end / duration) * width, height);
  }
}

/** Fill a list with the fates, their colours and their seconds. */
export function showLegend(list, coverage) {
  const shown = FATES.filter((fate) => coverage?.[fate] > 0);
  list.replaceChildren(
    ...shown.map((fate) => {
      const item = document.createElement("li");
      const swatch = document.createElement("canvas");
      swatch.setAttribute("aria-hidden", "true");
      item.append(swatch, `${MEANINGS[fate]} ${coverage[fate].toFixed(1)} s`);
      return item;
    }),
  );
  [...list.querySelectorAll("canvas")].forEach((swatch, index) => {
    const { context, width, height } = prepare(swatch);
    fill(context, shown[index], 0, width, height);
  });
}

/** Fill a list with the stretches that have no text; `play(seconds)` lets one hear them. */
export function showGaps(list, coverage, play) {
  const spans = coverage?.spans ?? [];
  list.replaceChildren(
    ...spans.map((span) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${clock(span.start, 1)} – ${clock(span.end, 1)}`;
      button.addEventListener("click", () => play(span.start));
      item.append(button, ` ${describe(span)}`);
      return item;
    }),
  );
  return spans.length;
}

/** What became of a second, in words. */
export function fateAt(coverage, seconds) {
  const span = coverage?.spans.find(({ start, end }) => start <= seconds && seconds < end);
  return span ? describe(span) : "";
}

function describe({ fate, reason }) {
  return reason ? `${MEANINGS[fate]}: ${reason}` : MEANINGS[fate];
}

function prepare(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(width * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(height * devicePixelRatio));
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  return { context, width, height };
}

function fill(context, fate, from, to, height) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
  context.fillStyle = colour(fate);
  context.fillRect(from, 0, to - from, height);
  if (!STRIPES[fate]) return;
  context.save();
  context.beginPath();
  context.rect(from, 0, to - from, height);
  context.clip();
  context.beginPath();
  for (const direction of STRIPES[fate]) {
    for (let x = from - height; x < to + height; x += STRIPE) {
      context.moveTo(x, direction > 0 ? height : 0);
      context.lineTo(x + height, direction > 0 ? 0 : height);
    }
  }
  context.strokeStyle = colour("mark");
  context.lineWidth = 1;
  context.stroke();
  context.restore();
}
