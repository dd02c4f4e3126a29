/** The settings of training that are one of several words: for the command line, which loads nothing that trains. */
import type { AlignmentForm } from '../services/lib/model/graph/projector-training.ts';

export const ALIGNMENT_FORMS = ['frobenius', 'mse'] as const satisfies readonly AlignmentForm[];
/** How the learning rate falls after the warm-up. */
export const SCHEDULES = ['cosine', 'linear'] as const;
/**
 * Formats of the frozen layers: 32-bit floats; weights of 16 or 8 bits that are widened to 32-bit floats as they are
 * multiplied by; or weights and activations of 8 bits, forward and backward.
 */
export const FROZEN_FORMATS = ['fp32', 'fp16', 'int8', 'w8a8'] as const;
/** What graphs of training compute on; `auto` takes a GPU if the system lists one that can be used, else the CPU. */
export const PROVIDERS = ['cpu', 'webgpu', 'cuda', 'auto'] as const;
/** Linear layers of a projector. */
export const LAYER_COUNTS = ['2', '3', '4'] as const;
/** Languages of data sets: those of the paper's benchmarks. */
export const LANGUAGES = ['python', 'java', 'typescript', 'csharp', 'go'] as const;
/** Retrievers that need no encoder. */
export const DATASET_RETRIEVERS = ['jaccard', 'bm25'] as const;
/** What stands before the code of a prompt: nothing, chunks as text, or one soft token for each chunk. */
export const ARMS = ['none', 'text', 'compressed'] as const;
export type Arm = (typeof ARMS)[number];
/** What the reward of a rollout is compared with: nothing, or the greedy rollout's (self-critical training). */
export const BASELINES = ['none', 'scst'] as const;

/** What a projector begins with: random numbers, or the embeddings of the tokens of a chunk; see token-start.ts. */
export const STARTS = ['random', 'tokens'] as const;

/** How a projector is prepared before its training: the two schemes of the paper's Appendix E. */
export const PRETRAIN_SCHEMES = ['reconstruct', 'memory'] as const;

/** What a sweep may search: the options of `llavacode train` with these names. */
export const SWEPT = ['learning-rate', 'ce', 'alignment', 'reinforce', 'kl', 'distill'] as const;

/**
 * Settings of the paper's runs, by name. Losses, learning rate, schedule, warm-up, batch, epochs and weight decay are
 * those of its Table 7; the number of chunks, their text and the prompt's length (2,000 tokens and 10 soft ones) those
 * of its text. It does not say how long targets and rollouts may be: 100 and 50 tokens are limits of the authors' code.
 */
const PAPER = {
  ce: 0.9,
  schedule: 'cosine',
  weightDecay: 0,
  epochs: 3,
  layers: '3',
  chunks: 10,
  promptTokens: 2010,
  textTokens: 512,
  rolloutTokens: 50,
  targetTokens: 100,
  alignmentForm: 'frobenius',
} as const;
export const PRESETS = {
  'paper-1.5b': { ...PAPER, alignment: 0.1, reinforce: 0.1, learningRate: 1e-3, warmup: 0.03, batch: 66 },
  'paper-7b': { ...PAPER, alignment: 0.2, reinforce: 0.05, learningRate: 1e-4, warmup: 0.04, batch: 64 },
} as const;
