/**
 * The costs of a prompt and of a decode step for one worker, fitted to measurements. `llavacode plan` measures them,
 * and knows no more of the engine; a gateway that is given its file says by them how many workers its load needs.
 */
import { leastSquares } from './least-squares.ts';

export interface PrefillSample {
  readonly tokens: number;
  /** Time from sending to the first token, without load. */
  readonly ms: number;
}

export interface DecodeSample {
  /** Number of sequences in a step. */
  readonly batch: number;
  /** Time between two tokens. */
  readonly ms: number;
}

export interface Rates {
  readonly model: string;
  readonly prefill: readonly PrefillSample[];
  readonly decode: readonly DecodeSample[];
  /** Cores of one prefill worker and of one decode worker. */
  readonly coresPerWorker: readonly [prefill: number, decode: number];
  /** Number of sequences that a decode worker runs at once. */
  readonly slots: number;
}

export interface CostModel {
  /** Time in ms until the first token of a prompt, on an idle worker. */
  prefillMs(tokens: number): number;
  /** Duration of one decode step in ms. */
  stepMs(batch: number): number;
  readonly slots: number;
}

/**
 * Prefill of n tokens costs a + b n + c n² (overhead, matrices, attention). The cost of a decode step is interpolated
 * linearly between the batches that were measured.
 */
export function fitCosts({ prefill, decode, slots }: Rates): CostModel {
  const thousands = prefill.map(({ tokens }) => tokens / 1000);
  // A fit cannot have more terms than there are lengths.
  const terms = Math.min(3, new Set(thousands).size);
  const powers = (x: number) => [1, x, x * x].slice(0, terms);
  const coefficients = leastSquares(
    thousands.map(powers),
    prefill.map(({ ms }) => ms),
  );
  const steps = decode.toSorted((a, b) => a.batch - b.batch);
  return {
    slots,
    prefillMs: (tokens) =>
      Math.max(
        0,
        powers(tokens / 1000).reduce((sum, x, i) => sum + x * coefficients[i]!, 0),
      ),
    stepMs: (batch) => interpolate(steps, batch),
  };
}

/** Beyond the largest batch measured, the last slope continues; below the smallest one, its figure holds. */
function interpolate(steps: readonly DecodeSample[], batch: number): number {
  const first = steps[0]!;
  if (batch <= first.batch || steps.length === 1) return first.ms;
  const above = Math.max(
    1,
    steps.findIndex((step) => step.batch >= batch),
  );
  const [a, b] = steps.at(-1)!.batch < batch ? [steps.at(-2)!, steps.at(-1)!] : [steps[above - 1]!, steps[above]!];
  return a.ms + ((b.ms - a.ms) * (batch - a.batch)) / (b.batch - a.batch);
}
