/**
 * Drills in which another tenant attacks, within its rights, while the traffic of an honest tenant goes on: it must be
 * answered as if nobody attacked, and soon.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { sendRequest } from '../../services/http-call.ts';
import type { Attack } from '../hostile/attack.ts';
import { LARGEST_ANSWERS, manyChoices, unread } from '../hostile/attacks.ts';
import { Meter } from '../hostile/meter.ts';
import { dial, promptOf, rawCompletion } from '../hostile/raw-client.ts';
import type { Door } from '../system/tenants.ts';
import type { Fleet } from './fleet.ts';
import type { Drill, Scene } from './scene.ts';

/** Longest TTFT of an honest request beside an attacker: some twenty times that of an idle system. */
const TTFT_WITHIN_MS = 5_000;
const ATTACK_MS = 10_000;
/** Output tokens of each of many choices. */
const OUTPUT_TOKENS = 100;
/** Connections of eight choices each: together twice as many as both decode workers have slots. */
const UNREAD_CONNECTIONS = 4;

/** The tenant that attacks. */
export const attacker = ({ url, tenants }: Fleet): Door => ({ url, apiKey: tenants[1]!.apiKey });

/** Lets the attacker do its worst for a while, or until `meanwhile` has ended. */
export async function attackFor(
  scene: Scene,
  attack: Attack,
  meanwhile: (meter: Meter) => Promise<unknown> = () => sleep(ATTACK_MS),
): Promise<Meter> {
  const { fleet, random, mark } = scene;
  const over = new AbortController();
  const meter = new Meter();
  mark();
  const running = attack.run({ door: attacker(fleet), random, meter, capacity: fleet.capacity, until: over.signal });
  try {
    await meanwhile(meter);
  } finally {
    over.abort();
    await running;
  }
  return meter;
}

const beside = (name: string, attack: Attack): Drill => ({
  name,
  ttftWithinMs: TTFT_WITHIN_MS,
  async disturb(scene) {
    const { tokens } = (await attackFor(scene, attack)).read();
    return attack.backlogged ? `the attacker got ${tokens} tokens` : undefined;
  },
});

/** Requests on each connection, connections, and the number of requests that honest clients have in flight at most. */
const PIPELINE = { depth: 16, connections: 3, honest: 10 };
/** Time within which the work for a client that is gone must have ended. */
const GONE_WITHIN_MS = 5_000;

/** Work for a client must end when its connection does, also that of requests behind the one that is answered. */
async function leavePipelines({ fleet, random, mark }: Scene): Promise<string> {
  const door = attacker(fleet);
  const sockets = await Promise.all(Array.from({ length: PIPELINE.connections }, () => dial(door)));
  const body = () => ({
    prompt: promptOf(random, 16),
    max_tokens: fleet.capacity - 32,
    ignore_eos: true,
    stream: true,
  });
  for (const socket of sockets) {
    socket?.resume();
    socket?.write(Array.from({ length: PIPELINE.depth }, () => rawCompletion(door, body())).join(''));
  }
  await sleep(2_000);
  const inFlight = async () => (await fleet.vitals(fleet.of('gateway')[0]!))?.running ?? Infinity;
  const before = await inFlight();
  mark();
  for (const socket of sockets) socket?.destroy();
  const leftMs = performance.now();
  for (;;) {
    const [left, tookMs] = [await inFlight(), performance.now() - leftMs];
    if (left <= PIPELINE.honest) return `${before} requests in flight, and ${left} soon after the clients had left`;
    if (tookMs > GONE_WITHIN_MS) {
      throw new Error(`${left} of ${before} requests are at work ${GONE_WITHIN_MS} ms after their clients have left`);
    }
    await sleep(100);
  }
}

/** Longest time that the gateway may answer nobody: its event loop is stuck then. */
const ALIVE_WITHIN_MS = 1_500;
/** Time within which the first of the largest answers must have come, so that its effect is seen. */
const LONGEST_ATTACK_MS = 20_000;
/** What the largest answers may add to the gateway's memory. */
const GROWTH_BYTES = 256 << 20;

async function askForLargestAnswers(scene: Scene): Promise<string> {
  const { fleet } = scene;
  const gateway = fleet.of('gateway')[0]!;
  const rss = async () => (await fleet.vitals(gateway))?.rssBytes ?? 0;
  const before = await rss();
  let [longestMs, most] = [0, 0];
  const meter = await attackFor(scene, LARGEST_ANSWERS, async (meter) => {
    const startMs = performance.now();
    const isOver = (ms: number) => ms > LONGEST_ATTACK_MS || (ms > ATTACK_MS && meter.read().tokens > 0);
    while (!isOver(performance.now() - startMs)) {
      longestMs = Math.max(longestMs, await answerTime(fleet.url));
      most = Math.max(most, await rss());
      await sleep(20);
    }
  });
  const grown = Math.max(0, most - before);
  if (meter.read().tokens === 0) throw new Error(`the attacker got no answer within ${LONGEST_ATTACK_MS} ms`);
  const found = `the gateway answered within ${longestMs.toFixed(0)} ms and grew by ${(grown / 2 ** 20).toFixed(0)} MiB`;
  if (longestMs > ALIVE_WITHIN_MS || grown > GROWTH_BYTES) throw new Error(found);
  return found;
}

/** Time in ms that the gateway takes to say that it lives. */
async function answerTime(url: string): Promise<number> {
  const startMs = performance.now();
  const signal = AbortSignal.timeout(2 * ALIVE_WITHIN_MS);
  await sendRequest({ method: 'GET', url: `${url}/livez`, signal }).then(
    (response) => response.resume(),
    () => {}, // not answered in time
  );
  return performance.now() - startMs;
}

/** Drills on a system with two tenants: the first is honest. */
export const HOSTILE_DRILLS: readonly Drill[] = [
  beside('a client with 64 choices', manyChoices(64, OUTPUT_TOKENS)),
  beside('a client with 128 choices', manyChoices(128, OUTPUT_TOKENS)),
  beside('unread streams in every slot', unread(UNREAD_CONNECTIONS)),
  { name: 'pipelines whose clients leave', disturb: leavePipelines },
  { name: 'the largest answers', ttftWithinMs: TTFT_WITHIN_MS, disturb: askForLargestAnswers },
];
