/**
 * Finished prompts whose KV is still in the pool. From one keystroke to the next most of a prompt stays the same: a new
 * prompt starts from the longest beginning that it shares with an earlier one.
 *
 * A prompt is found by a chain of hashes, one per block of tokens. Each hash covers the hash before it, the block's
 * token ids and the bytes of its soft tokens; the first also covers a salt, so that tenants cannot find each other's
 * prompts.
 *
 * Where room is needed, prompts that no later one has started from go first (segmented LRU: R. Karedla et al., 1994),
 * so that a flood of new prompts does not drop those that somebody is typing. A request that comes again with the same
 * prompt, for more of its choices, is no later one: nobody types on from it. Of either kind, the tenant that has the
 * most loses the one that was used least recently, so that a tenant cannot drop the prompts of another one by asking
 * for its own again and again.
 */
import { createHash } from 'node:crypto';
import type { TokenPrompt } from '../request/token-prompt.ts';
import type { KvPool, KvSlot } from './pool.ts';

/**
 * Tokens of a block. A match may miss up to this many; smaller blocks cost more hashing (now 0.3 ms for 2,000 tokens).
 */
export const BLOCK_TOKENS = 16;

/**
 * Share of the slots in which prompts that were reused are safe from new ones. New prompts need the others: they would
 * be gone before anybody could reuse them.
 */
const REUSED_SHARE = 3 / 4;

/** Hashes of whole blocks, in order. */
export type PromptChain = readonly string[];

/** A held slot whose positions [0, positions) hold the beginning of a prompt, or will once they are copied. */
export interface PrefixSlot {
  readonly slot: KvSlot;
  readonly positions: number;
  /** Slot to copy these positions from before anything is computed. Call `done` after the copy. */
  readonly copyFrom: { readonly slot: number; readonly done: () => void } | undefined;
}

interface CachedPrompt {
  readonly slot: number;
  readonly chain: PromptChain;
  readonly tenant: string;
  /** The request that computed it; undefined where that is not known. */
  readonly request: string | undefined;
  lastUsed: number;
  /** Whether a later prompt started from it, or it started itself from what a slot held of an earlier one. */
  reused: boolean;
  /** Copies being made from it. While there are any, it is neither evicted nor written to. */
  pins: number;
}

export class PrefixCache {
  readonly #pool: KvPool;
  /** By slot. Each slot is kept, or still held by the part that computed the prompt. */
  readonly #entries = new Map<number, CachedPrompt>();
  /** Held slots that a later prompt took over with their content. */
  readonly #takenOver = new Set<number>();
  #clock = 0;

