/**
 * KV of prompts on disk: out of slots into extents (extent.ts) of a folder (kv-folder.ts), and back. It is a cache: a
 * disk that is full, slow or broken costs a prompt the time that reading was thought to save, and no error. Files are
 * read and written off the event loop; values are converted in turns of it.
 */
import { crc32 } from 'node:zlib';
import { CircuitBreaker } from '../../async/circuit.ts';
import { Turns } from '../../async/turns.ts';
import type { Logger } from '../../process/log.ts';
import { metrics } from '../../process/metrics.ts';
import type { KvPool, KvSlot } from '../pool.ts';
import { BLOCK_TOKENS, type PromptChain } from '../prefix.ts';
import type { RowWriter } from '../store.ts';
import { decodeRow, encodeRow, vectorBytes } from '../wire.ts';
import { type ExtentHeader, HEADER_BYTES, partsOf, valueBytes, writeHeader } from './extent.ts';
import type { KvFile, KvFolder } from './kv-folder.ts';

/** Extents that are read side by side: while one is on its way, the other is put into the slot. */
const READS = 2;
/** Extents whose reading nobody waits for any more may hang on a dead disk: with so many, nothing else is read. */
const MOST_READS = 2 * READS;
/**
 * What the disk is thought to read in bytes per ms before it is measured: as much as a fast one, since the time of a
 * reading that is slower is bounded.
 */
const HOPED_RATE = 2e6;
/** Most bytes that are read before the worker serves, and most time that it may take, in ms. */
const WARM_UP_BYTES = 256 << 20;
const WARM_UP_MS = 5000;
/** A reading gets at least so long, in ms: an event loop that is busy for a moment must not make it useless. */
const PATIENCE_MS = 200;
/** Each time that reading is ruled out, it is thought to be this much faster: it may have been slow only once. */
const RECOVERY = 1.05;

/** A beginning of a prompt that lies on disk, and is read sooner than computed. */
export interface Restorable {
  /** Blocks of the prompt that the slot will hold. */
  readonly blocks: number;
  /** Extents that hold them, in order. */
  readonly files: readonly KvFile[];
  /** Time in which it has to be done, in ms: as long as computing takes, or {@link PATIENCE_MS} if that is more. */
  readonly withinMs: number;
}

/** A prompt in a slot, which holds the KV of all blocks of the chain. */
export interface PromptInSlot {
  readonly slot: number;
  readonly chain: PromptChain;
  readonly tenant: string;
}

/** A file in memory. */
interface Loaded {
  readonly content: Buffer;
  /** Nothing reads the content any more. */
  release(): void;
}

export class KvDisk {
  readonly #pool: KvPool;
  readonly #folder: KvFolder;
  readonly #log: Logger;
  readonly #circuits = { read: new CircuitBreaker(), write: new CircuitBreaker() };
  /** Memory for whole files that nothing uses now. */
  readonly #spare: Buffer[] = [];
  /** Readings that have not ended. */
  #reads = 0;
  /** Bytes that are read and put into a slot per ms. */
  #rate = HOPED_RATE;

  constructor(pool: KvPool, folder: KvFolder, log: Logger) {
    this.#pool = pool;
    this.#folder = folder;
    this.#log = log;
  }

  /** Names the folder among all. */
  get folderId(): string {
    return this.#folder.id;
  }

  /** Another one after the folder was deleted and made again: what was saved is gone then. */
  get folderMade(): string {
    return this.#folder.made;
  }

  /** The number n of blocks [0, n) of a prompt that lie on disk. */
  savedBlocks(chain: PromptChain): number {
    return this.#find(chain, 0, chain.length).blocks;
  }

  /** The largest number of blocks up to `blocks` that fill their extents. */
  wholeExtents(blocks: number): number {
    const size = this.#folder.form.blocks;
    return Math.floor(blocks / size) * size;
  }

  /** A prompt was saved, or read: its files are used last, and the first of them is the last one to be deleted. */
  used(chain: PromptChain): Promise<void> {
    return this.#folder.use(this.#find(chain, 0, chain.length).files);
  }

