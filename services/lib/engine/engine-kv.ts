/**
 * KV caches that the decoder graph reads and writes in place: what a store must offer beyond moving positions so that a
 * run can be bound to its slots. On the CPU any adjacent slots can be bound as they lie.
 */
import { CpuKvStore } from '../kv/cpu-store.ts';
import type { KvStore } from '../kv/store.ts';
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

export class CpuEngineKv extends CpuKvStore implements EngineKv {
  readonly staging = undefined;
  readonly bindsAnywhere = true;

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
        const value = new OrtValue({ type: this.floats, dims, data });
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
