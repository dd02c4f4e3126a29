/** Tenants that go through all attacks in turn, each within the limits of its key, beside the traffic of a soak. */

import type { Attack, AttackScene } from '../hostile/attack.ts';
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
import type { AttackTurn } from './waits.ts';

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
 * Sequences that a hostile tenant may have in flight. Its limits are such as an operator would set on this machine:
 * beside two such tenants there is room for the honest one. Without limits an attacker that is served fairly gets half
 * of the machine, and everybody's wait doubles, which is fair as well.
 */
const MAX_INFLIGHT = 64;

/** @param tokensPerMinute of each. */
export const hostileTenants = (tokensPerMinute: number): Tenant[] =>
  ['hostile-1', 'hostile-2'].map((name) =>
    tenant(name, { max_inflight: MAX_INFLIGHT, tokens_per_minute: tokensPerMinute }),
  );

/** Niceness of the attackers' process, the highest that there is: they have the CPU that nobody else wants. */
export const ATTACKERS_NICE = 19;

/** The system that is attacked, and who attacks it. */
export interface Rotation {
  readonly url: string;
  /** Tokens that one slot holds. */
  readonly capacity: number;
  /** The tenants that attack. */
  readonly hostile: readonly Tenant[];
  readonly seed: number;
}

/** What became of an attacker's requests. */
export interface AttackerCounts {
  readonly tenant: string;
  readonly sent: number;
  readonly tokens: number;
  readonly refused: Readonly<Record<string, number>>;
}

/**
 * Attacks until the signal is aborted. Each tenant begins with another attack.
 * @param now clock of the run, in ms.
 * @param onTurn is told of each attack when it is over.
 */
export function attackInTurn(
  { url, capacity, hostile, seed }: Rotation,
  until: AbortSignal,
  now: () => number,
  onTurn: (turn: AttackTurn) => void,
): Promise<AttackerCounts[]> {
  return Promise.all(
    hostile.map(async ({ name, apiKey }, i) => {
      const [meter, random] = [new Meter(), new RandomStream(seed + 100 + i)];
      const first = Math.floor((i * ATTACKS.length) / hostile.length);
      for (let turn = first; !until.aborted; turn++) {
        const [attack, fromMs] = [ATTACKS[turn % ATTACKS.length]!, now()];
        await takeTurn(attack, { door: { url, apiKey }, random, meter, capacity, until });
        onTurn({ attack: attack.name, fromMs, toMs: now() });
      }
      const { sent, tokens } = meter.read();
      return { tenant: name, sent, tokens, refused: meter.refusals };
    }),
  );
}

/**
 * Lets one attack go on for its time. The timer is ours: a signal of `AbortSignal.any` and `AbortSignal.timeout` that
 * nobody listens to at the moment is collected in Node 20, and never aborted.
 */
async function takeTurn(attack: Attack, scene: AttackScene): Promise<void> {
  const over = new AbortController();
  const end = () => over.abort();
  const timer = setTimeout(end, EACH_MS);
  scene.until.addEventListener('abort', end, { once: true });
  try {
    await attack.run({ ...scene, until: over.signal });
  } finally {
    clearTimeout(timer);
    scene.until.removeEventListener('abort', end);
  }
}
