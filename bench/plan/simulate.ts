/**
 * A discrete-event simulation of disaggregated serving. Prefill workers compute one prompt after the other; decode
 * workers run step after step over all sequences that they hold, up to their slots, and take new ones between two
 * steps. A request goes to the worker with the least to do. The simulation leaves out the hand-over (hidden behind
 * prefill), retrieval and HTTP (part of the measured TTFT), and cores that two workers share.
 */
import type { CostModel } from '../../services/lib/numeric/cost-model.ts';
import { EventQueue } from './event-queue.ts';

export interface SimulatedLoad {
  /** Times in ms, ascending. */
  readonly arrivalsMs: readonly number[];
  readonly promptTokens: number;
  readonly outputTokens: number;
}

export interface Pools {
  readonly prefill: number;
  readonly decode: number;
}

export interface SimulatedRequest {
  readonly ttft: number;
  /** Undefined for requests of one output token. */
  readonly tpot: number | undefined;
  /** Time to the last token. */
  readonly e2e: number;
}

interface SimulatedSequence {
  readonly index: number;
  readonly arrivedMs: number;
  firstMs: number;
  /** Tokens still to come. */
  left: number;
}

interface DecodeWorker {
  readonly waiting: SimulatedSequence[];
  running: SimulatedSequence[];
  stepping: boolean;
}

type SimulationEvent =
  | { readonly kind: 'arrived'; readonly index: number }
  | { readonly kind: 'prefilled'; readonly sequence: SimulatedSequence }
  | { readonly kind: 'stepped'; readonly worker: DecodeWorker };

/** Simulates a load. @returns one entry per arrival, in their order. */
export function simulate(costs: CostModel, { prefill, decode }: Pools, load: SimulatedLoad): SimulatedRequest[] {
  const events = new EventQueue<SimulationEvent>();
  const prefillMs = costs.prefillMs(load.promptTokens);
  /** Time at which each prefill worker will have nothing left to do. */
  const freeAtMs = new Array<number>(prefill).fill(0);
  const workers = Array.from({ length: decode }, (): DecodeWorker => ({ waiting: [], running: [], stepping: false }));
  const ended: SimulatedRequest[] = new Array(load.arrivalsMs.length);

  const arrive = (index: number, at: number) => {
    const worker = argMin(freeAtMs, (free) => free);
    const doneMs = Math.max(at, freeAtMs[worker]!) + prefillMs;
    freeAtMs[worker] = doneMs;
    events.push(doneMs, {
      kind: 'prefilled',
      sequence: { index, arrivedMs: at, firstMs: doneMs, left: load.outputTokens - 1 },
    });
  };
  const step = (worker: DecodeWorker, at: number) => {
    while (worker.running.length < costs.slots && worker.waiting.length > 0)
      worker.running.push(worker.waiting.shift()!);
    worker.stepping = worker.running.length > 0;
    if (worker.stepping) events.push(at + costs.stepMs(worker.running.length), { kind: 'stepped', worker });
  };
  const emit = (worker: DecodeWorker, at: number) => {
    for (const sequence of worker.running) {
      if (--sequence.left === 0) ended[sequence.index] = outcome(sequence, at, load.outputTokens);
    }
    worker.running = worker.running.filter(({ left }) => left > 0);
  };

  for (const [index, at] of load.arrivalsMs.entries()) events.push(at, { kind: 'arrived', index });
  for (let next = events.pop(); next !== undefined; next = events.pop()) {
    const { at, value } = next;
    if (value.kind === 'arrived') arrive(value.index, at);
    else if (value.kind === 'stepped') {
      emit(value.worker, at);
      step(value.worker, at);
    } else if (value.sequence.left === 0) ended[value.sequence.index] = outcome(value.sequence, at, 1);
    else {
      const worker = workers[argMin(workers, ({ waiting, running }) => waiting.length + running.length)]!;
      worker.waiting.push(value.sequence);
      if (!worker.stepping) step(worker, at);
    }
  }
  return ended;
}

const outcome = (
  { arrivedMs, firstMs }: SimulatedSequence,
  lastMs: number,
  outputTokens: number,
): SimulatedRequest => ({
  ttft: firstMs - arrivedMs,
  tpot: outputTokens < 2 ? undefined : (lastMs - firstMs) / (outputTokens - 1),
  e2e: lastMs - arrivedMs,
});

function argMin<T>(items: readonly T[], of: (item: T) => number): number {
  let best = 0;
  for (let i = 1; i < items.length; i++) if (of(items[i]!) < of(items[best]!)) best = i;
  return best;
}
