/** The text of a recording: words that can be heard, segments that can be edited. */

import { clock } from "./text.js";
import { place, retime } from "./words.js";

/** Events: `play` with seconds as `detail`, `toggle`, and `edit` with the segment. */
export class Transcript extends EventTarget {
  #root;
  #rows = []; // of each shown segment: {segment, element}
  #timed = []; // of each word, else segment: {start, end, element, row}, by time
  #said = null;
  #position = 0;
  #current = -1; // the row that keys work on

  constructor(root) {
    super();
    this.#root = root;
    root.addEventListener("click", (event) => this.#clicked(event));
    root.addEventListener("keydown", (event) => this.#pressed(event));
  }

  /** Show segments; those that are shown already stay as they are. */
  show(segments) {
    const shown = segments.filter((segment) => segment.text.trim() || segment.isEdited);
    const isSame = this.#rows.every(({ segment }, index) => segment === shown[index]);
    if (!isSame) this.clear();
    const added = shown.slice(this.#rows.length);
    if (!added.length) return;
    const isAtEnd = this.#root.scrollHeight - this.#root.scrollTop - this.#root.clientHeight < 40;
    for (const segment of added) this.#add(segment);
    if (this.#current < 0) this.#choose(0);
    if (isAtEnd && this.#root.dataset.grows) this.#root.scrollTop = this.#root.scrollHeight;
  }

  clear() {
    this.#root.replaceChildren();
    this.#rows = [];
    this.#timed = [];
    this.#said = null;
    this.#current = -1;
  }

  /** Mark what is said at a time. */
  follow(seconds) {
    this.#position = seconds;
    const index = this.#indexAt(seconds);
    const found = this.#timed[index];
    const said = found && seconds < found.end ? found : null;
    if (said === this.#said) return;
    this.#said?.element.classList.remove("said");
    this.#said = said;
    if (!said) return;
    said.element.classList.add("said");
    if (said.row !== this.#current && !this.#isEditing) this.#choose(said.row);
  }

  get #isEditing() {
    return this.#root.querySelector("textarea") !== null;
  }

  #add(segment) {
    const element = document.createElement("div");
    element.className = "segment";
    element.dataset.row = this.#rows.length;
    this.#root.append(element);
    this.#rows.push({ segment, element });
    this.#fill(this.#rows.length - 1);
    this.#timed.push(...this.#timedIn(this.#rows.length - 1));
  }

  /** Make the contents of a row. */
  #fill(row) {
    const { segment, element } = this.#rows[row];
    const when = button("when", clock(segment.start, 1), `Play from ${clock(segment.start, 1)}`);
    const text = document.createElement("p");
    text.append(...pieces(segment));
    const tools = document.createElement("div");
    tools.className = "tools";
    if (segment.isEdited) tools.append(button("undo", "Undo", `Undo the edit at ${clock(segment.start, 1)}`));
    tools.append(button("edit", "Edit", `Edit the text at ${clock(segment.start, 1)}`));
    element.classList.toggle("edited", segment.isEdited);
    element.replaceChildren(when, text, tools);
    this.#setTabs(row);
  }

  /** List what can be marked, after an edit. */
  #index() {
    this.#timed = this.#rows.flatMap((_, row) => this.#timedIn(row));
  }

  #timedIn(row) {
    const { segment, element } = this.#rows[row];
    const text = element.querySelector("p");
    const words = [...element.querySelectorAll(".word")];
    if (!words.length && text) return [{ start: segment.start, end: segment.end, element: text, row }];
    return words.map((word) => ({
      start: Number(word.dataset.start),
      end: Number(word.dataset.end),
      element: word,
      row,
    }));
  }

  /** The last word that begins before a time; -1 if none does. */
  #indexAt(seconds) {
    let [low, high] = [0, this.#timed.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#timed[middle].start <= seconds + 1e-3) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  #choose(row) {
    const before = this.#rows[this.#current];
    this.#current = row;
    before?.element.classList.remove("current");
    if (before) this.#setTabs(this.#rows.indexOf(before));
    const { element } = this.#rows[row];
    element.classList.add("current");
    this.#setTabs(row);
    const [top, bottom] = [element.offsetTop - this.#root.offsetTop, element.offsetHeight];
    const { scrollTop, clientHeight } = this.#root;
    if (top < scrollTop || top + bottom > scrollTop + clientHeight) {
      this.#root.scrollTop = top - clientHeight / 3;
    }
  }

  /** Only the buttons of the current row are stops of the Tab key. */
  #setTabs(row) {
    for (const each of this.#rows[row].element.querySelectorAll("button")) {
      each.tabIndex = row === this.#current ? 0 : -1;
    }
  }

  #clicked(event) {
    const element = event.target.closest(".segment");
    if (!element || event.target.closest("textarea")) return;
    const row = Number(element.dataset.row);
    const { segment } = this.#rows[row];
    const pressed = event.target.closest("button");
    const word = event.target.closest(".word");
    if (pressed) this.#choose(row);
    if (pressed?.classList.contains("when")) this.#play(segment.start);
    else if (pressed?.classList.contains("edit")) this.#edit(row);
    else if (pressed?.classList.contains("undo")) this.#undo(row);
    else if (!String(getSelection())) {
      this.#choose(row);
      this.#root.focus({ preventScroll: true });
      if (word) this.#play(Number(word.dataset.start));
      else if (event.target.closest("p") && segment.words === null) this.#play(segment.start);
    }
  }

  #pressed(event) {
    if (event.target.closest("textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const isButton = event.target.closest("button") !== null;
    const act = {
      " ": () => !isButton && this.dispatchEvent(new CustomEvent("toggle")),
      ArrowLeft: () => this.#goTo(this.#timed[Math.max(0, this.#here() - 1)]),
      ArrowRight: () => this.#goTo(this.#timed[this.#here() + 1]),
      ArrowUp: () => this.#goToRow(this.#current - 1),
      ArrowDown: () => this.#goToRow(this.#current + 1),
      e: () => this.#current >= 0 && this.#edit(this.#current),
    }[event.key];
    if (!act || (isButton && event.key === " ")) return;
    event.preventDefault();
    act();
  }

  #here() {
    return this.#indexAt(this.#position);
  }

  #goTo(timed) {
    if (timed) this.dispatchEvent(new CustomEvent("seek", { detail: timed.start }));
  }

