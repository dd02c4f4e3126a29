/**
 * KV caches as a device binds them, in the process's memory: steps begin at slot 0, prompts are computed in a staging
 * slot, and every operation gives a promise.
 */
import { CpuEngineKv, type EngineKv } from '../../services/lib/engine/engine-kv.ts';
import type { Binding } from '../../services/lib/engine/ort.ts';
import type { KvLayout, KvRange } from '../../services/lib/kv/layout.ts';
import type { RowWriter } from '../../services/lib/kv/store.ts';

export class StagedKv implements EngineKv {
  readonly bindsAnywhere = false;
  readonly slots: number;
  /** The last slot of the memory. */
  readonly staging: number;
  /** Positions that were copied so far. */
  copied = 0;
  readonly #memory: CpuEngineKv;

  constructor(layout: KvLayout, slots: number, capacity: number) {
    this.slots = slots;
    this.staging = slots;
    this.#memory = new CpuEngineKv(layout, slots + 1, capacity);
  }

  get layout() {
    return this.#memory.layout;
  }
  get capacity() {
    return this.#memory.capacity;
  }
  get type() {
    return this.#memory.type;
  }

  bind(binding: Binding, first: number, n: number): () => void {
    const canBe = (first === 0 && n <= this.slots) || (first === this.staging && n === 1);
    if (!canBe) throw new RangeError(`slots [${first}, ${first + n}) cannot be bound`);
    return this.#memory.bind(binding, first, n);
  }

  warmUp(): void {}

  async read(slot: number, range: KvRange) {
    return this.#memory.read(slot, range).map((row) => Uint8Array.from(row));
  }
  async write(slot: number, range: KvRange, rows: Uint8Array | RowWriter) {
    this.#memory.write(slot, range, rows);
  }
  async copy(from: number, to: number, end: number, start = 0) {
    this.copied += end - start;
    this.#memory.copy(from, to, end, start);
  }
  async swap(a: number, b: number, end: number) {
    this.#memory.swap(a, b, end);
  }
  async dispose() {}
}
