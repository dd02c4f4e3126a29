/** Tokens and logits of the model that ships, by precision, beside those of the CPU: is what the device says right? */
import { deviceLack, openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import { comparePosition } from '../../../services/lib/model/bundle/divergence.ts';
import { mean } from '../../measure/statistics.ts';
import type { Continued } from '../child.ts';
import { TINY } from '../command.ts';
import { type PartContext, withEngine } from './context.ts';

/** 32-bit floats must give the CPU's tokens. Other precisions may part at near ties: their logits are compared. */
const TOKENS = { prompt: 300, tokens: 25 };
/** Above 32, where ONNX Runtime computes attention by another kernel. */
const ROWS = { prompt: 48, tokens: 2 };
export const COMPARED = ['fp32', 'fp16', 'int8', 'int4', 'int4-fp16'] as const;

export async function measureCorrectness(context: PartContext): Promise<void> {
  const { options, bundles, add, onProgress, signal } = context;
  for (const precision of COMPARED) {
    const subject = `tiny-coder ${precision}`;
    onProgress(`${subject} beside the CPU`);
    const model = await bundles.get(TINY, precision, signal);
    const { manifest } = await openBundle(model);
    const lack = options.provider === 'cuda' ? deviceLack(manifest, 'cuda') : undefined;
    if (lack !== undefined) {
      add({ subject, what: 'not compared', value: lack, unit: '' });
      continue;
    }
    const computed = (provider: string, task: { prompt: number; tokens: number }, rows: boolean) =>
      withEngine(context, { provider, model, slots: 1, capacity: task.prompt + task.tokens }, (ask) =>
        ask<Continued>({ do: 'continue', ...task, rows }),
      );
    const [ours, cpus] = [await computed(options.provider, ROWS, true), await computed('cpu', ROWS, true)];
    const compared = compareRows(cpus, ours);
    add({ subject, what: `KL against the CPU, mean of ${compared.rows} rows`, value: compared.kl, unit: 'nats' });
    add({ subject, what: 'furthest logit', value: compared.furthest, unit: '' });
    add({ subject, what: 'most likely token equal', value: `${compared.equal} of ${compared.rows}`, unit: '' });
    if (precision !== 'fp32') continue;
    const [mine, theirs] = [await computed(options.provider, TOKENS, false), await computed('cpu', TOKENS, false)];
    const equal = equalTokens(theirs.tokens, mine.tokens);
    const what = `greedy tokens equal, after a prompt of ${TOKENS.prompt}`;
    add({ subject, what, value: `${equal} of ${TOKENS.tokens}`, unit: '' });
  }
}

/** Tokens before the first one that differs. */
export function equalTokens(expected: readonly number[], found: readonly number[]): number {
  const differing = expected.findIndex((id, i) => id !== found[i]);
  return differing < 0 ? expected.length : differing;
}

type Rows = Pick<Continued, 'vocab' | 'rows'>;

/**
 * Compares logits row by row.
 * @returns the mean KL in nats, the largest difference of any logit, and how many rows have the same likeliest token.
 */
export function compareRows({ vocab, rows: expected }: Rows, { rows: found }: Rows) {
  const rows = expected.length / vocab;
  const kls: number[] = [];
  let [furthest, equal] = [0, 0];
  for (let row = 0; row < rows; row++) {
    const of = (logits: Float32Array) => logits.subarray(row * vocab, (row + 1) * vocab);
    const [reference, candidate] = [of(expected), of(found)];
    const { kl, sameTop } = comparePosition(reference, candidate);
    kls.push(kl);
    if (sameTop) equal++;
    // A logit that is not a number is as far away as can be.
    for (let i = 0; i < vocab; i++) {
      const distance = Math.abs(reference[i]! - candidate[i]!);
      furthest = Number.isNaN(distance) ? Number.POSITIVE_INFINITY : Math.max(furthest, distance);
    }
  }
  return { rows, kl: mean(kls), furthest, equal };
}
