/** How fast a KV cache leaves the device and comes back to it, in the frames in which it goes to another worker. */
import { WIRE_TYPES } from '../../../services/lib/kv/wire.ts';
import { median } from '../../measure/statistics.ts';
import type { HandedOver } from '../child.ts';
import { firstBundle, type PartContext, withEngine } from './context.ts';

export async function measureHandoff(context: PartContext): Promise<void> {
  const { options, sizes, add, onProgress } = context;
  const { name, dir } = await firstBundle(context);
  const positions = Math.max(...sizes.prompt);
  const engine = { provider: options.provider, model: dir, slots: 2, capacity: positions + 1 };
  await withEngine(context, engine, async (ask, { floats }) => {
    // Values of 16 bits travel as they are.
    for (const type of floats === 'float16' ? [floats] : WIRE_TYPES) {
      onProgress(`hand-over of ${positions} positions as ${type}`);
      const runs: HandedOver[] = [];
      for (let repeat = 0; repeat <= sizes.repeats; repeat++) {
        const run = await ask<HandedOver>({ do: 'handoff', positions, type });
        if (repeat > 0) runs.push(run); // the first one compiles
      }
      const rate = (what: string, ms: (run: HandedOver) => number) => {
        const samples = runs.map((run) => run.bytes / ms(run) / 1e6);
        add({ subject: name, what, value: median(samples), unit: 'GB/s', samples });
      };
      rate(`${positions} positions from the device, packed as ${type}`, ({ packMs }) => packMs);
      rate(`${positions} positions as ${type}, put on the device`, ({ takeMs }) => takeMs);
    }
  });
}
