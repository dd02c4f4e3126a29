/** What a pretraining is asked for. It is part of a run's settings. */
import type { PRETRAIN_SCHEMES } from '../choices.ts';

export interface Pretraining {
  readonly scheme: (typeof PRETRAIN_SCHEMES)[number];
  /** Steps of the projector's optimiser; each sees as many chunks as a step of the run sees samples. */
  readonly steps: number;
  /** The largest learning rate of these steps. */
  readonly learningRate: number;
  /** The most tokens of a chunk's text that are recovered. */
  readonly tokens: number;
  /** The most distinct chunks, the first ones of the data set; all where not given. */
  readonly chunks?: number | undefined;
  /** How memory tokens are fitted; for the scheme `memory` alone. */
  readonly memory?: MemorySettings | undefined;
}

export interface MemorySettings {
  /** The most steps of the optimiser for each chunk. */
  readonly steps: number;
  readonly learningRate: number;
}

/** The most tokens of a prompt of a pretraining: its frame, one soft token and a cue. */
export const PRETRAIN_PROMPT = 64;
