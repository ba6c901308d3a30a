/** Plays a recording, and shows it as a waveform with its coverage. */

import { drawCoverage, fateAt, showGaps, showLegend } from "./coverage.js";
import { clock } from "./text.js";

const LIBRARY = "./wavesurfer/wavesurfer.esm.js";
const MOST_BYTES = 200e6; // a waveform needs the whole recording in memory, decoded
const FAR = 1e7; // seconds: beyond the end of every recording
const byId = (id) => document.getElementById(id);

/** Events: `time` with the position in seconds as `detail`. */
export class Player extends EventTarget {
  #audio = new Audio();
  #library = null;
  #surfer = null;
  #result = null;
  #frame = 0;

  constructor() {
    super();
    byId("play").addEventListener("click", () => this.toggle());
    byId("rate").addEventListener("change", (event) => {
      this.#audio.playbackRate = Number(event.target.value);
    });
    byId("seek").addEventListener("input", (event) => this.seek(Number(event.target.value)));
    const timeline = byId("timeline");
    timeline.addEventListener("click", (event) => this.seek(this.#secondsAt(event)));
    timeline.addEventListener("pointermove", (event) => {
      const seconds = this.#secondsAt(event);
      timeline.title = `${clock(seconds, 1)} ${fateAt(this.#coverage, seconds)}`;
    });
    new ResizeObserver(() => this.#draw()).observe(timeline);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#draw();
      this.#colour();
    });
  }

  /** Load the library that draws waveforms, if the server has it. */
  async loadLibrary(isThere) {
    if (isThere) this.#library = (await import(LIBRARY)).default;
  }

  /** Seconds of the recording: as the browser reads it, else as the server did; 0 if unknown. */
  get duration() {
    const { duration } = this.#audio;
    return Number.isFinite(duration) && duration > 0 ? duration : (this.#result?.duration ?? 0);
  }

  get #coverage() {
    return this.#result?.whisper_npu.coverage ?? null;
  }

  /** Show a recording, given the address of its file in the browser's memory. */
  open(file, address) {
    this.close();
    this.#audio = this.#newAudio(address);
    byId("player-note").textContent = "";
    byId("play").disabled = false;
    this.#drawWave(file);
    this.#moved();
  }

  /** Show a recording no longer. */
  close() {
    this.#surfer?.destroy();
    this.#surfer = null;
    byId("wave").replaceChildren();
    this.#audio.pause();
    this.#audio.remove();
  }

  /** Show what became of every second; null if it is not known yet. */
  setResult(result) {
    this.#result = result;
    const nGaps = showGaps(byId("gap-list"), this.#coverage, (seconds) => this.playFrom(seconds));
    byId("gaps").hidden = nGaps === 0;
    this.#shown();
  }

  toggle() {
    if (this.#audio.paused) this.#play();
    else this.#audio.pause();
  }

  seek(seconds) {
    this.#audio.currentTime = Math.min(Math.max(0, seconds), this.duration || seconds);
    this.#moved();
  }

  playFrom(seconds) {
    this.seek(seconds);
    this.#play();
  }

  /** A new element for each recording, so that late events of an earlier one change nothing. */
  #newAudio(address) {
    const audio = new Audio(address);
    audio.playbackRate = Number(byId("rate").value);
    const on = (name, act) =>
      audio.addEventListener(name, () => audio === this.#audio && act());
    on("loadedmetadata", () => this.#measure());
    on("durationchange", () => this.#shown());
    on("error", () => this.#cannotPlay());
    for (const name of ["play", "pause", "ended", "seeked"]) on(name, () => this.#moved());
    byId("player").append(audio);
    return audio;
  }

  async #play() {
    try {
      await this.#audio.play();
    } catch (error) {
      if (error.name === "NotSupportedError") this.#cannotPlay();
    }
  }

  /** Recordings of a browser do not tell their duration until they were read to the end. */
  #measure() {
    if (this.#audio.duration === Infinity) {
      this.#audio.addEventListener("durationchange", () => this.seek(0), { once: true });
      this.#audio.currentTime = FAR;
    }
    this.#moved();
  }

  #drawWave(file) {
    const canDraw = this.#library !== null && file.size <= MOST_BYTES;
    byId("timeline").classList.toggle("flat", !canDraw);
    if (!canDraw) return;
    // It reads the recording from the audio element's address.
    const surfer = this.#library.create({
      container: byId("wave"),
      media: this.#audio,
      height: "auto",
      interact: false,
      cursorWidth: 0,
      barWidth: 2,
      barGap: 1,
      normalize: true,
      hideScrollbar: true,
      cspNonce: document.querySelector("link[nonce]").nonce,
      ...colours(),
    });
    surfer.on("error", () => {
      if (surfer === this.#surfer) byId("timeline").classList.add("flat");
    });
    this.#surfer = surfer;
  }

  #colour() {
    this.#surfer?.setOptions(colours());
  }

  #cannotPlay() {
    byId("play").disabled = true;
    byId("player-note").textContent =
      "This browser cannot play the file; the server reads more formats.";
  }

  #shown() {
    byId("seek").max = String(this.duration || 1);
    this.#draw();
    this.#moved();
  }

  #draw() {
    drawCoverage(byId("coverage"), this.#coverage, this.duration || 1);
    showLegend(byId("legend"), this.#coverage);
  }

  #secondsAt(event) {
    const { left, width } = byId("timeline").getBoundingClientRect();
    return (Math.min(Math.max(0, event.clientX - left), width) / width) * this.duration;
  }

  /** Show the position, now and at each picture of the screen while it plays. */
  #moved() {
    cancelAnimationFrame(this.#frame);
    const { currentTime, paused } = this.#audio;
    byId("play").textContent = paused ? "Play" : "Pause";
    const all = clock(Math.round(this.duration));
    byId("time").textContent = `${clock(currentTime)} / ${all}`;
    const seek = byId("seek");
    seek.value = String(currentTime);
    seek.setAttribute("aria-valuetext", `${clock(currentTime)} of ${all}`);
    byId("cursor").style.left = `${100 * (currentTime / (this.duration || 1))}%`;
    this.dispatchEvent(new CustomEvent("time", { detail: currentTime }));
    if (!paused) this.#frame = requestAnimationFrame(() => this.#moved());
  }
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  return {
    waveColor: style.getPropertyValue("--wave").trim(),
    progressColor: style.getPropertyValue("--wave-done").trim(),
  };
}
