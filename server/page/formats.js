/** Writes a transcript as txt, srt, vtt (as `whisper-npu transcribe --word-timestamps True`), json. */

const TYPES = { txt: "text/plain", srt: "application/x-subrip", vtt: "text/vtt", json: "application/json" };

/**
 * A transcript as a file.
 *
 * @param {Job} job a job that is done
 * @param {"txt" | "srt" | "vtt" | "json"} format
 * @returns {File}
 */
export function toFile(job, format) {
  const stem = job.name.replace(/\.[^.]*$/, "") || job.name;
  const content = format === "json" ? json(job) : WRITERS[format](job.segments);
  return new File([content], `${stem}.${format}`, { type: TYPES[format] });
}

/** The whole text. */
export function plainText(segments) {
  return segments.map((segment) => segment.text).join("").trim();
}

const WRITERS = {
  txt: (segments) => segments.map((segment) => `${segment.text.trim()}\n`).join(""),
  srt: (segments) =>
    cues(segments)
      .map(([start, end, text], index) => `${index + 1}\n${srtTime(start)} --> ${srtTime(end)}\n${text}\n\n`)
      .join(""),
  vtt: (segments) =>
    "WEBVTT\n\n" +
    cues(segments)
      .map(([start, end, text]) => `${vttTime(start)} --> ${vttTime(end)}\n${text}\n\n`)
      .join(""),
};

/** Start, end and text of each cue; word times, where there are any, are its limits. */
function cues(segments) {
  return segments
    .filter((segment) => segment.words === null || segment.words.length > 0)
    .map((segment) => [
      segment.words?.[0].start ?? segment.start,
      segment.words?.at(-1).end ?? segment.end,
      segment.text.trim().replaceAll("-->", "->"),
    ]);
}

function vttTime(seconds) {
  const milliseconds = roundHalfEven(seconds * 1000);
  const hours = Math.floor(milliseconds / 3_600_000);
  const minutes = String(Math.floor(milliseconds / 60_000) % 60).padStart(2, "0");
  const rest = (milliseconds % 60_000) / 1000;
  const short = `${minutes}:${rest.toFixed(3).padStart(6, "0")}`;
  return hours ? `${String(hours).padStart(2, "0")}:${short}` : short;
}

function srtTime(seconds) {
  const time = vttTime(seconds).replace(".", ",");
  return time.length === 9 ? `00:${time}` : time;
}

/** As Python rounds. */
function roundHalfEven(number) {
  const rounded = Math.round(number);
  return rounded - number === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/** The server's verbose_json; segments that were edited say so, and have no tokens. */
function json(job) {
  const segments = job.segments.map(({ fields, isEdited, text }) =>
    isEdited ? { ...fields, text, tokens: [], edited: true } : fields,
  );
  const words = job.segments.flatMap((segment) => segment.words ?? []);
  const { task, language, duration, whisper_npu } = job.result;
  const hasWords = job.result.words !== undefined;
  const all = { task, language, duration, text: plainText(job.segments), segments };
  return `${JSON.stringify({ ...all, ...(hasWords && { words }), whisper_npu }, null, 1)}\n`;
}
