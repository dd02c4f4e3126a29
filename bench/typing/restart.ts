/**
 * What KV on disk is worth: the first token of a keystroke whose worker was killed (SIGKILL) and started again since
 * the keystroke before, against that of a keystroke whose worker went on. Both have the prompt before them computed;
 * one finds it in memory, the other one on disk. The two are measured in turns, in changing order, and with them a
 * keystroke after a kill whose prompt nobody has computed. Nothing is shared between two measurements.
 */
import { randomUUID } from 'node:crypto';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { sendRequest } from '../../services/http-call.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { ServiceProcess } from '../../services/supervisor.ts';
import { type ClientRecord, ttft } from '../measure/latency.ts';
import { median } from '../measure/statistics.ts';
import { answeredInAll, asking, type PairOptions, pairsOf, ttftRatio } from './keystroke-pairs.ts';
import type { RestartRun } from './measure.ts';
import type { Session } from './session.ts';

/** Pause between two looks at a worker, in ms. */
const LOOK_MS = 200;
/** Looks for which the bytes on disk must be the same: longer than a worker waits before it saves a prompt. */
const STEADY_LOOKS = 10;
/** Time that a worker may take to save a prompt or to start again, in ms. */
const PATIENCE_MS = 120_000;
/** Time that one look may take, in ms. */
const CALL_MS = 10_000;

const WAYS = ['warm', 'restarted', 'computed'] as const;

export async function measureRestarts(
  url: string,
  deployment: string,
  processes: readonly ServiceProcess[],
  session: Session,
  options: PairOptions,
): Promise<RestartRun> {
  const worker = processes.find(({ name }) => /^(prefill|colocated)/.test(name))!;
  const ask = asking(url, session, options);
  const records = { warm: [] as ClientRecord[], restarted: [] as ClientRecord[], computed: [] as ClientRecord[] };
  for (const [i, [first, second]] of pairsOf(session).entries()) {
    const turn = i % WAYS.length;
    for (const way of [...WAYS.slice(turn), ...WAYS.slice(0, turn)]) {
      const salt = randomUUID();
      await ask(first, salt, i);
      if (way !== 'warm') await killAndAwait(worker, url);
      records[way].push(await ask(second, way === 'computed' ? randomUUID() : salt, i));
    }
  }
  const { context, promptOrder } = options;
  return { deployment, context, promptOrder, ...compared(records) };
}

/** Waits until all kept prompts are on disk, kills the worker, and waits until the gateway can use it again. */
async function killAndAwait(worker: ServiceProcess, url: string): Promise<void> {
  let [bytes, steady] = [-1, 0];
  await until('saves its prompts', async () => {
    const now = (await figure(worker.metricsAddress, 'llavacode:kv_disk_bytes')) ?? -1;
    steady = now === bytes ? steady + 1 : 0;
    bytes = now;
    return steady >= STEADY_LOOKS && bytes > 0;
  });
  const { pid } = worker;
  process.kill(pid!, 'SIGKILL');
  await until('starts again', async () => {
    if (worker.pid === pid) return false;
    return (await figure(worker.metricsAddress, 'llavacode:kv_disk_bytes')) !== undefined;
  });
  await until('is used again', async () => {
    const answer = await sendRequest({ method: 'GET', url: `${url}/readyz`, signal: AbortSignal.timeout(CALL_MS) });
    await text(answer);
    return answer.statusCode === 200;
  });
}

async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  const endMs = performance.now() + PATIENCE_MS;
  while (!(await holds().catch(() => false))) {
    if (performance.now() > endMs) {
      throw new ServingError('worker_lost', `the worker ${what} in more than ${PATIENCE_MS} ms`);
    }
    await sleep(LOOK_MS);
  }
}

/** A figure of a process; undefined while it is away. */
async function figure(address: string, name: string): Promise<number | undefined> {
  const call = { method: 'GET', url: `http://${address}/metrics`, signal: AbortSignal.timeout(CALL_MS) } as const;
  const answer = await sendRequest(call).catch(() => undefined);
  const line = new RegExp(`^${name}(?:{[^}]*})? (\\S+)`, 'm').exec(answer ? await text(answer) : '');
  return line ? Number(line[1]) : undefined;
}

function compared(records: Readonly<Record<(typeof WAYS)[number], readonly ClientRecord[]>>) {
  const trials = answeredInAll(records);
  const middle = (of: (trial: (typeof trials)[number]) => number) => median(trials.map(of));
  return {
    trials: trials.length,
    failed: records.warm.length - trials.length,
    warmMs: middle(({ warm }) => ttft(warm)),
    restartedMs: middle(({ restarted }) => ttft(restarted)),
    computedMs: middle(({ computed }) => ttft(computed)),
    ...ttftRatio(trials, 'restarted', 'warm'),
    promptTokens: middle(({ warm }) => warm.promptTokens),
    warmCachedTokens: middle(({ warm }) => warm.cachedTokens),
    restoredTokens: middle(({ restarted }) => restarted.cachedTokens),
    records: trials,
  };
}
