/** The recordings of this page: each waits, is sent, is decoded, and is done, failed or cancelled. */

import { ApiError, transcribe } from "./api.js";
import { capitalised, clock } from "./text.js";

const MOST_AT_ONCE = 2; // uploads of further recordings would only wait at the server
const MOST_TRIES = 30; // of a server that is busy

/**
 * A recording and what is known of its text.
 *
 * State: "waiting" for its turn or for the server, "uploading", "decoding", "done", "failed",
 * "cancelled". Each segment has `id`, `start`, `end`, `text`, `words` (null without word times),
 * `isEdited`, `original` and the server's `fields`.
 */
export class Job {
  static #count = 0;

  constructor(file, options) {
    this.number = ++Job.#count;
    this.file = file;
    this.address = URL.createObjectURL(file);
    this.name = file.name;
    this.options = options;
    this.reset();
  }

  reset() {
    this.state = "waiting";
    this.error = "";
    this.fraction = 0; // of the upload, or of the decoding
    this.progress = null;
    this.segments = [];
    this.result = null;
    this.tries = 0;
    this.isSaved = true;
  }

  get isRunning() {
    return this.state === "uploading" || this.state === "decoding";
  }

  get hasEnded() {
    return ["done", "failed", "cancelled"].includes(this.state);
  }

  /** The state in words. */
  get description() {
    switch (this.state) {
      case "waiting":
        return this.error ? `Waiting: ${this.error}` : "Waiting";
      case "uploading":
        return `Uploading ${Math.floor(100 * this.fraction)} %`;
      case "decoding":
        return this.#decoding();
      case "failed":
        return `Failed: ${this.error}`;
      case "cancelled":
        return "Cancelled";
      default:
        return `Done: ${clock(Math.round(this.result.duration))} of ${capitalised(this.result.language)}`;
    }
  }

  #decoding() {
    if (this.progress === null) return "Uploaded; the server begins soon";
    const { seconds_done: done, duration } = this.progress;
    return `Transcribing ${clock(done)}${duration ? ` of ${clock(duration)}` : ""}`;
  }
}

/** Runs jobs in order, some at once. Events: `change` of a job (`detail`), `key` if one is needed. */
export class Queue extends EventTarget {
  /** @param {() => object} options the options of jobs that were added before one could choose */
  constructor(options) {
    super();
    this.options = options;
    this.jobs = [];
    this.isPaused = true;
    this.aborters = new Map();
  }

  /** Add jobs; without options they get those of the time when they begin. */
  add(files, options = null) {
    const added = [...files].map((file) => new Job(file, options));
    this.jobs.push(...added);
    for (const job of added) this.#changed(job);
    this.#run();
    return added;
  }

  cancel(job) {
    if (job.hasEnded) return;
    this.#end(job, "cancelled");
    this.aborters.get(job)?.abort();
  }

  again(job, options) {
    job.reset();
    job.options = options;
    this.#changed(job);
    this.#run();
  }

  remove(job) {
    this.cancel(job);
    this.jobs = this.jobs.filter((other) => other !== job);
    this.#changed(job);
    URL.revokeObjectURL(job.address);
  }

  /** Begin once the models are known, and go on after a key was given. */
  resume() {
    this.isPaused = false;
    this.#run();
  }

  #run() {
    if (this.isPaused) return;
    const nRunning = this.aborters.size;
    const next = this.jobs.filter((job) => job.state === "waiting" && !job.error);
    for (const job of next.slice(0, Math.max(0, MOST_AT_ONCE - nRunning))) this.#start(job);
  }

  async #start(job) {
    const aborter = new AbortController();
    this.aborters.set(job, aborter);
    job.options ??= this.options();
    this.#set(job, { state: "uploading", fraction: 0, segments: [], progress: null });
    try {
      await transcribe(job.file, job.options, this.#taker(job), aborter.signal);
      this.#end(job, "done");
    } catch (error) {
      if (error.name !== "AbortError") this.#failed(job, error);
    } finally {
      this.aborters.delete(job);
      this.#run();
    }
  }

  #taker(job) {
    return {
      upload: (fraction) => this.#set(job, { fraction }),
      uploaded: () => this.#set(job, { state: "decoding", fraction: null }),
      progress: (progress) => {
        const { seconds_done: done, duration } = progress;
        this.#set(job, { progress, fraction: duration ? Math.min(1, done / duration) : null });
      },
      delta: ({ whisper_npu: { segment, words } }) => {
        job.segments.push(newSegment(segment, words ?? null));
        this.#changed(job);
      },
      done: (event) => {
        // Segments without text have not come as deltas.
        const known = new Map(job.segments.map((segment) => [segment.id, segment]));
        const empty = event.words === undefined ? null : [];
        job.segments = event.segments.map((each) => known.get(each.id) ?? newSegment(each, empty));
        job.result = event;
        this.#changed(job);
      },
    };
  }

  #failed(job, error) {
    if (!(error instanceof ApiError)) console.error(error);
    if (error.status === 401) {
      this.isPaused = true;
      this.#set(job, { state: "waiting" });
      this.dispatchEvent(new CustomEvent("key", { detail: error.message }));
    } else if (error.isTemporary && job.tries < MOST_TRIES) {
      job.tries += 1;
      this.#set(job, { state: "waiting", error: `${error.message}; next try in ${error.retryAfter} s` });
      setTimeout(() => {
        if (job.state !== "waiting") return;
        job.error = "";
        this.#run();
      }, 1000 * error.retryAfter);
    } else {
      job.error = error.message;
      this.#end(job, "failed");
    }
  }

  #end(job, state) {
    if (job.hasEnded) return;
    this.#set(job, { state, fraction: null });
  }

  #set(job, changes) {
    Object.assign(job, changes);
    this.#changed(job);
  }

  #changed(job) {
    this.dispatchEvent(new CustomEvent("change", { detail: job }));
  }
}

function newSegment(fields, words) {
  const { id, start, end, text } = fields;
  return { id, start, end, text, words, isEdited: false, original: { text, words }, fields };
}
