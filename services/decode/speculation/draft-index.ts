/**
 * Where a sequence's next tokens may stand already: in texts that came with the request, in its prompt, or in its own
 * output. The longest end of the text so far that occurs in them is found by hashes of its last tokens; what follows
 * there is the draft. The output is added as it comes, one token at a time.
 */

/** Where drafts come from; they are the values of the label `source` in metrics. */
export const DRAFT_SOURCES = ['prediction', 'chunk', 'recent', 'prompt', 'output'] as const;
export type DraftSource = (typeof DRAFT_SOURCES)[number];

interface DraftText {
  readonly source: DraftSource;
  readonly ids: readonly number[];
}

/** What a sequence may repeat. */
export interface Drafts {
  /** The best last. */
  readonly texts: readonly DraftText[];
  /** Tokens before the output. */
  readonly before: readonly number[];
}

export const NO_DRAFTS: Drafts = { texts: [], before: [] };

/** Tokens that may come next. */
export interface Draft {
  readonly source: DraftSource;
  /** Tokens before it that are those of the sequence; 0 at the beginning of a prediction. */
  readonly matched: number;
  readonly ids: readonly number[];
}

/** Numbers of last tokens by which a place is found, the longest first. */
const ORDERS = [4, 2, 1] as const;
/** A match of so many tokens is followed without looking for a longer one. */
const SURE = 8;
/** Matches are not measured further back. */
const LONGEST_MATCH = 32;
/** Tokens of all texts of a sequence; further ones are left out, the least trusted first. 20 bytes each and hash. */
export const MOST_DRAFT_TOKENS = 16_384;
/** Tokens whose places are noted per turn: less than 1 ms. */
const TOKENS_PER_TURN = 1_024;
/** Stands between texts; no token has this id. */
const END = -1;

export class DraftIndex {
  /** All texts, then `before`, then the output. */
  #tokens: Int32Array;
  #length = 0;
  readonly #starts: { readonly at: number; readonly source: DraftSource }[] = [];
  /** By order: hash of the last tokens → place after their latest occurrence that is followed by something. */
  readonly #places = ORDERS.map(() => new Map<number, number>());
  /** Places up to here are noted. */
  #noted = 0;
  /** Place of the next token if the match goes on; -1 where there is none. */
  #next = -1;
  #matched = 0;

  /**
   * @param vocab ids from here on are no tokens of the model: no draft goes beyond one.
   * @param anchored whether the output begins with the first push: a prediction's beginning is the draft then.
   */
  constructor({ texts, before }: Drafts, vocab: number, anchored: boolean) {
    let room = MOST_DRAFT_TOKENS - before.length;
    const kept: DraftText[] = [];
    for (const text of texts.toReversed()) {
      room -= text.ids.length;
      if (room >= 0) kept.unshift(text);
    }
    const size = kept.reduce((sum, { ids }) => sum + ids.length + 1, 0) + before.length;
    this.#tokens = new Int32Array(size + 256);
    for (const { source, ids } of kept) {
      this.#starts.push({ at: this.#length, source });
      if (source === 'prediction' && anchored && ids.length > 0) this.#next = this.#length;
      this.#tokens.set(ids, this.#length);
      this.#length += ids.length;
      this.#tokens[this.#length++] = END;
    }
    this.#starts.push({ at: this.#length, source: 'prompt' });
    this.#tokens.set(before.slice(-MOST_DRAFT_TOKENS), this.#length);
    this.#length += Math.min(before.length, MOST_DRAFT_TOKENS);
    for (let at = 0; at < this.#length; at++) {
      const id = this.#tokens[at]!;
      if (id < 0 || id >= vocab) this.#tokens[at] = END;
    }
    if (this.#next >= 0 && this.#tokens[this.#next] === END) this.#next = -1;
    this.#starts.push({ at: this.#length, source: 'output' });
  }

  /** The sequence has one more token. */
  push(id: number): void {
    if (this.#length === this.#tokens.length) {
      const grown = new Int32Array(this.#length * 2);
      grown.set(this.#tokens);
      this.#tokens = grown;
    }
    const follows = this.#next >= 0 && this.#tokens[this.#next] === id;
    this.#tokens[this.#length++] = id;
    this.#matched = follows ? Math.min(this.#matched + 1, LONGEST_MATCH) : 0;
    this.#next = follows ? this.#next + 1 : -1;
    if (this.#next >= 0 && this.#tokens[this.#next] === END) this.#next = -1;
    this.#note(this.#length - 1);
  }

  /**
   * What may come next. A match that has reached the end of what there is goes on with the draft itself, as a text does
   * that repeats.
   * @param most tokens of the draft.
   */
  draft(most: number): Draft | undefined {
    for (const end = Math.min(this.#noted + TOKENS_PER_TURN, this.#length); this.#noted < end; )
      this.#note(this.#noted++);
    if (most < 1) return undefined;
    if (this.#next < 0 || this.#matched < SURE) this.#search();
    if (this.#next < 0) return undefined;
    const ids: number[] = [];
    while (ids.length < most) {
      const place = this.#next + ids.length;
      const id = place < this.#length ? this.#tokens[place]! : ids[place - this.#length]!;
      if (id === END) break;
      ids.push(id);
    }
    return { source: this.#sourceOf(this.#next), matched: this.#matched, ids };
  }

  /** Notes the place of the tokens that end before `place`. The latest occurrence is kept. */
  #note(place: number): void {
    if (this.#tokens[place] === END) return;
    for (const [i, order] of ORDERS.entries()) {
      const hash = this.#hash(place, order);
      if (hash === undefined) continue;
      const places = this.#places[i]!;
      if ((places.get(hash) ?? -1) < place) places.set(hash, place);
    }
  }

  /** Looks for the longest match, and follows it if it is longer than the one that is followed. */
  #search(): void {
    for (const [i, order] of ORDERS.entries()) {
      const hash = this.#hash(this.#length, order);
      const place = hash === undefined ? undefined : this.#places[i]!.get(hash);
      if (place === undefined) continue;
      const matched = this.#matchBefore(place);
      if (matched < order) continue; // another text with the same hash
      if (this.#next >= 0 && matched <= this.#matched) return;
      this.#next = place;
      this.#matched = matched;
      return;
    }
  }

  /** Tokens before a place that are the last ones of the sequence. */
  #matchBefore(place: number): number {
    let matched = 0;
    while (
      matched < Math.min(LONGEST_MATCH, place) &&
      this.#tokens[place - 1 - matched] === this.#tokens[this.#length - 1 - matched] &&
      this.#tokens[place - 1 - matched] !== END
    ) {
      matched++;
    }
    return matched;
  }

  /** Hash of the `order` tokens before a place; undefined where there are not so many of one text. */
  #hash(place: number, order: number): number | undefined {
    if (place < order) return undefined;
    let hash = 0;
    for (let at = place - order; at < place; at++) {
      const id = this.#tokens[at]!;
      if (id === END) return undefined;
      hash = (Math.imul(hash, 0x01000193) ^ id) | 0;
    }
    return hash;
  }

  #sourceOf(place: number): DraftSource {
    return this.#starts.findLast(({ at }) => at <= place)!.source;
  }
}
