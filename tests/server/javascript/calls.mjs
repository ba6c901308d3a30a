// Calls a server with OpenAI's own client, as a JavaScript program would, and prints what it got.
//
//     node calls.mjs ADDRESS RECORDING FILE_THAT_IS_NO_AUDIO
//
// Prints one JSON object: a name for each call, and its result or its error.

import fs from "node:fs";
import OpenAI, { toFile } from "openai";

const [address, recording, noAudio] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });

const transcribe = (fields, options) =>
  client.audio.transcriptions.create(
    { file: fs.createReadStream(recording), model: "whisper-1", language: "en", ...fields },
    options,
  );

const streamed = async () => {
  const events = [];
  for await (const event of await transcribe({ stream: true })) events.push(event);
  return events;
};

const aborted = async () => {
  const controller = new AbortController();
  const answer = transcribe({}, { signal: controller.signal });
  controller.abort();
  return answer;
};

// Answers once with 503, then hands requests to the server, to see that the client comes back.
const retried = async () => {
  let asked = 0;
  const unsteady = async (...request) => {
    asked += 1;
    return asked === 1
      ? new Response("{}", { status: 503, headers: { "retry-after-ms": "1" } })
      : fetch(...request);
  };
  const patient = new OpenAI({
    baseURL: `${address}/v1`, apiKey: "none", maxRetries: 2, fetch: unsteady,
  });
  const file = await toFile(fs.readFileSync(recording), "talk.wav");
  const said = await patient.audio.transcriptions.create({ file, model: "whisper-1" });
  return { asked, text: said.text };
};

const calls = {
  json: () => transcribe({}),
  text: () => transcribe({ response_format: "text" }),
  srt: () => transcribe({ response_format: "srt" }),
  vtt: () => transcribe({ response_format: "vtt" }),
  verbose: () => transcribe({
    response_format: "verbose_json",
    timestamp_granularities: ["word", "segment"],
    temperature: 0,
    prompt: "A fox.",
  }),
  logprobs: () => transcribe({ include: ["logprobs"] }),
  chunking: () => transcribe({ chunking_strategy: { type: "server_vad", threshold: 0.4 } }),
  streamed,
  aborted,
  retried,
  translated: () => client.audio.translations.create({
    file: fs.createReadStream(recording), model: "whisper-1",
  }),
  models: async () => (await client.models.list()).data,
  model: () => client.models.retrieve("whisper-1"),
  no_model: () => transcribe({ model: "none" }),
  no_format: () => transcribe({ response_format: "diarized_json" }),
  no_audio: () => transcribe({ file: fs.createReadStream(noAudio) }),
};

const results = {};
for (const [name, call] of Object.entries(calls)) {
  try {
    results[name] = { result: await call() };
  } catch (error) {
    const { status, code, param, type, message } = error;
    results[name] = { error: error.constructor.name, status, code, param, type, message };
  }
}
process.stdout.write(JSON.stringify(results));
