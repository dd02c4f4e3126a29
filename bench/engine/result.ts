/** The result of `bench engine`. */
import type { Interval } from '../measure/statistics.ts';
import type { ProcessMemory } from './memory.ts';

/** A prompt of `tokens` tokens in chunks of `chunk` tokens. */
export interface PrefillCell {
  readonly phase: 'prefill';
  readonly tokens: number;
  readonly chunk: number;
}

/** One decode step of `batch` sequences that hold about `context` tokens each. */
export interface DecodeCell {
  readonly phase: 'decode';
  readonly batch: number;
  readonly context: number;
}

export type EngineCell = (PrefillCell | DecodeCell) & {
  /** One duration per repeat: of the whole prompt, or the median of the decode steps. */
  readonly ms: readonly number[];
  readonly medianMs: number;
  readonly interval: Interval;
  /** Tokens per second of all sequences together, at the median duration. */
  readonly tokensPerSecond: number;
};

export interface EngineResult {
  readonly loadMs: number;
  readonly memory: { readonly loaded: ProcessMemory; readonly after: ProcessMemory };
  /** With `--verify-runs`. */
  readonly verify?: {
    /** Time of a run, in ms, by its tokens; 1 stands for a decode step. */
    readonly runMs: readonly (readonly [tokens: number, ms: number])[];
    /** Once they are open. */
    readonly memory: ProcessMemory;
  };
  readonly cells: readonly EngineCell[];
}

/** CPU time of this engine / CPU time of the other checkout's, over pairs measured in turns. */
export type AgainstCell = (PrefillCell | DecodeCell) & {
  readonly ratios: readonly number[];
  /** Median of the ratios. */
  readonly ratio: number;
  readonly interval: Interval;
  readonly quartiles: { readonly low: number; readonly high: number };
};

/** The result of `bench engine --against`. */
export interface AgainstResult {
  readonly cells: readonly AgainstCell[];
}

/** The cell in words. */
export const nameOf = (cell: PrefillCell | DecodeCell) =>
  cell.phase === 'prefill'
    ? `prefill of ${cell.tokens}, chunks of ${cell.chunk}`
    : `decode of ${cell.batch} at ${cell.context}`;
