/** Decode steps of one worker alone, and of two workers that share the card. */
import { median } from '../../measure/statistics.ts';
import { firstBundle, type PartContext, withEngine } from './context.ts';

export async function measureTwoWorkers(context: PartContext): Promise<void> {
  const { options, sizes, add, onProgress } = context;
  const { name, dir } = await firstBundle(context);
  const batch = Math.min(4, Math.max(...sizes.rows));
  const capacity = sizes.context + sizes.steps;
  const engine = { provider: options.provider, model: dir, slots: batch, capacity };
  const task = { do: 'decode', batch, context: sizes.context, steps: sizes.steps } as const;
  onProgress('two workers: loading both');
  await withEngine(context, engine, (first) =>
    withEngine(context, engine, async (second) => {
      await first(task); // compiles
      await second(task);
      onProgress('two workers: one alone, then both');
      const alone = await first<number[]>(task);
      const both = await Promise.all([first<number[]>(task), second<number[]>(task)]);
      const figure = (what: string, samples: readonly number[]) =>
        add({ subject: name, what: `step of ${batch} rows, ${what}`, value: median(samples), unit: 'ms', samples });
      figure('alone', alone);
      figure('first of two workers', both[0]);
      figure('second of two workers', both[1]);
      const rate = (samples: readonly number[]) => 1 / median(samples);
      const gain = (rate(both[0]) + rate(both[1])) / rate(alone);
      add({ subject: name, what: 'tokens per second of both, relative to one alone', value: gain, unit: '×' });
    }),
  );
}
