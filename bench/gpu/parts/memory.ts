/** Memory of the card and of the process: before, with an engine, after many steps, and when the process is gone. */

import type { ProcessMemory } from '../../engine/memory.ts';
import { firstCard } from '../card.ts';
import { firstBundle, type PartContext, withEngine } from './context.ts';

export async function measureMemory(context: PartContext): Promise<void> {
  const { options, sizes, add, onProgress } = context;
  const { name, dir } = await firstBundle(context);
  const onCard = async (when: string) => {
    const card = await firstCard();
    if (card) add({ subject: 'card', what: `used ${when}`, value: card.used / 2 ** 20, unit: 'MiB' });
  };
  const batch = Math.max(...sizes.rows);
  const capacity = sizes.context + sizes.soakSteps;
  await onCard('before');
  const engine = { provider: options.provider, model: dir, slots: batch, capacity };
  onProgress(`memory: loading ${name}`);
  await withEngine(context, engine, async (ask) => {
    const held = async (when: string) => {
      await onCard(when);
      const { rss } = await ask<ProcessMemory>({ do: 'memory' });
      add({ subject: name, what: `resident ${when}`, value: rss / 2 ** 20, unit: 'MiB' });
    };
    await held('with the engine');
    await ask({ do: 'decode', batch, context: sizes.context, steps: sizes.steps });
    await held('after the first steps');
    onProgress(`memory: ${sizes.soakSteps} steps of ${batch} rows`);
    await ask({ do: 'decode', batch, context: sizes.context, steps: sizes.soakSteps });
    await held(`after ${sizes.soakSteps} more steps of ${batch} rows`);
  });
  await onCard('when the process is gone');
}
