/** Which device this is, whether an engine opens on it, and what bandwidth and arithmetic it reaches. */

import { assertOnCard, firstCard } from '../card.ts';
import { TINY } from '../command.ts';
import type { Roofline } from '../roofline.ts';
import { type PartContext, withEngine, withProcess } from './context.ts';

/** What a GPU is meant to serve first, and every provider computes. */
export const PRECISION = 'int4-fp16';

export async function measureDevice(context: PartContext): Promise<Partial<Roofline>> {
  const { options, sizes, bundles, add, onProgress, signal } = context;
  const card = await firstCard();
  const fact = (what: string, value: number | string, unit = '') => add({ subject: 'card', what, value, unit });
  if (card === undefined) fact('found by nvidia-smi or the kernel', 'none');
  else {
    fact('name', card.name);
    fact('driver', card.driver);
    fact('memory', card.memory / 2 ** 30, 'GiB');
  }
  onProgress('opening the device');
  const model = await bundles.get(TINY, PRECISION, signal);
  const engine = { provider: options.provider, model, slots: 1, capacity: 1 };
  const { loadMs, device, check, onCard } = await withEngine(context, engine, async (_ask, opened) => {
    const computes = card !== undefined && opened.device.kind !== 'cpu';
    return { ...opened, onCard: computes ? assertOnCard(card, await firstCard(), opened.device.name) : undefined };
  });
  const subject = `tiny-coder ${PRECISION}`;
  add({ subject, what: 'computed by', value: `${device.kind}: ${device.name}`, unit: '' });
  if (onCard) fact('its used memory rises when the device is opened', 'yes');
  add({ subject, what: 'why', value: device.reason, unit: '' });
  add({ subject, what: 'opens, with the self-check and all that is compiled, in', value: loadMs, unit: 'ms' });
  if (check) add({ subject, what: 'KL of the self-check, which passed', value: check.kl, unit: 'nats' });
  onProgress('bandwidth and arithmetic');
  const { provider } = options;
  const { copy, product } = sizes;
  const measured = await withProcess(context, (ask) => ask<Roofline>({ do: 'roofline', provider, copy, product }));
  add({
    subject: `addition over ${copy} x ${copy} float32`,
    what: 'bandwidth, read and written together',
    value: measured.bandwidth / 1e9,
    unit: 'GB/s',
  });
  for (const [type, flops] of Object.entries(measured.flops)) {
    const subject = `product of ${product} x ${product} ${type}`;
    add({ subject, what: 'arithmetic', value: flops / 1e12, unit: 'TFLOP/s' });
  }
  return measured;
}
