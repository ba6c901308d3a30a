/** Finds words in a text, and gives words of an edited text their times. */

const LETTER = /[\p{L}\p{N}]/u;

/**
 * Where each word is in the text.
 *
 * @param {string} text
 * @param {{word: string, start: number, end: number}[]} words in order
 * @returns {{word: object, from: number, to: number}[]} without words that are not in the text
 */
export function place(text, words) {
  const placed = [];
  let position = 0;
  for (const word of words) {
    const from = word.word ? text.indexOf(word.word, position) : -1;
    if (from < 0) continue;
    position = from + word.word.length;
    placed.push({ word, from, to: position });
  }
  return placed;
}

/**
 * The words of a segment whose text was edited: unchanged ones keep their times, the others share
 * the time between them.
 *
 * @param {{text: string, words: object[], start: number, end: number}} segment before
 * @param {string} text after
 */
export function retime(segment, text) {
  const placed = place(segment.text, segment.words);
  const shift = text.length - segment.text.length;
  const nBefore = commonLength(segment.text, text, (string, index) => string[index]);
  const nAfter = Math.min(
    commonLength(segment.text, text, (string, index) => string[string.length - 1 - index]),
    Math.min(text.length, segment.text.length) - nBefore,
  );
  const left = placed.filter(({ to }) => to <= nBefore && !isInside(text, to));
  const right = placed
    .slice(left.length)
    .filter(({ from }) => from >= segment.text.length - nAfter && !isInside(text, from + shift));
  const begin = left.at(-1)?.to ?? 0;
  const end = right.length ? right[0].from + shift : text.length;
  const changed = text.slice(begin, end).split(/\s+/).filter(Boolean);
  const start = left.at(-1)?.word.end ?? segment.start;
  const step = ((right[0]?.word.start ?? segment.end) - start) / (changed.length || 1);
  const timed = changed.map((word, index) => ({
    word,
    start: rounded(start + index * step),
    end: rounded(start + (index + 1) * step),
  }));
  return [...left.map(({ word }) => word), ...timed, ...right.map(({ word }) => word)];
}

function commonLength(one, other, at) {
  const most = Math.min(one.length, other.length);
  let length = 0;
  while (length < most && at(one, length) === at(other, length)) length += 1;
  return length;
}

/** Whether a position lies between two letters of a word. */
function isInside(text, position) {
  return LETTER.test(text[position - 1] ?? "") && LETTER.test(text[position] ?? "");
}

function rounded(seconds) {
  return Math.round(1000 * seconds) / 1000;
}
