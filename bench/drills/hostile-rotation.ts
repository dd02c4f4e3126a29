/** Tenants that go through all attacks in turn, each within the limits of its key, beside the traffic of a soak. */

import type { Attack } from '../hostile/attack.ts';
import {
  BIG_BODIES,
  FLOOD,
  LARGEST_ANSWERS,
  LEAVING,
  LEAVING_PIPELINES,
  LONGEST_PROMPTS,
  manyChoices,
  PIPELINING,
  SLOW_BODIES,
  unread,
} from '../hostile/attacks.ts';
import { Meter } from '../hostile/meter.ts';
import { RandomStream } from '../measure/arrivals.ts';
import { type Tenant, tenant } from '../system/tenants.ts';
import { CAPACITY } from './fleet.ts';

const ATTACKS: readonly Attack[] = [
  manyChoices(64, 48),
  FLOOD,
  unread(2),
  BIG_BODIES,
  LONGEST_PROMPTS,
  LEAVING,
  PIPELINING,
  SLOW_BODIES,
  LARGEST_ANSWERS,
  LEAVING_PIPELINES,
];
/** A round of all attacks is short beside the parts of the time that growth is judged by. */
const EACH_MS = 10_000;
/**
 * The limits of a hostile tenant, as an operator would set them on this machine: beside two such tenants there is room
 * for the honest one. Without limits an attacker that is served fairly gets half of the machine, and everybody's wait
 * doubles, which is fair as well.
 */
const LIMITS = { max_inflight: 64, tokens_per_minute: 6_000 };

export const hostileTenants = (): Tenant[] => [tenant('hostile-1', LIMITS), tenant('hostile-2', LIMITS)];

/** What became of an attacker's requests. */
export interface AttackerCounts {
  readonly tenant: string;
  readonly sent: number;
  readonly tokens: number;
  readonly refused: Readonly<Record<string, number>>;
}

/** Attacks until the signal is aborted. Each tenant begins with another attack. */
export function attackInTurn(
  url: string,
  tenants: readonly Tenant[],
  seed: number,
  until: AbortSignal,
): Promise<AttackerCounts[]> {
  return Promise.all(
    tenants.map(async ({ name, apiKey }, i) => {
      const [meter, random] = [new Meter(), new RandomStream(seed + 100 + i)];
      const first = Math.floor((i * ATTACKS.length) / tenants.length);
      for (let turn = first; !until.aborted; turn++) {
        const over = AbortSignal.any([until, AbortSignal.timeout(EACH_MS)]);
        const scene = { door: { url, apiKey }, random, meter, capacity: CAPACITY, until: over };
        await ATTACKS[turn % ATTACKS.length]!.run(scene);
      }
      const { sent, tokens } = meter.read();
      return { tenant: name, sent, tokens, refused: meter.refusals };
    }),
  );
}
