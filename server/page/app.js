/** Puts the page together. */

import { ApiError, about, hasKey, listModels, useKey } from "./api.js";
import { plainText, toFile } from "./formats.js";
import { Live } from "./live.js";
import { Player } from "./player.js";
import { Queue } from "./queue.js";
import { Recorder } from "./recorder.js";
import { capitalised } from "./text.js";
import { Transcript } from "./transcript.js";

const LOADING = 2000; // milliseconds between two looks at a model that is being loaded
const byId = (id) => document.getElementById(id);
const queue = new Queue(options);
const player = new Player();
const recorder = new Recorder();
const live = new Live();
const transcript = new Transcript(byId("transcript"));
let models = [];
let hasLive = false; // whether the server has text while one speaks
let languages = {};
let chosen = null; // the job that is shown

// Models, languages and the key.

async function start() {
  byId("trouble").hidden = true;
  try {
    const known = await about();
    languages = known.languages;
    hasLive = known.has_live;
    await player.loadLibrary(known.has_waveform);
    await loadModels();
  } catch (error) {
    if (error.status === 401) askForKey(error.message);
    else showTrouble(error);
  }
}

async function loadModels() {
  models = await listModels();
  byId("key-form").hidden = true;
  const select = byId("model");
  const before = select.value;
  select.replaceChildren(
    ...models.map(({ id, whisper_npu: { state } }) =>
      new Option(state === "ready" ? id : `${id} (${state})`, id),
    ),
  );
  if (models.some((model) => model.id === before)) select.value = before;
  select.disabled = false;
  showLanguages();
  if (models.some((model) => model.whisper_npu.state === "loading")) {
    setTimeout(() => loadModels().catch(showTrouble), LOADING);
  }
  queue.resume();
}

function model() {
  return models.find(({ id }) => id === byId("model").value);
}

function showLanguages() {
  const select = byId("language");
  const before = select.value;
  const details = model()?.whisper_npu ?? {};
  const options =
    details.is_multilingual === false
      ? [new Option("English only", "")]
      : [
          new Option("Detect", ""),
          ...Object.entries(languages)
            .sort(([, one], [, other]) => one.localeCompare(other))
            .map(([code, name]) => new Option(capitalised(name), code)),
        ];
  select.replaceChildren(...options);
  if (options.some((option) => option.value === before)) select.value = before;
  select.disabled = options.length < 2;
}

function options() {
  return {
    model: byId("model").value,
    language: byId("language").value,
    words: model()?.whisper_npu.has_word_times === true,
  };
}

function askForKey(message) {
  byId("key-text").textContent = hasKey()
    ? `The server refuses the key: ${message}.`
    : "This server asks for an API key. It is kept until this tab is closed.";
  byId("key-form").hidden = false;
  byId("key").focus();
}

function showTrouble(error) {
  if (!(error instanceof ApiError)) console.error(error);
  byId("trouble-text").textContent = sentence(error.message);
  byId("trouble").hidden = false;
}

function sentence(text) {
  return capitalised(text) + (/[.!?]$/.test(text) ? "" : ".");
}

byId("try-again").addEventListener("click", start);
byId("model").addEventListener("change", showLanguages);
byId("choices").addEventListener("submit", (event) => event.preventDefault());
byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("key").value = "";
  await start();
});

// Recordings come in.

function add(files) {
  if (!files.length) return;
  const [first] = queue.add(files, models.length ? options() : null);
  if (!chosen || chosen.hasEnded) choose(first);
}

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => add(event.clipboardData.files));

function showRecording(text) {
  byId("record").textContent = recorder.isOn ? "Stop and transcribe" : "Record";
  byId("record").classList.toggle("primary", recorder.isOn);
  byId("discard").hidden = !recorder.isOn;
  byId("recording-text").classList.toggle("live", recorder.isOn);
  byId("recording-text").textContent = text;
  if (recorder.isOn) return;
  live.stop();
  showLive({ text: "", tentative: "", isHearing: false });
}

function showLive({ text, tentative, isHearing }) {
  byId("live-text").textContent = text || (isHearing ? " " : "");
  if (tentative) {
    const maybe = document.createElement("span");
    maybe.className = "tentative";
    maybe.textContent = ` ${tentative}`;
    byId("live-text").append(maybe);
  }
  byId("live-text").classList.toggle("hearing", isHearing);
  byId("live-text").scrollTop = byId("live-text").scrollHeight;
}

live.addEventListener("text", ({ detail }) => showLive(detail));
live.addEventListener("end", ({ detail }) => {
  byId("status").textContent = `No live text: ${detail}. The recording goes on.`;
});

let isSwitching = false; // a second click must not ask for a second microphone

async function switchRecording() {
  if (recorder.isOn) {
    const file = await recorder.stop();
    showRecording("");
    add([file]);
    return;
  }
  try {
    await recorder.start();
    if (hasLive && models.length) live.start(recorder.stream, options());
  } catch (error) {
    showRecording(error.message);
  }
}

byId("record").addEventListener("click", async () => {
  if (isSwitching) return;
  isSwitching = true;
  try {
    await switchRecording();
  } finally {
    isSwitching = false;
  }
});
byId("discard").addEventListener("click", () => {
  recorder.stop();
  showRecording("");
});
recorder.addEventListener("time", ({ detail }) => showRecording(`Recording ${detail}`));

