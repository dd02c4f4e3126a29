/**
 * What the background work of an upgrade costs: how much later first tokens come while an indexer of the candidate's
 * bundle encodes 10,000 chunks anew, on the machine that serves. Times with that work and times without it follow each
 * other, as long as one another and with requests at the same moments, so that what requests do to each other is the
 * same on both sides.
 */
import { randomUUID } from 'node:crypto';
import { streamCompletion, ttftMs } from '../../services/client.ts';
import { bearer, sendRequest } from '../../services/http-call.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { chunkOf } from '../../services/lib/rag/chunk.ts';
import { RandomStream } from '../measure/arrivals.ts';
import { quantile } from '../measure/statistics.ts';
import { publishMade } from './made-repository.ts';
import type { Drill, Scene } from './scene.ts';
import { openLoop, type Reference, TIMEOUT_MS } from './streams.ts';
import { askRollout, rolloutReached } from './upgrade.ts';

/** Chunks that are encoded, in so many rounds, each with a calm time as long as itself. */
const CHUNKS = 10_000;
const ROUNDS = 10;
/** Largest share of the time in which chunks are encoded, in percent: `--reembed-share` of the candidate's indexer. */
export const REEMBED_SHARE = 75;
/** Longest time of one round, in ms: the work steps back behind everything else of the machine. */
const ROUND_PATIENCE_MS = 600_000;
/** Pause between two looks at how far the work is, in ms: a look costs both gateways some reads of their store. */
const LOOK_EVERY_MS = 2_000;
/** Requests a second whose first tokens are timed. */
const RATE = 10;
/** How much later first tokens may come at p99, as a share. */
const MOST = 0.05;
/** Samples by which the interval is found, and its width. */
const RESAMPLES = 2_000;
const OUTSIDE = 0.025;

/** TTFT of the requests of one round, in ms, while chunks were encoded and while none were. */
export interface Round {
  readonly busyMs: readonly number[];
  readonly calmMs: readonly number[];
}

const nameOf = (round: number) => `reembedded-${round}`;

/** A repository of a round: functions that differ in a number, as source files have them. */
function* chunksOf(round: number) {
  const perFile = 50;
  const lines = 10;
  for (let i = 0; i < CHUNKS / ROUNDS; i++) {
    const n = round * CHUNKS + i;
    const startLine = (i % perFile) * lines + 1;
    const text = [
      `def total_of_orders_${n}(orders, rate_${n}):`,
      `    """Adds up what order ${n} costs, with its tax."""`,
      '    total = 0',
      '    for order in orders:',
      `        if order.kind == "kind-${n}":`,
      `            total += order.price * rate_${n}`,
      '        else:',
      '            total += order.price',
      '    rounded = round(total, 2)',
      `    return max(rounded, ${n})`,
    ].join('\n');
    yield chunkOf(
      { path: `orders/part_${Math.floor(i / perFile)}.py`, startLine, endLine: startLine + lines - 1 },
      text,
    );
  }
}

/** TTFT of requests in an open loop until the signal; those of one seed come at the same moments. */
function firstTokens({ fleet, references }: Scene, seed: number, until: AbortSignal): Promise<number[]> {
  return openLoop({ rate: RATE, seed }, performance.now(), until, async (random) => {
    const { body }: Reference = references[random.below(references.length)]!;
    const short = { ...body, max_tokens: 2, cache_salt: randomUUID() };
    return ttftMs(await streamCompletion(fleet.url, short, AbortSignal.timeout(TIMEOUT_MS), fleet));
  });
}

