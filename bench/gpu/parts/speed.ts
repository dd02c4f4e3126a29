/** The first start, prompts and decode steps of every model and precision, beside what the device's roofline allows. */
import { PREFILL_SETTINGS } from '../../../services/prefill/settings.ts';
import { median } from '../../measure/statistics.ts';
import type { Opened } from '../child.ts';
import { type Ask, type PartContext, withEngine } from './context.ts';

/** Tokens of one prompt chunk, as a worker has it unless it is told otherwise. */
const CHUNK: number = PREFILL_SETTINGS.prefillChunkTokens.parse(undefined);

export async function measureSpeed(context: PartContext): Promise<void> {
  const { options, sizes, bundles, add, onProgress, signal } = context;
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
        add({ subject, what: 'first start, with compiling', value: opened.loadMs, unit: 'ms' });
        await measurePrompts(context, subject, ask, opened);
        await measureSteps(context, subject, ask, opened, '');
      });
      // Drivers keep what they have compiled. Only WebGPU records steps.
      const graphCapture = provider === 'webgpu';
      onProgress(`${subject}: loading again`);
      await withEngine(context, { ...engine, graphCapture }, async (ask, opened) => {
        add({ subject, what: 'second start', value: opened.loadMs, unit: 'ms' });
        if (graphCapture) await measureSteps(context, subject, ask, opened, 'recorded ');
      });
    }
  }
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
    const decode = () => ask<number[]>({ do: 'decode', batch, context: length, steps });
    await decode(); // compiles
    const samples = await decode();
    const bytes = opened.weightBytes + batch * length * opened.positionBytes;
    const bound = roofline.bandwidth === undefined ? undefined : (1000 * bytes) / roofline.bandwidth;
    const what = `${kind}step of ${batch} rows at ${length}`;
    add({ subject, what, value: median(samples), unit: 'ms', samples, ...(bound !== undefined && { bound }) });
  }
}
