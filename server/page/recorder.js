/** Records the microphone into a file. */

import { clock } from "./text.js";

/** Events: `time` once a second with the seconds so far as `detail`. */
export class Recorder extends EventTarget {
  #recorder = null;
  #timer = 0;

  /** Why this browser cannot record here; empty if it can. */
  static get obstacle() {
    if (!isSecureContext) return "Recording needs https, or a server on this machine.";
    if (!navigator.mediaDevices || !globalThis.MediaRecorder) return "This browser cannot record.";
    return "";
  }

  /** What is recorded. */
  get stream() {
    return this.#recorder.stream;
  }

  get isOn() {
    return this.#recorder !== null;
  }

  /**
   * Begin to record.
   *
   * @returns {Promise<void>} fails with an Error in words
   */
  async start() {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      throw new Error(WORDS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
    this.#recorder = new MediaRecorder(stream);
    this.#recorder.start(1000); // in parts of a second, so that little is lost if the browser ends
    const begun = performance.now();
    const tell = () =>
      this.dispatchEvent(
        new CustomEvent("time", { detail: clock((performance.now() - begun) / 1000) }),
      );
    this.#timer = setInterval(tell, 1000);
    tell();
    this.#collect();
  }

  #collect() {
    const parts = [];
    const recorder = this.#recorder;
    recorder.addEventListener("dataavailable", ({ data }) => parts.push(data));
    this.file = new Promise((resolve) => {
      recorder.addEventListener("stop", () => resolve(toFile(parts, recorder.mimeType)));
    });
  }

  /** End the recording, and return it. */
  stop() {
    clearInterval(this.#timer);
    const recorder = this.#recorder;
    this.#recorder = null;
    if (recorder.state !== "inactive") recorder.stop();
    for (const track of recorder.stream.getTracks()) track.stop();
    return this.file;
  }
}

const WORDS = {
  NotAllowedError: "The browser does not let this page use the microphone; allow it, then try again.",
  NotFoundError: "This machine has no microphone.",
  NotReadableError: "Another program uses the microphone; end it, then try again.",
};

function toFile(parts, type) {
  const suffix = type.includes("mp4") ? "m4a" : type.includes("ogg") ? "ogg" : "webm";
  const now = new Date();
  const two = (number) => String(number).padStart(2, "0");
  const day = [now.getFullYear(), two(now.getMonth() + 1), two(now.getDate())].join("-");
  const name = `recording ${day} ${two(now.getHours())}.${two(now.getMinutes())}.${two(now.getSeconds())}`;
  return new File(parts, `${name}.${suffix}`, { type });
}
