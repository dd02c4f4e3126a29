/**
 * Measures what quantisation costs: compares an exported language model with the same model in 32-bit floats, on given
 * token sequences. The caller passes the engine in, because the engine is built on this room.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { ServingError } from '../../process/errors.ts';
import { openSourceNetwork } from '../checkpoint/source-network.ts';
import { buildDecoder } from '../graph/decoder.ts';
import { writeModel } from '../graph/onnx.ts';
import type { Bundle } from './bundle.ts';

/** The decoder graphs for prompts and for decoding, which may be the same, by their paths. */
export interface GraphPair {
  readonly prompt: string;
  readonly decode: string;
  /** What says how their KV lies. */
  readonly bundle: Pick<Bundle, 'manifest' | 'kvScales'>;
}

/**
 * Loaded decoder graphs. The first half of each sequence is computed as a prompt and the second half token by token,
 * like a completion, so that the measure includes KV of one graph continued by the other.
 */
export interface LogitsRunner {
  /** Logits after every position of one sequence: [ids, vocab]. */
  logits(ids: readonly number[]): Promise<Float32Array>;
  dispose(): void;
}

export interface Divergence {
  /** Kullback-Leibler divergence of the exported model's next-token distribution from the reference's, in nats. */
  readonly klMean: number;
  readonly klP99: number;
  /** Share of positions at which both models find the same token most likely. */
  readonly top1Agreement: number;
  /** Number of positions compared. */
  readonly positions: number;
}

interface DivergenceOptions {
  readonly bundle: Bundle;
  /** The Hugging Face folder from which the bundle was made. */
  readonly llm: string;
  /** Token ids of real code, each sequence within the bundle's positions. */
  readonly sequences: readonly (readonly number[])[];
  readonly open: (graphs: GraphPair) => Promise<LogitsRunner>;
  readonly signal?: AbortSignal;
}

/**
 * Compares a bundle's language model with a fresh export in 32-bit floats, which is made beside it and removed again.
 * @throws ServingError config_invalid without sequences; checkpoint_invalid; runtime_failed; the signal's reason.
 */
export async function measureDivergence({
  bundle,
  llm,
  sequences,
  open,
  signal,
}: DivergenceOptions): Promise<Divergence> {
  if (sequences.every((ids) => ids.length === 0))
    throw new ServingError('config_invalid', 'there is no code to compare the models on');
  // The disk of the bundle has held the model once and probably has room for it again; a temporary folder may not.
  const work = await mkdtemp(join(dirname(resolve(bundle.dir)), '.verify-'));
  const runners: LogitsRunner[] = [];
  try {
    const { spec, maxPositions } = bundle.manifest.llm;
    await using network = await openSourceNetwork(llm);
    const graph = buildDecoder(spec, network.weights, { layers: 'fp32', vocabulary: 'fp32', maxPositions });
    await writeModel(graph, work, { signal });
    const reference = join(work, 'model.onnx');
    const exact = { manifest: { ...bundle.manifest, precision: 'fp32', kv: undefined }, kvScales: undefined } as const;
    runners.push(await open({ prompt: reference, decode: reference, bundle: exact }));
    runners.push(await open({ prompt: bundle.prefill, decode: bundle.llm, bundle }));
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

/** Compares the logits [vocab] of both models after one position. */
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

/** The index of the largest logit, and the logarithm of the sum of exponentials. */
function summary(logits: Float32Array): { top: number; logSum: number } {
  let top = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[top]!) top = i;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - logits[top]!);
  return { top, logSum: logits[top]! + Math.log(sum) };
}