  #goToRow(row) {
    if (!this.#rows[row]) return;
    this.#choose(row);
    this.#goTo(this.#timed.find((timed) => timed.row === row));
    this.#root.focus({ preventScroll: true });
  }

  #play(seconds) {
    this.dispatchEvent(new CustomEvent("play", { detail: seconds }));
  }

  #edit(row) {
    const { segment, element } = this.#rows[row];
    if (element.querySelector("textarea")) return;
    const field = document.createElement("textarea");
    field.setAttribute("aria-label", `Text at ${clock(segment.start, 1)}`);
    field.value = segment.text.trim();
    field.rows = Math.min(12, 1 + Math.ceil(field.value.length / 60));
    let isOver = false;
    const close = (keeps) => {
      if (isOver) return;
      isOver = true;
      if (keeps) change(segment, field.value);
      this.#fill(row);
      this.#index();
      this.#said = null;
      if (keeps) this.dispatchEvent(new CustomEvent("edit", { detail: segment }));
    };
    field.addEventListener("blur", () => close(true));
    field.addEventListener("keydown", (event) => {
      const keeps = event.key === "Enter" && (event.ctrlKey || event.metaKey);
      if (!keeps && event.key !== "Escape") return;
      event.preventDefault();
      close(keeps);
      this.#root.focus({ preventScroll: true });
    });
    element.querySelector("p").replaceWith(field);
    element.querySelector(".tools").replaceChildren();
    this.#index();
    field.focus();
  }

  #undo(row) {
    const { segment } = this.#rows[row];
    Object.assign(segment, segment.original, { isEdited: false });
    this.#fill(row);
    this.#index();
    this.#root.focus({ preventScroll: true });
    this.dispatchEvent(new CustomEvent("edit", { detail: segment }));
  }
}

/** Give a segment another text; it keeps the white space before its text. */
function change(segment, given) {
  const space = segment.text.match(/^\s*/)[0];
  const text = space + given.replace(/\s+/g, " ").trim();
  if (text === segment.text) return;
  if (segment.words) segment.words = retime(segment, text);
  segment.text = text;
  segment.isEdited = text !== segment.original.text;
  if (!segment.isEdited) segment.words = segment.original.words;
}

/** The text of a segment as nodes: each word that has a time is an element. */
function pieces(segment) {
  const nodes = [];
  let position = segment.text.length - segment.text.trimStart().length;
  for (const { word, from, to } of place(segment.text, segment.words ?? [])) {
    const element = document.createElement("span");
    element.className = "word";
    element.textContent = segment.text.slice(from, to);
    element.dataset.start = word.start;
    element.dataset.end = word.end;
    nodes.push(segment.text.slice(position, from), element);
    position = to;
  }
  return [...nodes, segment.text.slice(position)].filter((node) => node !== "");
}

function button(kind, text, label) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = kind;
  made.textContent = text;
  made.setAttribute("aria-label", label);
  return made;
}