  constructor(pool: KvPool) {
    this.#pool = pool;
    pool.onPressure((tenant) => this.#evict(tenant));
  }

  /**
   * A slot for a prompt, with the longest beginning that is cached; undefined when all slots are held. A kept slot is
   * taken over if most of its content is shared; from any other the shared beginning is copied, which costs a hundredth
   * of computing it.
   * @param tenant whose prompt it is.
   * @param request that it is of.
   */
  reserve(chain: PromptChain, promptTokens: number, tenant = '', request?: string): PrefixSlot | undefined {
    const match = this.#longest(chain);
    if (match === undefined) return this.#reserveEmpty(promptTokens, tenant);
    const { entry, blocks } = match;
    entry.lastUsed = ++this.#clock;
    if (request === undefined || entry.request !== request) entry.reused = true;
    const positions = reusable(blocks, promptTokens);
    const isMost = blocks * 2 >= entry.chain.length;
    if (isMost) {
      const slot = this.#takeOver(entry, promptTokens);
      if (slot) return { slot, positions, copyFrom: undefined };
    }
    entry.pins++;
    const done = () => {
      entry.pins--;
      this.#pool.offer(); // the slot can be evicted again
    };
    const slot = this.#reserveSlot(promptTokens, tenant);
    if (slot) return { slot, positions, copyFrom: { slot: entry.slot, done } };
    done();
    // The only slot that could be evicted is the one that holds the beginning: take it over.
    const own = this.#takeOver(entry, promptTokens);
    return own && { slot: own, positions, copyFrom: undefined };
  }

  /** Positions of a prompt that would not have to be computed if it came now. */
  matchedTokens(chain: PromptChain, promptTokens: number): number {
    return reusable(this.#longest(chain)?.blocks ?? 0, promptTokens);
  }

  /**
   * Notes that the slot holds positions [0, computed) of the prompt: other prompts may start from them.
   * @param tenant whose prompt it is.
   * @param request that it is of.
   */
  add(slot: number, prompt: PromptChain, computed: number, tenant = '', request?: string): void {
    const chain = prompt.slice(0, Math.floor(computed / BLOCK_TOKENS));
    if (chain.length === 0) return;
    const reused = this.#takenOver.has(slot);
    this.#entries.set(slot, { slot, chain, tenant, request, lastUsed: ++this.#clock, reused, pins: 0 });
  }

  /** Gives a slot back: kept if it holds a cached prompt, else empty. */
  release(slot: KvSlot): void {
    if (this.#entries.has(slot.index)) slot.keep();
    else slot.release();
  }

  /**
   * Moves the content of a held slot to slot `to`, which must not be held; content that is kept there moves to the
   * first slot. From now on slot `to` is held. Neither content can be found until `finish` has settled, to be called
   * while nothing runs, and nothing may run until then. `finish` gives the first slot back, also when it fails: then
   * neither content is known.
   * @param positions length of the held slot's content.
   * @returns undefined if slot `to` is held, or copies are being made from one of the two.
   */
  move(from: KvSlot, positions: number, to: number): { slot: KvSlot; finish: () => Promise<void> } | undefined {
    const [mine, kept] = [this.#entries.get(from.index), this.#entries.get(to)];
    if (mine?.pins || kept?.pins) return undefined;
    const keptPositions = this.#pool.claimed(to);
    // A step may be scheduled before the exchange and run after it: it must write behind both contents in either slot.
    const claimed = Math.max(positions, keptPositions);
    const slot = this.#pool.take(to, claimed);
    if (slot === undefined) return undefined;
    this.#pool.claim(from.index, claimed);
    this.#entries.delete(from.index);
    this.#entries.delete(to);
    const put = (entry: CachedPrompt | undefined, index: number) =>
      entry && this.#entries.set(index, { ...entry, slot: index });
    const { store } = this.#pool;
    const finish = async () => {
      try {
        const moved = kept ? store.swap(from.index, to, claimed) : store.copy(from.index, to, positions);
        if (moved) await moved;
        put(mine, kept ? to : from.index);
        put(kept, from.index);
      } finally {
        this.#pool.claim(to, positions);
        this.#pool.claim(from.index, kept ? keptPositions : positions);
        this.release(from);
      }
    };
    return { slot, finish };
  }

  #reserveEmpty(promptTokens: number, tenant: string): PrefixSlot | undefined {
    const slot = this.#reserveSlot(promptTokens, tenant);
    return slot && { slot, positions: 0, copyFrom: undefined };
  }

  #reserveSlot(promptTokens: number, tenant: string): KvSlot | undefined {
    const slot = this.#pool.reserve(promptTokens, tenant);
    if (slot) this.#takenOver.delete(slot.index);
    return slot;
  }

  #longest(chain: PromptChain): { entry: CachedPrompt; blocks: number } | undefined {
    let best: { entry: CachedPrompt; blocks: number } | undefined;
    for (const entry of this.#entries.values()) {
      const blocks = sharedBlocks(chain, entry.chain);
      if (blocks > (best?.blocks ?? 0)) best = { entry, blocks };
    }
    return best;
  }

  #takeOver(entry: CachedPrompt, promptTokens: number): KvSlot | undefined {
    const slot = entry.pins === 0 ? this.#pool.take(entry.slot, promptTokens) : undefined;
    if (slot) {
      this.#entries.delete(entry.slot);
      if (entry.reused) this.#takenOver.add(entry.slot);
      else this.#takenOver.delete(entry.slot);
    }
    return slot;
  }

  /**
   * Gives up a kept slot, by the rule at the top of this file, and returns its index.
   * @param tenant whose prompt needs it: on ties it loses one of its own.
   */
  #evict(tenant: string | undefined): number | undefined {
    const entries = [...this.#entries.values()];
    const evictable = entries.filter(({ slot, pins }) => pins === 0 && this.#pool.isKept(slot));
    const reusedAreMany = entries.filter(({ reused }) => reused).length > REUSED_SHARE * this.#pool.slots;
    const ofKind = evictable.filter(({ reused }) => reused === reusedAreMany);
    const candidates = ofKind.length > 0 ? ofKind : evictable;
    const held = new Map([[tenant, 1]]); // with the one that is to come
    for (const { reused, tenant: owner } of entries) {
      if (reused === candidates[0]?.reused) held.set(owner, (held.get(owner) ?? 0) + 1);
    }
    let victim: CachedPrompt | undefined;
    for (const entry of candidates) {
      const more = held.get(entry.tenant)! - (victim ? held.get(victim.tenant)! : 0);
      if (victim === undefined || more > 0 || (more === 0 && goesBefore(entry, victim, tenant))) victim = entry;
    }
    if (victim !== undefined) this.#entries.delete(victim.slot);
    return victim?.slot;
  }
}

/** Which of two prompts goes first if their tenants have as many: one of the tenant that needs room, then the older. */
function goesBefore(a: CachedPrompt, b: CachedPrompt, tenant: string | undefined): boolean {
  const own = Number(a.tenant === tenant) - Number(b.tenant === tenant);
  return own > 0 || (own === 0 && a.lastUsed < b.lastUsed);
}

/** Number of blocks at the beginning that two prompts have in common. */
export function sharedBlocks(a: PromptChain, b: PromptChain): number {
  let blocks = 0;
  while (blocks < a.length && a[blocks] === b[blocks]) blocks++;
  return blocks;
}

/** @param salt only prompts of the same salt share KV. */
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
 * Positions of a prompt that need not be computed when `blocks` of its blocks are cached. The last token is always
 * computed, because its logits are needed, and never alone: for a run of one token ONNX Runtime's attention sums in
 * another order (logits of tiny-coder differ by 7e-6; runs of two and more tokens agree exactly), and the result must
 * not depend on what was cached. (With W8A8 it does, since activations get one scale per run: KL 1e-3.)
 */
function reusable(blocks: number, promptTokens: number): number {
  return Math.max(0, Math.min(blocks * BLOCK_TOKENS, promptTokens - 2));
}
