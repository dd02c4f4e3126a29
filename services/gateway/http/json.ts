/** How values are written as JSON, in answers and in events alike. */
import { afterCharacter } from '../../lib/text/detokenizer.ts';

/**
 * Line ends of Unicode that JSON allows within a string. Clients that read lines as Unicode has them (httpx, requests,
 * Node 24's readline) would cut an event there.
 */
const LINE_ENDS = /[\u0085\u2028\u2029]/g;

/** A value as JSON on one line, whatever a reader takes for the end of a line. */
export function toJson(value: unknown): string {
  return JSON.stringify(value).replace(LINE_ENDS, (end) => `\\u${end.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/** A list whose items are made while it is written, and need not all be there at once. */
export class LazyList<T> {
  readonly #items: () => Iterable<T>;

  constructor(items: () => Iterable<T>) {
    this.#items = items;
  }

  [Symbol.iterator](): Iterator<T> {
    return this.#items()[Symbol.iterator]();
  }

  toJSON(): T[] {
    return [...this];
  }
}

/** UTF-16 units of a piece, at least: it is made in about 2 ms. */
const PIECE_LENGTH = 64 * 1024;

/** The same JSON as {@link toJson}, in pieces: a large value in one go would hold up everybody else. */
export function* jsonPieces(value: unknown): Generator<string> {
  let piece = '';
  for (const part of jsonParts(value)) {
    piece += part;
    if (piece.length < PIECE_LENGTH) continue;
    yield piece;
    piece = '';
  }
  yield piece;
}

function* jsonParts(value: unknown): Generator<string> {
  if (value instanceof LazyList) yield* listParts(batches(value), (batch) => [toJson(batch).slice(1, -1)]);
  else if (Array.isArray(value)) yield* listParts(value, jsonParts);
  else if (typeof value === 'string') yield* stringParts(value);
  else if (Object.prototype.toString.call(value) === '[object Object]') yield* objectParts(value as object);
  else yield toJson(value);
}

/** Items that are written in one go. One by one they take longer: each is a call of JSON.stringify. */
const BATCH = 32;

function* batches<T>(items: Iterable<T>): Generator<T[]> {
  let batch: T[] = [];
  for (const item of items) {
    batch.push(item);
    if (batch.length < BATCH) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}

function* listParts<T>(list: Iterable<T>, partsOf: (item: T) => Iterable<string>): Generator<string> {
  let before = '[';
  for (const item of list) {
    yield before;
    yield* partsOf(item);
    before = ',';
  }
  yield before === '[' ? '[]' : ']';
}

function* objectParts(value: object): Generator<string> {
  let before = '{';
  for (const [key, field] of Object.entries(value)) {
    if (field === undefined) continue;
    yield `${before}${toJson(key)}:`;
    yield* jsonParts(field);
    before = ',';
  }
  yield before === '{' ? '{}' : '}';
}

function* stringParts(text: string): Generator<string> {
  yield '"';
  for (let start = 0; start < text.length; ) {
    const end = afterCharacter(text, Math.min(start + PIECE_LENGTH, text.length));
    yield toJson(text.slice(start, end)).slice(1, -1);
    start = end;
  }
  yield '"';
}
