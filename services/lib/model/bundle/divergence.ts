/**
 * What quantisation costs: an exported language model against the same one in 32-bit floats, on given token sequences.
 * The engine is handed in, since it is built on this room.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { ServingError } from '../../process/errors.ts';
import { Checkpoint } from '../checkpoint/checkpoint.ts';
import { buildDecoder } from '../graph/decoder.ts';
import { writeModel } from '../graph/onnx.ts';
import { type Bundle, floatsOf } from './bundle.ts';

/** Paths of the decoder graph for prompts and of the one for decoding; they may be the same. */
export interface GraphPair {
  readonly prompt: string;
  readonly decode: string;
  /** What they compute in. */
  readonly floats: 'float32' | 'float16';
}

/**
 * Decoder graphs that are loaded. Of each sequence, the first half is computed as a prompt and the second token by token,
 * as a completion is, so that what is measured includes KV of the one continued by the other.
 */
export interface LogitsRunner {
  /** Logits after every position of one sequence: [ids, vocab]. */
  logits(ids: readonly number[]): Promise<Float32Array>;
  dispose(): void;
}

export interface Divergence {
  /** Kullback-Leibler divergence of the exported model's next-token distribution from the reference, in nats. */
  readonly klMean: number;
  readonly klP99: number;
  /** Share of positions where both find the same token most likely. */
  readonly top1Agreement: number;
  /** Positions compared. */
  readonly positions: number;
}

export interface DivergenceOptions {
  readonly bundle: Bundle;
  /** Hugging Face folder that the bundle was made from. */
  readonly llm: string;
  /** Token ids of real code, each sequence within the bundle's positions. */
  readonly sequences: readonly (readonly number[])[];
  readonly open: (graphs: GraphPair) => Promise<LogitsRunner>;
  readonly signal?: AbortSignal;
}

/**
 * Compares a bundle's language model with a fresh export in 32-bit floats, made beside it and
 * removed again.
 * @throws ServingError config_invalid without sequences, checkpoint_invalid, runtime_failed; the signal's reason
 */
export async function measureDivergence({
  bundle,
  llm,
  sequences,
  open,
  signal,
}: DivergenceOptions): Promise<Divergence> {
  if (sequences.every((ids) => ids.length === 0))
    throw new ServingError('config_invalid', 'no code to verify the export on');
  // Beside the bundle: a disk that held the model once has room for it again, which a temporary folder may not.
  const work = await mkdtemp(join(dirname(resolve(bundle.dir)), '.verify-'));
  const runners: LogitsRunner[] = [];
  try {
    const { spec, maxPositions } = bundle.manifest.llm;
    await using weights = await Checkpoint.open(llm);
    const graph = buildDecoder(spec, weights, { layers: 'fp32', vocabulary: 'fp32', maxPositions });
    await writeModel(graph, work, { signal });
    const reference = join(work, 'model.onnx');
    runners.push(await open({ prompt: reference, decode: reference, floats: 'float32' }));
    runners.push(await open({ prompt: bundle.prefill, decode: bundle.llm, floats: floatsOf(bundle.manifest) }));
    return await compare(runners[0]!, runners[1]!, sequences, spec.vocab, signal);
  } finally {
    for (const runner of runners) runner.dispose();
    await rm(work, { recursive: true, force: true });
  }
}

async function compare(
  reference: LogitsRunner,
  candidate: LogitsRunner,
  sequences: DivergenceOptions['sequences'],
  vocab: number,
  signal?: AbortSignal,
): Promise<Divergence> {
  const divergences: number[] = [];
  let agreed = 0;
  for (const ids of sequences) {
    signal?.throwIfAborted();
    const expected = await reference.logits(ids);
    const actual = await candidate.logits(ids);
    for (let at = 0; at < expected.length; at += vocab) {
      const { kl, sameTop } = comparePosition(expected.subarray(at, at + vocab), actual.subarray(at, at + vocab));
      divergences.push(kl);
      if (sameTop) agreed++;
    }
  }
  divergences.sort((a, b) => a - b);
  const positions = divergences.length;
  return {
    klMean: divergences.reduce((sum, kl) => sum + kl, 0) / positions,
    klP99: divergences[Math.ceil(0.99 * positions) - 1]!,
    top1Agreement: agreed / positions,
    positions,
  };
}

/** Logits [vocab] of both models after one position. */
export function comparePosition(reference: Float32Array, candidate: Float32Array): { kl: number; sameTop: boolean } {
  const p = summary(reference);
  const q = summary(candidate);
  let kl = 0;
  for (let i = 0; i < reference.length; i++) {
    const logP = reference[i]! - p.logSum;
    kl += Math.exp(logP) * (logP - (candidate[i]! - q.logSum));
  }
  return { kl: Math.max(0, kl), sameTop: p.top === q.top };
}

/** Index of the largest logit, and the logarithm of the sum of exponentials. */
function summary(logits: Float32Array): { top: number; logSum: number } {
  let top = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[top]!) top = i;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - logits[top]!);
  return { top, logSum: logits[top]! + Math.log(sum) };
}
