/** The result of `bench gpu`: one entry for each part, whether it was measured whole, cut short, or not at all. */
import type { Pair } from '../tables/measure.ts';
import type { PartName } from './command.ts';

/** One measured figure, or a fact in words. */
export interface Figure {
  /** What was measured: a model, a graph, a process. */
  readonly subject: string;
  readonly what: string;
  readonly value: number | string;
  /** Like `ms` or `GB/s`; empty for a word or a count. */
  readonly unit: string;
  /** All measurements, in the same unit; the value is their median. */
  readonly samples?: readonly number[];
  /** The least that it could take, in the same unit, by the bandwidth or arithmetic measured on this device. */
  readonly bound?: number;
}

/**
 * `done`: measured whole. `cut`: its time was over; what it has is here. `failed`: it ended with an error, after what
 * it has here.
 */
type PartStatus = 'done' | 'cut' | 'failed';

export interface PartResult {
  readonly part: PartName;
  readonly status: PartStatus;
  /** Why it was cut or failed. */
  readonly reason?: string;
  readonly seconds: number;
  readonly figures: readonly Figure[];
  /** The requests of the paper's tables, which `bench tables` reports in the same way. */
  readonly pairs?: readonly Pair[];
}

export interface GpuResult {
  readonly provider: string;
  readonly parts: readonly PartResult[];
}
