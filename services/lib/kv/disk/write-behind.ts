/**
 * Saves the prompts that are kept in slots to disk while the worker goes on (write-behind), so that they outlive it
 * even when it is killed. A prompt is saved
 *
 * - once nobody has used it for {@link IDLE_MS}: while somebody types, its end changes with every keystroke;
 * - before that, as far as it has whole extents in common with the prompt before it, which typing does not change;
 * - when it is the next one to go and no slot is free, so that it need not be saved in the moment in which its slot is
 *   needed; if it goes nevertheless before it is saved, that is counted;
 * - when the worker drains.
 *
 * Each prompt is saved once: a folder that is smaller than the slots together must not be written to for ever. Only
 * when somebody has deleted the folder, all are saved again.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { repeatUntilAborted } from '../../async/repeat.ts';
import type { Logger } from '../../process/log.ts';
import { metrics } from '../../process/metrics.ts';
import type { KvPool } from '../pool.ts';
import type { CachedPrompt, PrefixCache } from '../prefix.ts';
import type { KvDisk } from './kv-disk.ts';

/** A pause in typing, in ms: editors ask again after 100 to 500 ms. */
const IDLE_MS = 1000;
/** Pause between two looks at the prompts, in ms. */
const LOOK_MS = 250;
/** Pause after a failure of the store in which the slots lie, in ms. */
const FAILED_MS = 5000;
/** Pause between two looks at what other workers have done in the folder, in ms. */
const LOOK_AROUND_MS = 2000;
/**
 * Bytes that are written per ms while the worker serves: 64 MB/s. On two cores a model of 0.5B parameters makes 30 MB
 * of KV per second, so this keeps up, and leaves most of a disk to others.
 */
const BYTES_PER_MS = 64_000;

export class WriteBehind {
  readonly #pool: Pick<KvPool, 'slots' | 'isHeld' | 'isKept'>;
  readonly #prefixes: PrefixCache;
  readonly #disk: KvDisk;
  readonly #log: Logger;
  /** Blocks of each prompt that were on disk once, in the folder `#folderMade`. */
  #saved = new WeakMap<CachedPrompt, number>();
  #folderMade: string;
  readonly #stop = new AbortController();
  #running: Promise<void> = Promise.resolve();
  #lookedAroundMs = performance.now();

  constructor(pool: Pick<KvPool, 'slots' | 'isHeld' | 'isKept'>, prefixes: PrefixCache, disk: KvDisk, log: Logger) {
    this.#pool = pool;
    this.#prefixes = prefixes;
    this.#disk = disk;
    this.#folderMade = disk.folderMade;
    this.#log = log;
    prefixes.onEvicted((prompt) => {
      if (disk.savedBlocks(prompt.chain) < prompt.chain.length) metrics.kvDiskUnsaved.inc();
    });
  }

  /** Saves in the background until {@link stop}. */
  start(): void {
    this.#running = repeatUntilAborted(this.#stop.signal, async () => {
      try {
        await this.#look();
        return LOOK_MS;
      } catch (err) {
        // A device that cannot be read from any more ends the worker by itself: nothing is to be done here.
        this.#log.warn({ err }, 'KV of kept prompts cannot be read out of their slots');
        return FAILED_MS;
      }
    });
  }

  /**
   * Ends the work in the background and saves what is not saved yet, as fast as the disk is, what was used last first.
   * @param until gives up; a disk that hangs is not waited for any longer.
   */
  async stop(until: AbortSignal): Promise<void> {
    this.#stop.abort();
    const over = new Promise<void>((resolve) => {
      if (until.aborted) resolve();
      until.addEventListener('abort', () => resolve(), { once: true });
    });
    const all = this.#running.then(async () => {
      const prompts = [...this.#prefixes.prompts].sort((a, b) => b.lastUsed - a.lastUsed);
      for (const prompt of prompts) await this.#save(prompt, prompt.chain.length, until);
    });
    await Promise.race([all, over]);
  }

  async #look(): Promise<void> {
    const nowMs = performance.now();
    if (nowMs - this.#lookedAroundMs >= LOOK_AROUND_MS) {
      this.#lookedAroundMs = nowMs;
      await this.#disk.lookAround();
      if (this.#disk.folderMade !== this.#folderMade) {
        this.#folderMade = this.#disk.folderMade;
        this.#saved = new WeakMap();
      }
    }
    const next = this.#isFull() ? this.#prefixes.nextToGo : undefined;
    const prompts = [...this.#prefixes.prompts].sort((a, b) => a.lastUsed - b.lastUsed);
    if (next) prompts.unshift(next);
    for (const prompt of prompts) {
      const isDue = prompt === next || nowMs - prompt.lastUsedMs >= IDLE_MS;
      const blocks = isDue ? prompt.chain.length : this.#disk.wholeExtents(prompt.sharedBlocks);
      await this.#save(prompt, blocks, this.#stop.signal, BYTES_PER_MS);
    }
  }

  /** @param rate bytes per ms; as fast as the disk is when not given. */
  async #save(prompt: CachedPrompt, blocks: number, until: AbortSignal, rate = Infinity): Promise<void> {
    const isThere = () => this.#prefixes.has(prompt) && !until.aborted;
    let done = this.#saved.get(prompt) ?? 0;
    if (done >= blocks) return;
    while (done < blocks && isThere()) {
      const startedMs = performance.now();
      const saved = await this.#disk.save(prompt, done, blocks, isThere);
      if (saved.blocks === done) return;
      done = saved.blocks;
      this.#saved.set(prompt, done);
      const pauseMs = saved.bytes / rate - (performance.now() - startedMs);
      if (pauseMs > 0) await sleep(pauseMs, undefined, { signal: until }).catch(() => {});
    }
    await this.#disk.used(prompt.chain);
  }

  /** Whether a new prompt would take the slot of a kept one. */
  #isFull(): boolean {
    for (let slot = 0; slot < this.#pool.slots; slot++) {
      if (!this.#pool.isHeld(slot) && !this.#pool.isKept(slot)) return false;
    }
    return true;
  }
}
