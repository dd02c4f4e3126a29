/** The first start, prompts and decode steps of every model and precision, beside what the device's roofline allows. */
import { PREFILL_SETTINGS } from '../../../services/prefill/settings.ts';
import { median } from '../../measure/statistics.ts';
import type { EngineOptions, Opened } from '../child.ts';
import { type Ask, type PartContext, withEngine } from './context.ts';

/** Tokens of one prompt chunk, as a worker has it unless it is told otherwise. */
const CHUNK: number = PREFILL_SETTINGS.prefillChunkTokens.parse(undefined);

/** Time for an engine that records: large weights are loaded in it, and all is compiled. */
const RECORDING_MS = 60_000;

export async function measureSpeed(context: PartContext): Promise<void> {
  const { options, sizes, bundles, onProgress, signal } = context;
  const { provider } = options;
  const slots = Math.max(...sizes.rows);
  const capacity = Math.max(...sizes.prompt, sizes.context + sizes.steps);
  for (const model of options.model) {
    for (const precision of options.precision) {
      const subject = `${model} ${precision}`;
      onProgress(`${subject}: waiting for the bundle`);
      const engine = { provider, model: await bundles.get(model, precision, signal), slots, capacity };
      onProgress(`${subject}: loading`);
      await withEngine(context, engine, async (ask, opened) => {
        addStart(context, subject, 'first start, with compiling', opened);
        await measurePrompts(context, subject, ask, opened);
        await measureSteps(context, subject, ask, opened, '');
      });
      onProgress(`${subject}: loading again`); // drivers keep what they have compiled
      await withEngine(context, engine, async (_ask, opened) => addStart(context, subject, 'second start', opened));
      if (provider === 'webgpu') await measureRecordedSteps(context, subject, engine);
    }
  }
}

/** The CPU computes what a device is checked with at the first start of a bundle on a machine, and keeps it. */
function addStart({ add }: PartContext, subject: string, what: string, { loadMs, check }: Opened): void {
  add({
    subject,
    what: `${what}, without the CPU's part in the check`,
    value: loadMs - (check?.referenceMs ?? 0),
    unit: 'ms',
  });
  if (check) add({ subject, what: `${what}: the CPU's part in the check`, value: check.referenceMs, unit: 'ms' });
}

async function measurePrompts(context: PartContext, subject: string, ask: Ask, opened: Opened): Promise<void> {
  const { sizes, roofline, add, onProgress } = context;
  const flops = Math.max(...Object.values(roofline.flops ?? {}));
  for (const tokens of sizes.prompt) {
    onProgress(`${subject}: prompts of ${tokens}`);
    const prefill = () => ask<number>({ do: 'prefill', tokens, chunk: CHUNK });
    add({ subject, what: `first prompt of ${tokens}, with compiling`, value: await prefill(), unit: 'ms' });
    const samples: number[] = [];
    for (let repeat = 0; repeat < sizes.repeats; repeat++) samples.push(await prefill());
    const bound = flops > 0 ? (1000 * tokens * opened.tokenFlops) / flops : undefined;
    const what = `TTFT of ${tokens} tokens`;
    add({ subject, what, value: median(samples), unit: 'ms', samples, ...(bound !== undefined && { bound }) });
  }
}

/** Steps with --graph-capture. A driver that hangs at recording costs these figures and no others. */
async function measureRecordedSteps(context: PartContext, subject: string, engine: EngineOptions): Promise<void> {
  const signal = AbortSignal.any([context.signal, AbortSignal.timeout(RECORDING_MS)]);
  const bounded = { ...context, signal };
  try {
    await withEngine(bounded, { ...engine, graphCapture: true }, (ask, opened) =>
      measureSteps(bounded, subject, ask, opened, 'recorded '),
    );
  } catch (error) {
    context.signal.throwIfAborted();
    const why = signal.aborted ? `no answer within ${RECORDING_MS / 1000} s` : String(error);
    context.add({ subject, what: 'recorded steps', value: `not measured: ${why}`, unit: '' });
  }
}

/** @param kind of the steps, as a word of its own: `recorded ` or nothing. */
async function measureSteps(
  context: PartContext,
  subject: string,
  ask: Ask,
  opened: Opened,
  kind: 'recorded ' | '',
): Promise<void> {
  const { sizes, roofline, add, onProgress } = context;
  const { context: length, steps } = sizes;
  for (const batch of sizes.rows) {
    onProgress(`${subject}: steps of ${batch}`);
    const bytes = opened.weightBytes + batch * length * opened.positionBytes;
    const bound = roofline.bandwidth === undefined ? undefined : (1000 * bytes) / roofline.bandwidth;
    // A worker takes the second way for greedy requests, and the first for all others.
    for (const pick of opened.picks ? [false, true] : [false]) {
      const decode = () => ask<number[]>({ do: 'decode', batch, context: length, steps, pick });
      await decode(); // compiles
      const samples = await decode();
      const what = `${kind}step of ${batch} rows at ${length}, ${pick ? 'token chosen there' : 'logits fetched'}`;
      add({ subject, what, value: median(samples), unit: 'ms', samples, ...(bound !== undefined && { bound }) });
    }
  }
}
