/** Text while one speaks: sends the microphone to the server's WebSocket, with OpenAI's events. */

import { webSocketProtocols } from "./api.js";

const RATE = 24_000; // Hz
const MOST_WAITING = 4_000_000; // bytes that wait for the network: a minute
const TENTATIVE = "whisper_npu.tentative";
const TRANSCRIPTION = "conversation.item.input_audio_transcription";

/**
 * Events: `text` with `{text, tentative, isHearing}` as `detail`: the text, which never changes, the
 * text after it, which may, and whether there is speech that has no text yet; `end` with the reason
 * in words.
 */
export class Live extends EventTarget {
  #items = new Map(); // of each utterance, in order: its text
  #hearing = new Set(); // utterances that are not complete
  #tentative = ""; // after the text of the last utterance
  #socket = null;
  #context = null;

  /** Begin with a stream of the microphone; `options` are those of a transcription. */
  start(stream, options) {
    this.#items.clear();
    this.#hearing.clear();
    this.#tentative = "";
    const address = new URL("v1/realtime", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    address.search = new URLSearchParams({ intent: "transcription", model: options.model });
    try {
      this.#socket = new WebSocket(address, webSocketProtocols());
    } catch {
      this.#end("this API key cannot be sent by a WebSocket");
      return;
    }
    const socket = this.#socket;
    socket.onopen = () => {
      const { model, language } = options;
      const transcription = language ? { model, language } : { model };
      const input = { format: { type: "audio/pcm", rate: RATE }, transcription };
      const session = { type: "transcription", audio: { input }, include: [TENTATIVE] };
      send(socket, "session.update", { session });
      this.#listen(stream, socket).catch((error) => this.#end(error.message));
    };
    socket.onmessage = ({ data }) => this.#take(JSON.parse(data));
    socket.onclose = ({ reason }) => {
      if (socket === this.#socket) this.#end(reason || "the server ended it");
    };
  }

  /** End without a word. */
  stop() {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    this.#context?.close();
    this.#context = null;
  }

  #end(reason) {
    this.stop();
    this.dispatchEvent(new CustomEvent("end", { detail: reason }));
  }

  async #listen(stream, socket) {
    const context = new AudioContext({ sampleRate: RATE });
    this.#context = context;
    await context.audioWorklet.addModule(new URL("./microphone.js", import.meta.url));
    if (this.#context !== context) return; // it was ended meanwhile
    const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => {
      if (socket.readyState !== WebSocket.OPEN) return;
      if (socket.bufferedAmount > MOST_WAITING) this.#end("the network is too slow");
      else send(socket, "input_audio_buffer.append", { audio: base64(data) });
    };
    context.createMediaStreamSource(stream).connect(node);
  }

  #take(event) {
    const { type, item_id: item } = event;
    if (type === "input_audio_buffer.speech_started") this.#hearing.add(item);
    else if (type === `${TRANSCRIPTION}.delta`) {
      this.#items.set(item, (this.#items.get(item) ?? "") + event.delta);
      this.#tentative = ""; // the next one follows
    } else if (type === TENTATIVE) {
      this.#tentative = event.text.trim();
    } else if ([`${TRANSCRIPTION}.completed`, `${TRANSCRIPTION}.failed`].includes(type)) {
      this.#hearing.delete(item);
      this.#tentative = "";
    } else if (type === "error") {
      this.#end(event.error.message);
      return;
    } else return;
    const text = [...this.#items.values()].map((each) => each.trim()).join(" ");
    const detail = { text, tentative: this.#tentative, isHearing: this.#hearing.size > 0 };
    this.dispatchEvent(new CustomEvent("text", { detail }));
  }
}

function send(socket, type, fields) {
  socket.send(JSON.stringify({ type, ...fields }));
}

function base64(buffer) {
  return btoa(String.fromCharCode(...new Uint8Array(buffer)));
}