/** Removes what an earlier run has left, with its side indexes: nothing would be left to encode. */
async function removeMade({ fleet }: Scene): Promise<void> {
  for (let round = 0; round < ROUNDS; round++) {
    const answer = await sendRequest({
      method: 'DELETE',
      url: `${fleet.url}/v1/repos/${nameOf(round)}`,
      headers: bearer(fleet.apiKey),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    answer.resume();
    if (answer.statusCode === 404 || (answer.statusCode ?? 0) < 300) continue;
    throw new ServingError('internal', `${nameOf(round)} was not removed: the gateway answered ${answer.statusCode}`);
  }
}

async function reembed(scene: Scene): Promise<string> {
  await removeMade(scene);
  const said = await timed(scene);
  await removeMade(scene);
  return said;
}

async function timed(scene: Scene): Promise<string> {
  const { fleet, candidate, store, references, mark } = scene;
  const address = fleet.of('gateway')[0]!.process.address;
  const indexer = fleet.of('indexer').at(-1)!.link!.address;
  const isCurrent = (repositories: number) =>
    rolloutReached(
      fleet,
      'indexed for the candidate',
      ({ index }) => index !== null && index.repositories === repositories && index.current === repositories,
      { patienceMs: ROUND_PATIENCE_MS, everyMs: LOOK_EVERY_MS },
    );
  await askRollout(fleet, address, { action: 'start', bundle: candidate, indexer, share: 0 });
  await rolloutReached(fleet, 'ready for the candidate', ({ index }) => {
    return index !== null && index.repositories > 0 && index.current === index.repositories;
  });
  const { index } = await askRollout(fleet, address);
  mark();
  const rounds: Round[] = [];
  let encodingMs = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const key = nameOf(round);
    await publishMade(store, references[0]!.body.rag!.repo, [{ key, chunks: [...chunksOf(round)] }]);
    const done = new AbortController();
    const busy = firstTokens(scene, round, done.signal);
    const tookMs = await isCurrent(index!.repositories + round + 1).finally(() => done.abort());
    const busyMs = await busy;
    encodingMs += tookMs;
    const calmMs = await firstTokens(scene, round, AbortSignal.timeout(Math.round(tookMs)));
    rounds.push({ busyMs, calmMs });
  }
  await askRollout(fleet, address, { action: 'rollback' });
  return verdict(rounds, encodingMs);
}

/**
 * The rise of p99 over all rounds, and its 95 % interval by a bootstrap over rounds, since requests of one round are
 * not independent.
 * @returns what was found, in words.
 * @throws ServingError internal if p99 has certainly risen by more than {@link MOST}.
 */
export function verdict(rounds: readonly Round[], encodingMs: number): string {
  const [busy, calm] = [p99Of(rounds, 'busyMs'), p99Of(rounds, 'calmMs')];
  const rise = (times: readonly number[]) => busy(times) / calm(times) - 1;
  const random = new RandomStream(1);
  const resampled = Array.from({ length: RESAMPLES }, () => {
    const times = rounds.map(() => 0);
    for (let i = 0; i < rounds.length; i++) times[random.below(rounds.length)]!++;
    return rise(times);
  });
  const [low, high] = [quantile(resampled, OUTSIDE), quantile(resampled, 1 - OUTSIDE)];
  const all = (side: keyof Round, q: number) =>
    quantile(
      rounds.flatMap((round) => round[side]),
      q,
    ).toFixed(1);
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  const said =
    `${CHUNKS} chunks encoded in ${(encodingMs / 1000).toFixed(0)} s, in ${REEMBED_SHARE} % of the time at most; TTFT of ` +
    `${rounds.flatMap(({ busyMs }) => busyMs).length} ` +
    `requests meanwhile p50 ${all('busyMs', 0.5)}, p99 ${all('busyMs', 0.99)} ms, and of as many without p50 ` +
    `${all('calmMs', 0.5)}, p99 ${all('calmMs', 0.99)} ms: p99 rose by ${percent(rise(rounds.map(() => 1)))} ` +
    `(interval ${percent(low)} to ${percent(high)})`;
  if (low > MOST) throw new ServingError('internal', `${said}, more than ${percent(MOST)}`);
  return high <= MOST ? said : `${said}; not decided by this run`;
}

/**
 * @returns p99 as `quantile` gives it, where every round is there as often as said. It looks at the longest times
 * alone: links of the system that still serves run in this process, and must not wait until all is sorted 4,000 times.
 */
function p99Of(rounds: readonly Round[], side: keyof Round): (times: readonly number[]) => number {
  const longest = rounds.flatMap((each, round) => each[side].map((ms) => ({ ms, round }))).sort((a, b) => b.ms - a.ms);
  return (times) => {
    const total = rounds.reduce((sum, each, round) => sum + each[side].length * times[round]!, 0);
    const position = (total - 1) * 0.01;
    const rank = Math.floor(position);
    let seen = 0;
    let high: number | undefined;
    for (const { ms, round } of longest) {
      seen += times[round]!;
      if (seen > rank) high ??= ms;
      if (high !== undefined && seen > rank + 1) return high + (ms - high) * (position - rank);
    }
    return high ?? Number.NaN;
  };
}

export const REEMBEDDING_DRILLS: readonly Drill[] = [
  { name: 'first tokens while 10,000 chunks are encoded anew', keepsContext: true, disturb: reembed },
];
