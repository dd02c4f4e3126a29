/**
 * `bench engine` measures prefill and decode of the bare engine. Every repeat measures each cell once, in a seeded
 * random order, so that disturbances by other programs fall on all cells alike.
 */
import { RandomStream } from '../measure/arrivals.ts';
import { median, medianInterval } from '../measure/statistics.ts';
import type { EngineBenchOptions } from './command.ts';
import { memoryOf } from './memory.ts';
import { type DecodeCell, type EngineCell, type EngineResult, nameOf, type PrefillCell } from './result.ts';
import { EngineSubject } from './subject.ts';

/** Decode steps of one repeat; their median counts as one sample. */
export const STEPS = 16;

export async function measureEngine(
  bundle: string,
  options: EngineBenchOptions,
  onProgress: (text: string) => void,
): Promise<EngineResult> {
  const { prompt: prompts, chunk: chunks, batch: batches, context: contexts } = options;
  const { repeats, threads, spin, prepacked } = options;
  const plan: (PrefillCell | DecodeCell)[] = [
    ...prompts.flatMap((tokens) => chunks.map((chunk) => ({ phase: 'prefill' as const, tokens, chunk }))),
    ...contexts.flatMap((context) => batches.map((batch) => ({ phase: 'decode' as const, batch, context }))),
  ];
  const capacity = Math.max(...prompts, ...contexts) + STEPS;
  const slots = Math.max(1, ...batches);
  onProgress('loading');
  const subject = await EngineSubject.load({ model: bundle, threads, spin, prepacked, slots, capacity });
  try {
    const loaded = await memoryOf();
    const samples = plan.map((): number[] => []);
    const random = new RandomStream(options.seed);
    const order = plan.map((_, i) => i);
    // Repeat -1 warms up, and is not counted.
    for (let repeat = -1; repeat < repeats; repeat++) {
      for (const i of random.shuffled(order)) {
        onProgress(`repeat ${repeat + 1} of ${repeats}: ${nameOf(plan[i]!)}`);
        const ms = await measureCell(subject, plan[i]!);
        if (repeat >= 0) samples[i]!.push(ms);
      }
    }
    const cells = plan.map((cell, i) => summarise(cell, samples[i]!));
    const after = await memoryOf();
    const runMs = options.verifyRuns ? await subject.verifyRuns() : undefined;
    const verify = runMs && { runMs, memory: await memoryOf() };
    return { loadMs: subject.loadMs, memory: { loaded, after }, verify, cells };
  } finally {
    subject.dispose();
  }
}

async function measureCell(subject: EngineSubject, cell: PrefillCell | DecodeCell): Promise<number> {
  if (cell.phase === 'prefill') return subject.prefill(cell.tokens, cell.chunk);
  return median(await subject.decode(cell.batch, cell.context, STEPS));
}

function summarise(cell: PrefillCell | DecodeCell, ms: readonly number[]): EngineCell {
  const medianMs = median(ms);
  const tokens = cell.phase === 'prefill' ? cell.tokens : cell.batch;
  return { ...cell, ms, medianMs, interval: medianInterval(ms), tokensPerSecond: (1000 * tokens) / medianMs };
}