  /** Reads which files other workers have written or deleted. Failures are counted. */
  async lookAround(): Promise<void> {
    await this.#attempt('read', () => this.#folder.refresh());
  }

  /**
   * What of a prompt is to be read from the disk.
   * @param has blocks that the slot holds already.
   * @param most blocks that are of use.
   * @param tokensPerSecond tokens that the engine computes meanwhile; 0 where that is not known.
   * @returns undefined where nothing is there, or reading takes longer than computing.
   */
  restorable(chain: PromptChain, has: number, most: number, tokensPerSecond: number): Restorable | undefined {
    const { read } = this.#circuits;
    if (tokensPerSecond === 0 || this.#reads > MOST_READS - READS || !read.allows(performance.now())) return undefined;
    const { blocks, files } = this.#find(chain, has, Math.min(most, chain.length));
    if (blocks <= has) return undefined;
    const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
    const withinMs = ((blocks - has) * BLOCK_TOKENS * 1000) / tokensPerSecond;
    if (bytes / this.#rate < withinMs) return { blocks, files, withinMs: Math.max(withinMs, PATIENCE_MS) };
    this.#rate = Math.min(HOPED_RATE, this.#rate * RECOVERY);
    return undefined;
  }

  /**
   * Reads blocks into a slot, which the caller holds until this has settled.
   * @param has blocks that the slot holds: their positions are not written to.
   * @returns the number of blocks that the slot then holds, `has` at least.
   * @throws what the slot's store throws: a disk that fails only ends the reading.
   */
  async restore(slot: number, has: number, restorable: Restorable, signal: AbortSignal): Promise<number> {
    const startedMs = performance.now();
    const done = await this.#fill(slot, has, restorable, signal);
    metrics.kvDiskReadTime.observe((performance.now() - startedMs) / 1000);
    metrics.kvDiskRestored.inc((done - has) * BLOCK_TOKENS);
    return done;
  }

  /**
   * Reads some of what is on disk into free slots, which stay empty: memory is then there, code is compiled, and it is
   * known how fast the disk is. Otherwise the first prompt after a start pays for that: putting 49 MB into memory that
   * was never written to takes 37 ms of CPU time, and 7 ms later. Call this before the worker serves.
   */
  async warmUp(): Promise<void> {
    const files = this.#folder.sample(this.#pool.capacity / BLOCK_TOKENS);
    const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
    const blocks = files.reduce((sum, { header }) => sum + header!.hashes.length, 0);
    const over = AbortSignal.timeout(WARM_UP_MS);
    const held: KvSlot[] = [];
    try {
      for (let i = 0; i < this.#pool.slots && (i + 1) * bytes <= WARM_UP_BYTES && blocks > 0 && !over.aborted; i++) {
        const slot = this.#pool.reserve(blocks * BLOCK_TOKENS);
        if (slot === undefined) break;
        held.push(slot);
        await this.#fill(slot.index, 0, { blocks, files, withinMs: WARM_UP_MS }, over);
      }
    } finally {
      for (const slot of held) slot.release();
    }
  }

  async #fill(slot: number, has: number, restorable: Restorable, signal: AbortSignal): Promise<number> {
    const { blocks, files, withinMs } = restorable;
    const startedMs = performance.now();
    const over = AbortSignal.any([signal, AbortSignal.timeout(Math.ceil(withinMs))]);
    const aborted = new Promise<undefined>((resolve) => {
      over.addEventListener('abort', () => resolve(undefined), { once: true });
    });
    const begun = files.slice(0, READS).map((file) => this.#load(file));
    let [done, bytes] = [has, 0];
    try {
      for (const [i, file] of files.entries()) {
        const loaded = over.aborted ? undefined : await Promise.race([begun[0]!, aborted]);
        if (loaded === undefined) break;
        begun.shift();
        const next = files[i + READS];
        if (next) begun.push(this.#load(next));
        const end = Math.min(blocks, file.header!.first + file.header!.hashes.length);
        const isWhole = await this.#put(loaded.content, file.header!, slot, [done, end], over).finally(loaded.release);
        if (isWhole === false) await this.#folder.discard(file);
        if (isWhole !== true) break;
        done = end;
        bytes += file.bytes;
      }
    } finally {
      for (const left of begun) void left.then((loaded) => loaded?.release());
    }
    const tookMs = performance.now() - startedMs;
    // A file that was gone says nothing of the disk, and neither does a caller that hung up.
    if (bytes > 0 || (over.aborted && !signal.aborted)) this.#rate = (this.#rate + bytes / Math.max(tookMs, 0.1)) / 2;
    return done;
  }

  /**
   * Saves the next blocks of a prompt: those of one extent that is not on disk yet, and those before it that are.
   * @param from blocks that were saved before.
   * @param to blocks that are to be saved.
   * @param isThere whether the slot still holds the prompt. Where it does not, nothing is saved.
   * @returns the number of blocks that are saved now, and the bytes that were written for it. The number is `from`
   *   where the prompt is gone, or the disk cannot be written to now.
   * @throws what the slot's store throws.
   */
  async save(
    prompt: PromptInSlot,
    from: number,
    to: number,
    isThere: () => boolean,
  ): Promise<{ blocks: number; bytes: number }> {
    const { blocks, files } = this.#find(prompt.chain, from, to);
    await this.#folder.use(files); // else they could be what makes room for those after them
    const nothing = { blocks, bytes: 0 };
    if (blocks >= to || !this.#circuits.write.allows(performance.now())) return nothing;
    const { form } = this.#folder;
    const first = Math.floor(blocks / form.blocks) * form.blocks;
    const end = Math.min(first + form.blocks, to);
    const buffer = this.#memory();
    try {
      const hashes = prompt.chain.slice(first, end);
      const values = buffer.subarray(HEADER_BYTES, HEADER_BYTES + valueBytes(form, hashes.length));
      const crc = await this.#take(prompt.slot, first, hashes.length, values, isThere);
      if (crc === undefined) return nothing;
      const header = { first, hashes, crc32: crc };
      writeHeader(form, header, buffer);
      const content = buffer.subarray(0, HEADER_BYTES + values.length);
      const written = this.#attempt('write', () => this.#folder.write(header, prompt.tenant, content));
      if (!(await written).ok) return nothing;
      metrics.kvDiskWritten.inc(content.length);
      return { blocks: end, bytes: content.length };
    } finally {
      this.#spare.push(buffer);
    }
  }

  /** The files that hold blocks of a prompt from the one with block `from` on, as far as there is no gap. */
  #find(chain: PromptChain, from: number, to: number): { readonly blocks: number; readonly files: readonly KvFile[] } {
    const size = this.#folder.form.blocks;
    const files: KvFile[] = [];
    let blocks = from;
    for (let first = Math.floor(from / size) * size; first < to && blocks >= first; first += size) {
      for (let block = Math.min(first + size, to) - 1; block >= blocks; block--) {
        const file = this.#folder.find(chain[block]!);
        if (file === undefined || !isOf(chain, first, block, file.header)) continue;
        files.push(file);
        blocks = block + 1;
      }
    }
    return { blocks, files };
  }

  /** Reads a file; undefined where it is gone, damaged or cannot be read. It never rejects. */
  async #load(file: KvFile): Promise<Loaded | undefined> {
    const buffer = this.#memory();
    const release = () => void this.#spare.push(buffer);
    this.#reads++;
    const { value: content } = await this.#attempt('read', () => this.#folder.read(file, buffer));
    this.#reads--;
    if (content !== undefined) return { content, release };
    release();
    return undefined;
  }

  /**
   * Puts blocks [from, to) of an extent into a slot.
   * @returns false if the values are not those that the header speaks of; undefined if it was aborted.
   */
  async #put(
    content: Buffer,
    header: ExtentHeader,
    slot: number,
    [from, to]: readonly [number, number],
    over: AbortSignal,
  ) {
    const { form } = this.#folder;
    const turns = new Turns();
    const vector = vectorBytes(form.type, form.layout.headDim);
    let [crc, at] = [0, HEADER_BYTES];
    for (const part of partsOf(form, header.first, header.hashes.length)) {
      if (turns.over) await turns.next();
      if (over.aborted) return undefined;
      const rowBytes = (part.end - part.start) * vector;
      const values = content.subarray(at, at + (part.rowEnd - part.rowStart) * rowBytes);
      at += values.length;
      crc = crc32(values, crc);
      const [start, end] = [Math.max(part.start, from * BLOCK_TOKENS), Math.min(part.end, to * BLOCK_TOKENS)];
      if (start >= end) continue;
      const rows = this.#rowWriter(values, rowBytes, start - part.start);
      const written = this.#pool.store.write(slot, { ...part, start, end }, rows);
      if (written) await written;
    }
    return crc === header.crc32;
  }

  /** Writes rows of a part, without their first `skip` vectors and those behind what the pool asks for. */
  #rowWriter(values: Buffer, rowBytes: number, skip: number): RowWriter {
    const { type, layout } = this.#folder.form;
    const vector = vectorBytes(type, layout.headDim);
    if (type === this.#pool.type) {
      return (index, to) => {
        const start = index * rowBytes + skip * vector;
        to.set(values.subarray(start, start + to.length));
      };
    }
    const row = new Float32Array((rowBytes / vector) * layout.headDim);
    return (index, to) => {
      decodeRow(type, values.subarray(index * rowBytes, (index + 1) * rowBytes), layout.headDim, row);
      const start = skip * layout.headDim;
      floatsOf(to).set(row.subarray(start, start + to.length / 4));
    };
  }

