/**
 * What a body of JSON may consist of, counted before it is parsed. JSON.parse works in one go: 4 MiB of text take it
 * 10 ms, but of brackets 1,100 ms, of short names with escapes 1,200 ms, and of numbers next to zero 170 ms. No request
 * needs many of those, so a body that has many is refused while it is counted, which takes turns.
 */
import { ServingError } from '../../lib/process/errors.ts';

/** `rag` is nested twice, lists of prompts three times. */
const MAX_DEPTH = 32;
/** A request has at most 128 prompts. An array takes 0.7 µs to parse, a token id 40 ns. */
const MAX_CONTAINERS = 2_048;
/** A request has some 40 fields and 1,024 entries of logit_bias. */
const MAX_NAMES = 4_096;
/** Names of fields, at most 128 prompts and 16 stop strings. */
const MAX_STRINGS = 8_192;
/** Fractions and numbers of many digits; token ids have at most 7. */
const MAX_LONG_NUMBERS = 8_192;
const LONG_NUMBER = 16;
/** As many token ids of five digits as 4 MiB hold. They take 20 to 30 ms to parse. */
const MAX_NUMBERS = 700_000;

/** Bytes that are counted in one step. */
const STEP_BYTES = 65_536;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COLON = 0x3a;

const isDigit = (byte: number) => byte >= 0x30 && byte <= 0x39;
const isOpening = (byte: number) => byte === 0x5b || byte === 0x7b;
const isClosing = (byte: number) => byte === 0x5d || byte === 0x7d;
/** Bytes of a number behind its first: digits, `.`, `e`, `E`, `+`, `-`. */
const isOfNumber = (byte: number) =>
  isDigit(byte) || byte === 0x2e || byte === 0x65 || byte === 0x45 || byte === 0x2b || byte === 0x2d;

const tooMany = (what: string, most: number) =>
  new ServingError('invalid_request', `the body has more than ${most} ${what}: no request needs so many`);

/**
 * Counts what a body consists of. It yields between two steps, and leaves it to the parser to find what is not JSON.
 * @throws ServingError invalid_request for more than a request can need of anything.
 */
export function* assertWithinBounds(bytes: Uint8Array): Generator<void, void> {
  const counts = new Counts();
  for (let at = 0; at < bytes.length; ) {
    const end = Math.min(at + STEP_BYTES, bytes.length);
    at = counts.read(bytes, at, end);
    yield;
  }
}

class Counts {
  #inString = false;
  #depth = 0;
  #containers = 0;
  #strings = 0;
  #names = 0;
  #numbers = 0;
  #longNumbers = 0;
  /** Length of the number that the last byte belongs to; 0 if it belongs to none. */
  #digits = 0;

  /** @returns where to go on: `end`, or one byte behind it after a backslash. */
  read(bytes: Uint8Array, start: number, end: number): number {
    let at = start;
    while (at < end) {
      const byte = bytes[at++]!;
      if (this.#inString) {
        if (byte === BACKSLASH) at++;
        else if (byte === QUOTE) this.#inString = false;
      } else this.#readStructure(byte);
    }
    return at;
  }

  #readStructure(byte: number): void {
    if (this.#digits > 0 && isOfNumber(byte)) {
      if (++this.#digits === LONG_NUMBER || (!isDigit(byte) && this.#digits < LONG_NUMBER)) this.#countLongNumber();
      return;
    }
    this.#digits = 0;
    if (isDigit(byte) || byte === 0x2d) {
      this.#digits = 1;
      if (++this.#numbers > MAX_NUMBERS) throw tooMany('numbers', MAX_NUMBERS);
    } else if (byte === QUOTE) {
      this.#inString = true;
      if (++this.#strings > MAX_STRINGS) throw tooMany('strings', MAX_STRINGS);
    } else if (byte === COLON) {
      if (++this.#names > MAX_NAMES) throw tooMany('names of fields', MAX_NAMES);
    } else if (isOpening(byte)) this.#open();
    else if (isClosing(byte)) this.#depth--;
  }

  #open(): void {
    if (++this.#depth > MAX_DEPTH) {
      throw new ServingError('invalid_request', `the body is nested more than ${MAX_DEPTH} deep: send a flat object`);
    }
    if (++this.#containers > MAX_CONTAINERS) throw tooMany('arrays and objects', MAX_CONTAINERS);
  }

  #countLongNumber(): void {
    this.#digits = LONG_NUMBER; // is counted once
    if (++this.#longNumbers > MAX_LONG_NUMBERS)
      throw tooMany(`numbers of ${LONG_NUMBER} characters or with a fraction`, MAX_LONG_NUMBERS);
  }
}
