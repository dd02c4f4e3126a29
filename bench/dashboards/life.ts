/**
 * A few minutes in the life of a system, in which whatever dashboards show happens once: load of two tenants and
 * refusals of a third, uploads, editors that report what became of completions, a worker of each pool that is killed,
 * damaged rows, and a store that is away for a while. Nothing is judged here: that is for drills and soaks.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type CompletionBody, streamCompletion } from '../../services/client.ts';
import { bearer, sendRequest } from '../../services/http-call.ts';
import { repeatUntilAborted } from '../../services/lib/async/repeat.ts';
import { ROW_DRILLS } from '../drills/bad-rows.ts';
import type { Fleet } from '../drills/fleet.ts';
import { makeMix, sendMix } from '../drills/mix.ts';
import type { Drill, Scene } from '../drills/scene.ts';
import { type Reference, sendBurst, TIMEOUT_MS, uncached } from '../drills/streams.ts';
import { comeBack, kill } from '../drills/strikes.ts';
import type { OnProgress } from '../harness/run.ts';
import { RandomStream } from '../measure/arrivals.ts';
import type { RedisServer } from '../system/redis.ts';
import { owner, type Tenant, tenant } from '../system/tenants.ts';

const DAY_MS = 86_400_000;
/** The key of the first tenant ends in so many days. */
const KEY_DAYS = 90;

/** The tenant of the load, one whose rows are damaged, and one that is refused. */
export const tenantsOf = (todayMs: number): Tenant[] => [
  { ...owner(), expires: new Date(todayMs + KEY_DAYS * DAY_MS).toISOString() },
  tenant('second'),
  tenant('limited', { tokens_per_minute: 1_000 }),
];

/** What happens when, as a share of the time. */
const AT = { rows: 0.1, decode: 0.25, prefill: 0.4, storeAway: 0.55, storeBack: 0.65, burst: 0.8 };
/** Pause between two requests of the tenant that is refused, and between two reports of an editor, in ms. */
const EVERY_MS = 2_000;

/** A file that is indexed, and ones that are left out: as an editor may send them. */
const ODD_FILES = [
  { path: 'odd/basket.py', content: 'def total(items):\n    return sum(item.price for item in items)\n' },
  { path: 'odd/broken.py', content: 'def total(:\n  (((\n' },
  { path: 'odd/picture.py', content: '\u0000\u0001\u0002' },
  { path: 'odd/node_modules/left/index.js', content: 'module.exports = 1;\n' },
];

export interface LifeOptions {
  readonly fleet: Fleet;
  readonly references: readonly Reference[];
  readonly redis: RedisServer;
  readonly store: string;
  readonly bundle: string;
  /** Folder of the repository. */
  readonly path: string;
  readonly minutes: number;
  /** Requests a second. */
  readonly rate: number;
  readonly seed: number;
  readonly onProgress: OnProgress;
}

/** Resolves when the time is over and the last request has ended. What fails meanwhile is a part of the picture. */
export async function live(options: LifeOptions): Promise<void> {
  const { fleet, references, redis, path, minutes, rate, seed, onProgress } = options;
  const mix = await makeMix(fleet, path, references);
  const startMs = performance.now();
  const lastsMs = minutes * 60_000;
  const over = AbortSignal.timeout(lastsMs);
  const until = (share: number) => sleep(Math.max(0, startMs + share * lastsMs - performance.now()));
  const traffic = [
    sendMix(fleet, mix, { rate, seed }, startMs, over),
    repeatUntilAborted(over, () => asText(fleet, references, seed)),
    repeatUntilAborted(over, () => beRefused(fleet, references)),
    repeatUntilAborted(over, () => uploadOddFiles(fleet)),
  ];
  await until(AT.rows);
  onProgress('rows are damaged');
  const rows = ROW_DRILLS.find(({ name }) => name === 'rows that are not numbers') as Drill;
  await rows.disturb(sceneOf(options)).catch(() => {}); // completions may fail while all this goes on
  for (const role of ['decode', 'prefill'] as const) {
    await until(AT[role]);
    onProgress(`a ${role} worker is killed`);
    const member = fleet.of(role).at(-1)!;
    const burst = sendBurst(fleet, references, startMs);
    await kill(member);
    await comeBack(fleet, member).catch(() => {}); // on a busy machine it takes longer
    await Promise.allSettled(burst);
  }
  await until(AT.storeAway);
  onProgress('the store is away');
  redis.pause();
  await until(AT.storeBack);
  redis.resume();
  await until(AT.burst);
  onProgress('more requests than there is room for');
  await Promise.allSettled([1, 2, 3, 4].flatMap(() => sendBurst(fleet, references.map(uncached), startMs)));
  await until(1);
  await Promise.allSettled(traffic);
}

const sceneOf = ({ fleet, references, redis, store, bundle, path, seed }: LifeOptions): Scene => ({
  ...{ fleet, references, redis, store, bundle, path, random: new RandomStream(seed) },
  ...{ count: 1, seconds: 1, storeLink: undefined, mark: () => () => {}, burst: async () => {} },
});

const send = ({ url }: Fleet, apiKey: string | undefined, body: CompletionBody) =>
  streamCompletion(url, body, AbortSignal.timeout(TIMEOUT_MS), { apiKey });

/** A completion with its context as text, of which the editor says that it was shown, and what became of it. */
async function asText(fleet: Fleet, references: readonly Reference[], seed: number): Promise<number> {
  const { body } = references[seed % references.length]!;
  const rag = { repo: body.rag!.repo, mode: 'text' };
  const { prompt, max_tokens } = body;
  try {
    const { id } = await send(fleet, fleet.apiKey, { prompt, max_tokens, rag });
    for (const type of ['view', performance.now() % 3 < 2 ? 'select' : 'dismiss']) {
      const answer = await sendRequest({
        method: 'POST',
        url: `${fleet.url}/v1/events`,
        headers: { 'content-type': 'application/json', ...bearer(fleet.apiKey) },
        body: JSON.stringify({ type, completion_id: id, choice_index: 0 }),
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      answer.resume();
    }
  } catch {} // it may have met a loss
  return EVERY_MS;
}

async function beRefused(fleet: Fleet, references: readonly Reference[]): Promise<number> {
  const { prompt, max_tokens } = references[0]!.body;
  await send(fleet, fleet.tenants.at(-1)!.apiKey, { prompt, max_tokens }).catch(() => {});
  return EVERY_MS;
}

async function uploadOddFiles(fleet: Fleet): Promise<number> {
  try {
    const answer = await sendRequest({
      method: 'PUT',
      url: `${fleet.url}/v1/repos/odd`,
      headers: { 'content-type': 'application/json', ...bearer(fleet.apiKey) },
      body: JSON.stringify({ files: ODD_FILES }),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    answer.resume();
  } catch {} // the store may be away
  return 10 * EVERY_MS;
}