// The queue.

const items = new Map(); // of each job: its element

queue.addEventListener("key", ({ detail }) => askForKey(detail));
queue.addEventListener("change", ({ detail: job }) => {
  if (!queue.jobs.includes(job)) {
    items.get(job)?.remove();
    items.delete(job);
    if (job === chosen) choose(queue.jobs.at(-1) ?? null);
  } else {
    showItem(job);
    if (job === chosen) showChosen();
  }
  byId("queue-part").hidden = !queue.jobs.length;
});

function showItem(job) {
  let item = items.get(job);
  if (!item) {
    item = newItem(job);
    items.set(job, item);
    byId("queue").append(item);
  }
  const [state, bar] = [item.querySelector(".state"), item.querySelector("progress")];
  const hasChanged = state.dataset.state !== job.state;
  state.textContent = job.description;
  state.dataset.state = job.state;
  state.className = `state ${job.state}`;
  bar.hidden = !job.isRunning;
  if (job.fraction === null) bar.removeAttribute("value");
  else bar.value = job.fraction;
  item.classList.toggle("chosen", job === chosen);
  item.querySelector(".name").setAttribute("aria-current", String(job === chosen));
  item.querySelector(".cancel").hidden = job.hasEnded;
  item.querySelector(".again").hidden = !job.hasEnded;
  item.querySelector(".remove").hidden = !job.hasEnded;
  if (hasChanged && job.hasEnded) byId("status").textContent = `${job.name}: ${job.description}`;
}

function newItem(job) {
  const item = document.createElement("li");
  item.className = "job";
  const state = document.createElement("p");
  const bar = document.createElement("progress");
  bar.setAttribute("aria-label", `Progress of ${job.name}`);
  const buttons = document.createElement("div");
  buttons.className = "buttons";
  state.className = "state";
  buttons.append(
    newButton("cancel", "Cancel", job, () => queue.cancel(job)),
    newButton("again", "Again", job, () => queue.again(job, options())),
    newButton("remove", "Remove", job, () => queue.remove(job)),
  );
  const name = newButton("name", job.name, job, () => choose(job));
  name.setAttribute("aria-label", `Show ${job.name}`);
  item.append(name, state, bar, buttons);
  return item;
}

function newButton(kind, text, job, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = kind;
  button.textContent = text;
  button.setAttribute("aria-label", `${text} ${job.name}`);
  button.addEventListener("click", act);
  return button;
}

// The chosen recording.

function choose(job) {
  if (job === chosen) return;
  const before = chosen;
  chosen = job;
  if (before && items.has(before)) showItem(before);
  transcript.clear();
  byId("detail").hidden = job === null;
  if (job === null) {
    player.close();
    return;
  }
  showItem(job);
  player.setResult(null);
  player.open(job.file, job.address);
  showChosen();
}

let shownResult = null;

function showChosen() {
  const job = chosen;
  byId("detail-title").textContent = job.name;
  byId("detail-state").className = job.state;
  byId("detail-state").textContent = `${job.description}${made(job)}`;
  byId("transcript").setAttribute("aria-busy", String(job.isRunning));
  if (job.isRunning) byId("transcript").dataset.grows = "true";
  else delete byId("transcript").dataset.grows;
  transcript.show(job.segments);
  if (shownResult !== job.result) {
    shownResult = job.result;
    player.setResult(job.result);
  }
  const warnings = job.result?.whisper_npu.warnings ?? [];
  byId("warnings").hidden = !warnings.length;
  byId("warnings").replaceChildren(
    ...warnings.map((warning) => {
      const item = document.createElement("li");
      item.textContent = warning;
      return item;
    }),
  );
  for (const button of document.querySelectorAll("[data-format]")) button.disabled = job.state !== "done";
  byId("take").hidden = job.result === null && !job.segments.length;
  byId("help").hidden = !job.segments.length;
}

/** By what a text was made. */
function made({ result }) {
  if (!result) return "";
  const { model: name, device, precision } = result.whisper_npu;
  return `, by ${name} on ${device} in ${precision}`;
}

player.addEventListener("time", ({ detail }) => transcript.follow(detail));
transcript.addEventListener("play", ({ detail }) => player.playFrom(detail));
transcript.addEventListener("seek", ({ detail }) => player.seek(detail));
transcript.addEventListener("toggle", () => player.toggle());
transcript.addEventListener("edit", () => {
  chosen.isSaved = chosen.segments.every((segment) => !segment.isEdited);
});

for (const button of document.querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    const file = toFile(chosen, button.dataset.format);
    link.href = URL.createObjectURL(file);
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    chosen.isSaved = true;
  });
}

byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(plainText(chosen.segments));
    byId("status").textContent = "The text is copied.";
    byId("copy").textContent = "Copied";
  } catch {
    byId("copy").textContent = "Cannot copy";
  }
  setTimeout(() => (byId("copy").textContent = "Copy text"), 2000);
});

addEventListener("beforeunload", (event) => {
  if (recorder.isOn || queue.jobs.some((job) => !job.hasEnded || !job.isSaved)) event.preventDefault();
});

byId("record").disabled = Recorder.obstacle !== "";
if (Recorder.obstacle) showRecording(Recorder.obstacle);
start();