  /** Takes blocks out of a slot. @returns the CRC-32 of the values; undefined where the slot does not hold them. */
  async #take(
    slot: number,
    first: number,
    blocks: number,
    values: Buffer,
    isThere: () => boolean,
  ): Promise<number | undefined> {
    const { form } = this.#folder;
    const { store, type } = this.#pool;
    const turns = new Turns();
    const vector = vectorBytes(form.type, form.layout.headDim);
    let [crc, at] = [0, 0];
    for (const part of partsOf(form, first, blocks)) {
      if (turns.over) await turns.next();
      if (!isThere()) return undefined;
      const read = store.read(slot, part);
      const rows = read instanceof Promise ? await read : read;
      if (!isThere()) return undefined; // what a device has read may be of another prompt
      const rowBytes = (part.end - part.start) * vector;
      const from = at;
      for (const row of rows) {
        const to = values.subarray(at, at + rowBytes);
        if (form.type === type) to.set(row);
        else encodeRow(form.type, floatsOf(row), form.layout.headDim, to);
        at += rowBytes;
      }
      crc = crc32(values.subarray(from, at), crc);
    }
    return crc;
  }

  /** Memory for the largest file. */
  #memory(): Buffer {
    return this.#spare.pop() ?? Buffer.allocUnsafeSlow(this.#folder.form.fileBytes);
  }

  /** Does something with the disk. After several failures it is left alone for a while. */
  async #attempt<T>(operation: 'read' | 'write', task: () => Promise<T>): Promise<{ ok: boolean; value?: T }> {
    const circuit = this.#circuits[operation];
    const beganMs = performance.now();
    circuit.tried(beganMs);
    try {
      const value = await task();
      circuit.succeeded();
      return { ok: true, value };
    } catch (error) {
      const wasOpen = circuit.open;
      circuit.failed(performance.now(), beganMs);
      metrics.kvDiskErrors.inc({ operation });
      if (!wasOpen) this.#log.warn({ err: error, operation, dir: this.#folder.dir }, 'KV on disk: going on without it');
      return { ok: false };
    }
  }
}

/** Whether a header says that its file holds a prompt's blocks [first, block]. */
function isOf(chain: PromptChain, first: number, block: number, header: ExtentHeader | undefined): boolean {
  if (header?.first !== first) return false;
  for (let i = first; i <= block; i++) if (header.hashes[i - first] !== chain[i]) return false;
  return true;
}

/** The values of a row of float32: the same memory. */
const floatsOf = (row: Uint8Array) => new Float32Array(row.buffer, row.byteOffset, row.length / 4);
