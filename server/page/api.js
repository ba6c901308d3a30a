/** Asks the server: models, languages, transcriptions. */

const LEAST_RETRY = 2; // seconds
let key = sessionStorage.getItem("api-key") ?? "";

/** An error of the server, or of the way to it, in words. */
export class ApiError extends Error {
  /**
   * @param {string} message in one sentence
   * @param {number} status the HTTP status; 0 if there was no answer
   * @param {string} code the server's code of the error
   * @param {number} retryAfter seconds after which it is worth to try again
   */
  constructor(message, status = 0, code = "", retryAfter = 0) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  /** Whether the same request may succeed later without anybody's doing. */
  get isTemporary() {
    return this.status === 429 || (this.status === 503 && this.code === "model_loading");
  }
}

/** Use an API key for all further requests; it is kept until the tab is closed. */
export function useKey(given) {
  key = given;
  sessionStorage.setItem("api-key", given);
}

export function hasKey() {
  return key !== "";
}

/** The protocols of a WebSocket; a browser sends the key as one, as it cannot send headers. */
export function webSocketProtocols() {
  return key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
}

/** The models, without aliases. */
export async function listModels() {
  const { data } = await getJson("v1/models");
  return data.filter((model) => model.whisper_npu.alias_of === undefined);
}

/** What the page has to know of its server: languages by code, whether it has waveforms, live text. */
export function about() {
  return getJson("page/about.json");
}

async function getJson(path) {
  let answer;
  try {
    answer = await fetch(path, { headers: headers() });
  } catch {
    throw lost();
  }
  const text = await answer.text();
  if (!answer.ok) throw errorOf(answer.status, text, answer.headers.get("Retry-After"));
  return JSON.parse(text);
}

/**
 * Transcribe a file.
 *
 * @param {File} file the recording
 * @param {object} options model; language, "" to detect it; words: whether to ask for word times
 * @param {object} take functions: upload(fraction), uploaded(), progress({seconds_done, duration}),
 *   delta(event) and done(event) with the server's events
 * @param {AbortSignal} signal ends it
 * @returns {Promise<void>} fails with an ApiError, or with an AbortError
 */
export function transcribe(file, options, take, signal) {
  const form = new FormData();
  form.append("model", options.model);
  form.append("response_format", "verbose_json");
  form.append("stream", "true");
  form.append("timestamp_granularities[]", "segment");
  if (options.words) form.append("timestamp_granularities[]", "word");
  if (options.language) form.append("language", options.language);
  form.append("file", file, file.name);
  // XMLHttpRequest, because fetch does not tell the progress of an upload.
  const request = new XMLHttpRequest();
  const events = new EventReader(take);
  return new Promise((resolve, reject) => {
    const end = (error) => {
      signal.removeEventListener("abort", stop);
      request.abort();
      if (error) reject(error);
      else resolve();
    };
    const stop = () => end(new DOMException("cancelled", "AbortError"));
    const read = () => {
      try {
        events.read(request.responseText);
      } catch (error) {
        end(error);
      }
    };
    signal.addEventListener("abort", stop);
    request.upload.onprogress = (event) => take.upload(event.loaded / event.total);
    request.upload.onload = () => take.uploaded();
    request.onprogress = () => request.status === 200 && read();
    request.onerror = () => end(lost());
    request.onload = () => {
      if (request.status !== 200) {
        end(errorOf(request.status, request.responseText, request.getResponseHeader("Retry-After")));
        return;
      }
      read();
      end(events.isComplete ? null : lost());
    };
    request.open("POST", "v1/audio/transcriptions");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.send(form);
  });
}

/** Reads server-sent events out of a text that grows. */
class EventReader {
  constructor(take) {
    this.take = take;
    this.position = 0;
    this.isComplete = false;
  }

  read(text) {
    for (;;) {
      const end = text.indexOf("\n\n", this.position);
      if (end < 0) return;
      const event = text.slice(this.position, end);
      this.position = end + 2;
      if (event.startsWith(": ")) this.take.progress(JSON.parse(event.slice(2)));
      else if (event.startsWith("data: ")) this.data(event.slice(6));
    }
  }

  data(text) {
    if (text === "[DONE]") {
      this.isComplete = true;
      return;
    }
    const event = JSON.parse(text);
    if (event.error) throw new ApiError(event.error.message, 200, event.error.code ?? "");
    if (event.type === "transcript.text.delta") this.take.delta(event);
    if (event.type === "transcript.text.done") this.take.done(event);
  }
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function lost() {
  return new ApiError("the server cannot be reached; see whether it runs, then try again");
}

function errorOf(status, text, retryAfter) {
  const seconds = Math.max(LEAST_RETRY, Number(retryAfter) || 0);
  try {
    const { message, code } = JSON.parse(text).error;
    return new ApiError(message, status, code ?? "", seconds);
  } catch {
    return new ApiError(`the server answers with status ${status}`, status, "", seconds);
  }
}
