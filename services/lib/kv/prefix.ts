/**
 * Finished prompts whose KV is still in the pool. Keystroke after keystroke most of a prompt is the same: a new prompt
 * starts from the longest beginning that it shares with an old one.
 *
 * A prompt is known by a chain of hashes, one per block of tokens, each over the one before, the block's token ids and
 * the bytes of its soft tokens; the first also over a salt, so that tenants do not find each other's prompts.
 */
import { createHash } from 'node:crypto';
import type { TokenPrompt } from '../request/token-prompt.ts';
import type { KvPool, KvSlot } from './pool.ts';

/** Tokens of a block: what a match may miss, against a hash per block (2,000 tokens: 0.3 ms). */
export const BLOCK_TOKENS = 16;

/** Hashes of whole blocks, in order. */
export type PromptChain = readonly string[];

/** A slot of one's own whose positions [0, positions) are a prompt's already, or will be once they are copied. */
export interface PrefixSlot {
  readonly slot: KvSlot;
  readonly positions: number;
  /** Slot to copy them from, before anything is computed; `done` is to be called afterwards. */
  readonly copyFrom: { readonly slot: number; readonly done: () => void } | undefined;
}

interface Entry {
  readonly slot: number;
  readonly chain: PromptChain;
  lastUsed: number;
  /** Readers under way: neither evicted nor written to. */
  pins: number;
}

export class PrefixCache {
  readonly #pool: KvPool;
  /** By slot; of slots that are kept, or still held by the one who computed them. */
  readonly #entries = new Map<number, Entry>();
  #clock = 0;

  constructor(pool: KvPool) {
    this.#pool = pool;
    pool.onPressure(() => this.#evict());
  }

  /**
   * A slot for a prompt, with as much of it as is known; undefined when all slots are held. A kept slot that holds little
   * else is taken over; from any other the shared beginning is copied, which costs a hundredth of computing it.
   */
  reserve(chain: PromptChain, promptTokens: number): PrefixSlot | undefined {
    const match = this.#longest(chain);
    if (match === undefined) return this.#without(promptTokens);
    const { entry, blocks } = match;
    entry.lastUsed = ++this.#clock;
    const positions = reusable(blocks, promptTokens);
    const isMost = blocks * 2 >= entry.chain.length;
    if (isMost) {
      const slot = this.#takeOver(entry, promptTokens);
      if (slot) return { slot, positions, copyFrom: undefined };
    }
    entry.pins++;
    const done = () => {
      entry.pins--;
      this.#pool.offer(); // the slot may be given up again
    };
    const slot = this.#pool.reserve(promptTokens);
    if (slot) return { slot, positions, copyFrom: { slot: entry.slot, done } };
    done();
    // The one slot that could be given up is the one with the beginning.
    const own = this.#takeOver(entry, promptTokens);
    return own && { slot: own, positions, copyFrom: undefined };
  }

  /** How many positions of a prompt would not have to be computed now. */
  matchedTokens(chain: PromptChain, promptTokens: number): number {
    return reusable(this.#longest(chain)?.blocks ?? 0, promptTokens);
  }

  /** Positions [0, computed) of the slot's prompt are computed: others may start from them. */
  add(slot: number, prompt: PromptChain, computed: number): void {
    const chain = prompt.slice(0, Math.floor(computed / BLOCK_TOKENS));
    if (chain.length > 0) this.#entries.set(slot, { slot, chain, lastUsed: ++this.#clock, pins: 0 });
  }

  /** Gives a slot back, filled if what it holds is known. */
  release(slot: KvSlot): void {
    if (this.#entries.has(slot.index)) slot.keep();
    else slot.release();
  }

  /**
   * Moves what a held slot holds to another place, where nobody holds it; what is kept there comes here. That place is
   * held from now on; until `finish`, which is called while nothing runs, neither content can be found.
   * @param positions of the held slot's content.
   * @returns undefined where somebody holds that place, or copies from one of them.
   */
  move(from: KvSlot, positions: number, to: number): { slot: KvSlot; finish: () => void } | undefined {
    const [mine, kept] = [this.#entries.get(from.index), this.#entries.get(to)];
    if (mine?.pins || kept?.pins) return undefined;
    const keptPositions = this.#pool.claimed(to);
    // A step that is scheduled before the exchange and runs after it writes behind both contents, wherever they are.
    const claimed = Math.max(positions, keptPositions);
    const slot = this.#pool.take(to, claimed);
    if (slot === undefined) return undefined;
    this.#pool.claim(from.index, claimed);
    this.#entries.delete(from.index);
    this.#entries.delete(to);
    const put = (entry: Entry | undefined, index: number) =>
      entry && this.#entries.set(index, { ...entry, slot: index });
    const finish = () => {
      if (kept) this.#pool.swap(from.index, to, claimed);
      else this.#pool.copy(from.index, to, positions);
      put(mine, kept ? to : from.index);
      put(kept, from.index);
      this.#pool.claim(to, positions);
      this.#pool.claim(from.index, kept ? keptPositions : positions);
      this.release(from);
    };
    return { slot, finish };
  }

  #without(promptTokens: number): PrefixSlot | undefined {
    const slot = this.#pool.reserve(promptTokens);
    return slot && { slot, positions: 0, copyFrom: undefined };
  }

  #longest(chain: PromptChain): { entry: Entry; blocks: number } | undefined {
    let best: { entry: Entry; blocks: number } | undefined;
    for (const entry of this.#entries.values()) {
      const blocks = sharedBlocks(chain, entry.chain);
      if (blocks > (best?.blocks ?? 0)) best = { entry, blocks };
    }
    return best;
  }

  #takeOver(entry: Entry, promptTokens: number): KvSlot | undefined {
    const slot = entry.pins === 0 ? this.#pool.take(entry.slot, promptTokens) : undefined;
    if (slot) this.#entries.delete(entry.slot);
    return slot;
  }

  /** Least recently used first. */
  #evict(): number | undefined {
    let oldest: Entry | undefined;
    for (const entry of this.#entries.values()) {
      const evictable = entry.pins === 0 && this.#pool.isKept(entry.slot);
      if (evictable && entry.lastUsed < (oldest?.lastUsed ?? Number.POSITIVE_INFINITY)) oldest = entry;
    }
    if (oldest !== undefined) this.#entries.delete(oldest.slot);
    return oldest?.slot;
  }
}

