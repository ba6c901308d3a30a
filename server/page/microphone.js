/** Runs in the browser's audio thread: turns sound into blocks of 16-bit samples, one channel. */

const BLOCK = 2400; // samples: 0.1 s

class Microphone extends AudioWorkletProcessor {
  #block = new Int16Array(BLOCK);
  #size = 0;

  process([channels]) {
    for (let index = 0; index < (channels[0]?.length ?? 0); index += 1) {
      let sum = 0;
      for (const channel of channels) sum += channel[index];
      const sample = Math.max(-1, Math.min(1, sum / channels.length));
      this.#block[this.#size++] = Math.round(32_767 * sample);
      if (this.#size === BLOCK) {
        this.port.postMessage(this.#block.buffer, [this.#block.buffer]);
        this.#block = new Int16Array(BLOCK);
        this.#size = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
