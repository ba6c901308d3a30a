/** Texts for people. */

/** Seconds as `1:02:03`, `2:03`, or with `places` digits more: `2:03.4`. */
export function clock(seconds, places = 0) {
  const factor = 10 ** places;
  const all = Math.floor(seconds * factor + 1e-6) / factor;
  const hours = Math.floor(all / 3600);
  const minutes = Math.floor(all / 60) % 60;
  const rest = (all % 60).toFixed(places).padStart(places ? places + 3 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** A text with a capital first letter. */
export function capitalised(text) {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}
