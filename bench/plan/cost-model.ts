/** What a prompt and a decode step cost one worker: fitted to measurements, and all that the planner knows of the engine. */
import { leastSquares } from '../measure/statistics.ts';

export interface PrefillSample {
  readonly tokens: number;
  /** From sending to the first token, without load. */
  readonly ms: number;
}

export interface DecodeSample {
  /** Sequences in a step. */
  readonly batch: number;
  /** ms between two tokens. */
  readonly ms: number;
}

export interface Rates {
  readonly model: string;
  readonly prefill: readonly PrefillSample[];
  readonly decode: readonly DecodeSample[];
  /** Cores of one prefill worker and of one decode worker. */
  readonly coresPerWorker: readonly [prefill: number, decode: number];
  /** Sequences that a decode worker takes at once. */
  readonly slots: number;
}

export interface CostModel {
  /** ms until the first token of a prompt, on an idle worker. */
  prefillMs(tokens: number): number;
  /** ms of one decode step. */
  stepMs(batch: number): number;
  readonly slots: number;
}

/** Prefill is a + b n + c n² (overhead, matrices, attention); a step lies on the line between the batches measured. */
export function fitCosts({ prefill, decode, slots }: Rates): CostModel {
  const thousands = prefill.map(({ tokens }) => tokens / 1000);
  // A fit needs as many lengths as it has terms.
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

/** Beyond the largest batch measured the last slope goes on; below the smallest its figure stands. */
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
