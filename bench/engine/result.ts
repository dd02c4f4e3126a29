/** What `bench engine` finds. */
import type { Interval } from '../measure/statistics.ts';
import type { Memory } from './memory.ts';

/** Prompt of `tokens`, in chunks of `chunk`. */
export interface PrefillCell {
  readonly phase: 'prefill';
  readonly tokens: number;
  readonly chunk: number;
}

/** One step of `batch` sequences that hold about `context` tokens each. */
export interface DecodeCell {
  readonly phase: 'decode';
  readonly batch: number;
  readonly context: number;
}

export type EngineCell = (PrefillCell | DecodeCell) & {
  /** One per repeat: of the whole prompt, or the median of the steps. */
  readonly ms: readonly number[];
  readonly medianMs: number;
  readonly interval: Interval;
  /** Of all sequences together, at the median. */
  readonly tokensPerSecond: number;
};

export interface EngineResult {
  readonly loadMs: number;
  readonly memory: { readonly loaded: Memory; readonly after: Memory };
  readonly cells: readonly EngineCell[];
}

/** In words, for readers. */
export const nameOf = (cell: PrefillCell | DecodeCell) =>
  cell.phase === 'prefill'
    ? `prefill of ${cell.tokens}, chunks of ${cell.chunk}`
    : `decode of ${cell.batch} at ${cell.context}`;
