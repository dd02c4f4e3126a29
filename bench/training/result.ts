/** The result of `bench training`. */
import type { TrainingBenchOptions } from './command.ts';

/** A row of this engine. */
export interface OwnCell {
  readonly shape: TrainingBenchOptions['shape'][number];
  /** Format of the weights. */
  readonly frozen: TrainingBenchOptions['frozen'][number];
  /** Tokens of the prompt. */
  readonly prompt: number;
  /**
   * What a pass is trained by: cross-entropy of the target where not given; `reinforce`, the log-probability of a
   * rollout; `joint`, both in one pass.
   */
  readonly losses?: 'reinforce' | 'joint';
}

/** A row: of this engine, or of PyTorch in 32-bit floats. */
export type TrainingCell = OwnCell | PytorchCell;
export type PytorchCell = Omit<OwnCell, 'frozen' | 'losses'> & {
  readonly frozen: 'pytorch';
  readonly losses?: undefined;
};

export type MeasuredTraining = TrainingCell & {
  /** From the start of the process until the graph is loaded: mostly the reading and writing of weights. */
  readonly loadSeconds: number;
  /** One figure per pass: forward and backward of one sample. */
  readonly seconds: readonly number[];
  /** CPU time of all threads in each pass. */
  readonly cpuSeconds: readonly number[];
  /** Largest resident memory during the passes, in bytes; with mapped weights. Known on Linux only. */
  readonly peakBytes: number | undefined;
  /** Of it, memory that no file backs, after the last pass. */
  readonly anonymousBytes: number | undefined;
  /** Of PyTorch, in its row. */
  readonly version?: string;
};

export interface TrainingResult {
  readonly cells: readonly MeasuredTraining[];
  /** Rows that the time was too short for. */
  readonly left: readonly TrainingCell[];
}

/** The row in words. */
export const nameOf = ({ shape, frozen, prompt, losses }: TrainingCell) =>
  `${shape}, ${frozen}, prompt of ${prompt}${losses === undefined ? '' : `, ${losses}`}`;
