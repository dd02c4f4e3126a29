/**
 * One mix: two busy tenants and one that types, all honest, beside an attacker. Busy tenants always have more to ask
 * for, so that what they get is their share of the system; the tenant that types asks for little, and waits for it.
 */
import { setMaxListeners } from 'node:events';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { bearer, sendRequest } from '../../services/http-call.ts';
import type { Attack, AttackScene } from '../hostile/attack.ts';
import { complete } from '../hostile/attacks.ts';
import { Meter, type Reading } from '../hostile/meter.ts';
import { promptOf } from '../hostile/raw-client.ts';
import { arrivalTimes, RandomStream } from '../measure/arrivals.ts';
import { type ClientRecord, type Percentiles, percentiles, ttft } from '../measure/latency.ts';
import { runOpenLoop } from '../measure/load-client.ts';
import { type Door, type Tenant, tenant } from '../system/tenants.ts';
import type { FairnessOptions } from './command.ts';
import { fairness, judge, type Share } from './judge.ts';

/** The tenants of every mix. */
export interface Tenants {
  readonly busy: readonly [Tenant, Tenant];
  readonly typing: Tenant;
  readonly hostile: Tenant;
}

/** @param mix number of the mix, which their names end in. */
export const makeTenants = (mix: number): Tenants => ({
  busy: [tenant(`busy-1-${mix}`), tenant(`busy-2-${mix}`)],
  typing: tenant(`typing-${mix}`),
  hostile: tenant(`hostile-${mix}`),
});

export interface MixResult {
  readonly name: string;
  /** Weight of the first busy tenant; the others have 1. */
  readonly weight: number;
  readonly shares: readonly Share[];
  /** Jain's index over the backlogged tenants; undefined if fewer than two were. */
  readonly fairness: number | undefined;
  /** TTFT in ms of the tenant that types. */
  readonly ttft: Percentiles;
  readonly typed: number;
  /** Failed requests of honest tenants by error code. */
  readonly failed: Readonly<Record<string, number>>;
  /** Refused requests of the attacker by error code. */
  readonly refused: Readonly<Record<string, number>>;
  readonly broken: string;
}

type MixOptions = Pick<FairnessOptions, 'seconds' | 'warmup' | 'busy' | 'capacity' | 'timeoutMs' | 'seed'>;

/** Requests of the busy tenants, in tokens. */
const BUSY = { prompt: 120, output: 32 };
/** Requests of the tenant that types: so few that it is never backlogged. */
const TYPING = { perSecond: 3, prompt: 60, output: 8 };
const OVER = new Error('the mix is over');

/** @param attack undefined for the mix without an attacker. */
export async function measureMix(
  url: string,
  tenants: Tenants,
  weight: number,
  attack: Attack | undefined,
  options: MixOptions,
): Promise<MixResult> {
  const over = new AbortController();
  setMaxListeners(0, over.signal); // each request listens
  const parties = partiesOf(url, tenants, attack, options, over.signal);
  const running = parties.map(({ run }) => run());
  let records: ClientRecord[];
  let shares: Share[];
  try {
    await sleep(1000 * options.warmup);
    const before = parties.map(({ meter }) => meter.read());
    [records] = await Promise.all([type(url, tenants.typing, options), sleep(1000 * options.seconds)]);
    shares = parties.map(({ name, meter }, i) => shareOf(name, i === 0 ? weight : 1, before[i]!, meter.read()));
  } finally {
    over.abort(OVER);
    await Promise.all(running);
  }
  const honest = parties.slice(0, 2).map(({ meter }) => meter.refusals);
  const failed = addUp([...honest, failures(records)]);
  const ok = records.filter(({ outcome }) => outcome === 'ok');
  return {
    name: attack?.name ?? 'nobody attacks',
    weight,
    shares,
    fairness: fairness(shares),
    ttft: percentiles(ok.map(ttft)),
    typed: records.length,
    failed,
    refused: parties[2]?.meter.refusals ?? {},
    broken: judge(shares, failed),
  };
}

interface Party {
  readonly name: string;
  readonly meter: Meter;
  run(): Promise<unknown>;
}

/** The tenants whose shares are measured: both busy ones, and the attacker, if it is backlogged or not. */
function partiesOf(
  url: string,
  { busy, hostile }: Tenants,
  attack: Attack | undefined,
  { capacity, seed, busy: atOnce }: MixOptions,
  until: AbortSignal,
): Party[] {
  const scene = (of: Tenant, i: number): AttackScene => ({
    door: { url, apiKey: of.apiKey },
    random: new RandomStream(seed + i),
    meter: new Meter(),
    capacity,
    until,
  });
  const parties = busy.map((of, i): Party => {
    const own = scene(of, i);
    return { name: of.name, meter: own.meter, run: () => keepBusy(own, atOnce) };
  });
  if (!attack) return parties;
  const own = scene(hostile, 2);
  return [...parties, { name: hostile.name, meter: own.meter, run: () => attack.run(own) }];
}

/** An honest tenant that always has more to ask for. A failure is counted, and the next request follows. */
async function keepBusy(scene: AttackScene, atOnce: number): Promise<void> {
  const { random, meter, until } = scene;
  const one = async () => {
    while (!until.aborted) {
      const body = { prompt: promptOf(random, BUSY.prompt), max_tokens: BUSY.output, temperature: 1 };
      await complete(scene, body).catch(async (error: { code?: string }) => {
        if (until.aborted) return;
        meter.refused(error.code ?? 'connection');
        await sleep(200);
      });
    }
  };
  await Promise.all(Array.from({ length: atOnce }, one));
}

/** Sends the requests of the tenant that types, in an open loop. */
function type(url: string, { apiKey }: Tenant, { seconds, seed, timeoutMs }: MixOptions): Promise<ClientRecord[]> {
  const random = new RandomStream(seed + 3);
  const count = Math.max(1, Math.round(seconds * TYPING.perSecond));
  const plan = arrivalTimes({ kind: 'poisson', rate: TYPING.perSecond, count, seed }).map((atMs) => ({
    atMs,
    body: { prompt: promptOf(random, TYPING.prompt), max_tokens: TYPING.output, temperature: 0, ignore_eos: true },
  }));
  return runOpenLoop(url, plan, { timeoutMs, apiKey });
}

/** Longest wait for what a mix leaves behind. */
const IDLE_TIMEOUT_MS = 60_000;

/** Waits until the gateway has no request in flight, so that one mix does not weigh on the next. */
export async function untilIdle({ url, apiKey }: Door): Promise<void> {
  const signal = AbortSignal.timeout(IDLE_TIMEOUT_MS);
  while (!signal.aborted) {
    const answer = await sendRequest({ method: 'GET', url: `${url}/metrics`, headers: bearer(apiKey), signal });
    if (/^llavacode:requests_inflight(?:\{[^}]*\})? 0$/m.test(await text(answer))) return;
    await sleep(100);
  }
}

function shareOf(name: string, weight: number, before: Reading, after: Reading): Share {
  const [tokens, backlogMs] = [after.tokens - before.tokens, after.backlogMs - before.backlogMs];
  return { tenant: name, weight, tokens, backlog: backlogMs / (after.atMs - before.atMs) };
}

function failures(records: readonly ClientRecord[]): Record<string, number> {
  return addUp(records.flatMap(({ outcome, code = 'unknown' }) => (outcome === 'failed' ? [{ [code]: 1 }] : [])));
}

function addUp(counts: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const [code, count] of counts.flatMap((each) => Object.entries(each))) sum[code] = (sum[code] ?? 0) + count;
  return sum;
}