/** How many blocks two prompts begin with in common. */
export function sharedBlocks(a: PromptChain, b: PromptChain): number {
  let blocks = 0;
  while (blocks < a.length && a[blocks] === b[blocks]) blocks++;
  return blocks;
}

/** @param salt what else two prompts must share to share KV. */
export function chainOf({ ids, soft }: TokenPrompt, salt: string): PromptChain {
  const chain: string[] = [];
  const hidden = soft.positions.length === 0 ? 0 : soft.vectors.length / soft.positions.length;
  let next = 0;
  let last = `${salt.length} ${salt}`;
  for (let start = 0; start + BLOCK_TOKENS <= ids.length; start += BLOCK_TOKENS) {
    const hash = createHash('sha256').update(last);
    hash.update(bytesOf(ids.subarray(start, start + BLOCK_TOKENS)));
    for (; next < soft.positions.length && (soft.positions[next] as number) < start + BLOCK_TOKENS; next++) {
      hash
        .update(`soft ${soft.positions[next]} `)
        .update(bytesOf(soft.vectors.subarray(next * hidden, (next + 1) * hidden)));
    }
    last = hash.digest('base64');
    chain.push(last);
  }
  return chain;
}

const bytesOf = (data: Int32Array | Float32Array) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/**
 * Positions of a prompt that need not be computed where so many blocks are known. The last token always is, for its logits
 * are what the prompt is for, and not alone: ONNX Runtime's attention sums in another order for a run of one token (logits of
 * tiny-coder differ by 7e-6; by nothing for runs of two and more), and a prompt must not change with what was cached. (With
 * W8A8 it does, as activations get one scale a run: KL 1e-3.)
 */
function reusable(blocks: number, promptTokens: number): number {
  return Math.max(0, Math.min(blocks * BLOCK_TOKENS, promptTokens - 2));
}
