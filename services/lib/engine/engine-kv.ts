/**
 * KV caches that the decoder graph reads and writes in place: what a store must offer beyond moving positions so that a
 * run can be bound to its slots. On the CPU any adjacent slots can be bound as they lie; prompts of slots of levels are
 * computed in a staging slot.
 */
import { CpuKvStore } from '../kv/cpu-store.ts';
import { type KvLayout, rowCount } from '../kv/layout.ts';
import type { KvStore } from '../kv/store.ts';
import { scaleInput } from '../model/graph/prompt-graph.ts';
import { presentOfRow } from '../model/graph/row-graph.ts';
import { type Binding, OrtValue } from './ort.ts';

export interface EngineKv extends KvStore {
  /**
   * A slot of the store that is not the pool's: the place in which prompts are computed where a slot of many cannot be
   * bound by itself. Undefined where it can.
   */
  readonly staging: number | undefined;
  /** Whether a step can begin at any slot. Otherwise it begins at slot 0. */
  readonly bindsAnywhere: boolean;

  /**
   * Binds slots [first, first + n) as past and, at the same address, as present, so that the runtime appends in place:
   * `past.<layer>.<key | value>` and `present.…`, each `[n, kv_heads, capacity, head_dim]`.
   * @returns frees what was made for it; called after the binding is disposed of.
   */
  bind(binding: Binding, first: number, n: number): () => void;

  /** Prepares what moves of positions need, before the worker serves. Slots lose their content. */
  warmUp(): void | Promise<void>;
}

/** The type of the tensors that hold values of a type. */
const TENSOR = { float32: 'float32', float16: 'float16', 'int8-channel': 'int8' } as const;

export class CpuEngineKv extends CpuKvStore implements EngineKv {
  readonly bindsAnywhere = true;

  get staging(): number | undefined {
    return undefined;
  }

  warmUp(): void {}

  /** @param rows of a verify run on one slot: the outputs of all of them lie at the same address (row-graph.ts). */
  bind(binding: Binding, first: number, n: number, rows = 1): () => void {
    const { kvHeads, headDim } = this.layout;
    const dims = [n, kvHeads, this.capacity, headDim];
    const slotElements = kvHeads * this.capacity * headDim;
    const values: OrtValue[] = [];
    for (const [i, layer] of this.layers.entries()) {
      for (const part of ['key', 'value'] as const) {
        const data = layer[part].subarray(first * slotElements, (first + n) * slotElements);
        const value = new OrtValue({ type: TENSOR[this.type], dims, data });
        values.push(value);
        binding.input(`past.${i}.${part}`, value);
        for (let row = 0; row < rows; row++) binding.output(presentOfRow(`present.${i}.${part}`, row, rows), value);
      }
    }
    return () => {
      for (const value of values) value.dispose();
    };
  }
}

/**
 * Slots of int8, a quarter of the bytes of floats, and one staging slot of 32-bit floats, in which prompts are computed
 * (prompt-graph.ts). What lies there is a multiple of its scale, so copying it to a slot and back loses nothing. Such a
 * copy keeps the event loop busy: a chunk of 512 tokens has 6 million values at 0.5B.
 */
export class Int8Kv extends CpuEngineKv {
  /** Of each channel of each row: `[layers, K or V, kv_heads, head_dim]`. */
  readonly #scales: Float32Array;
  readonly #staged: CpuEngineKv | undefined;

  /** @param staged whether prompts are computed here. @throws ServingError out_of_memory, with the arithmetic. */
  constructor(layout: Omit<KvLayout, 'type'>, scales: Float32Array, slots: number, capacity: number, staged = true) {
    const { layers, kvHeads, headDim } = layout;
    super({ layers, kvHeads, headDim, type: 'int8-channel' }, slots, capacity);
    this.#scales = scales;
    this.#staged = staged ? new CpuEngineKv({ layers, kvHeads, headDim }, 1, capacity) : undefined;
  }

  override get staging(): number | undefined {
    return this.#staged && this.slots;
  }

  override copy(from: number, to: number, end: number, start = 0): void {
    const staged = this.#staged;
    if (staged === undefined || (from !== this.slots && to !== this.slots)) {
      super.copy(from, to, end, start);
      return;
    }
    const { headDim } = this.layout;
    const range = { start, end, rowStart: 0, rowEnd: rowCount(this.layout) };
    const levels = this.read(from === this.slots ? to : from, range);
    for (const [row, bytes] of staged.read(0, range).entries()) {
      const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
      const { buffer, byteOffset, length } = levels[row]!;
      const scales = this.#scales.subarray(row * headDim, (row + 1) * headDim);
      if (from === this.slots) toLevels(values, scales, new Int8Array(buffer, byteOffset, length));
      else fromLevels(new Int8Array(buffer, byteOffset, length), scales, values);
    }
  }

  override bind(binding: Binding, first: number, n: number, rows = 1): () => void {
    const staged = first === this.slots ? this.#staged : undefined;
    const unbind = staged ? staged.bind(binding, 0, n) : super.bind(binding, first, n, rows);
    const { layers, kvHeads, headDim } = this.layout;
    const width = kvHeads * headDim;
    const dims = staged ? [width] : [1, kvHeads, 1, headDim];
    const values: OrtValue[] = [];
    for (let layer = 0; layer < layers; layer++) {
      for (const [i, part] of (['key', 'value'] as const).entries()) {
        const at = (layer * 2 + i) * width;
        const value = new OrtValue({ type: 'float32', dims, data: this.#scales.subarray(at, at + width) });
        values.push(value);
        binding.constant(scaleInput(layer, part), value);
      }
    }
    return () => {
      unbind();
      for (const value of values) value.dispose();
    };
  }
}

/** @param values `[positions, head_dim]`, multiples of their scales `[head_dim]`. @param levels written. */
function toLevels(values: Float32Array, scales: Float32Array, levels: Int8Array): void {
  const inverse = scales.map((scale) => 1 / scale);
  for (let from = 0; from < values.length; from += scales.length) {
    // Adding 128.5 makes all values positive, so that truncating rounds to nearest.
    for (let i = 0; i < scales.length; i++) levels[from + i] = ((values[from + i]! * inverse[i]! + 128.5) | 0) - 128;
  }
}

function fromLevels(levels: Int8Array, scales: Float32Array, values: Float32Array): void {
  for (let from = 0; from < values.length; from += scales.length) {
    for (let i = 0; i < scales.length; i++) values[from + i] = levels[from + i]! * scales[i]!;
  }
}
