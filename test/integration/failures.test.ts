/**
 * Real processes die, hang and restart while they serve: every stream is, token for token, the answer of an undisturbed
 * run, and nothing stays behind.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type CompletionBody, type StreamedCompletion, streamCompletion } from '../../services/client.ts';
import type { ServingError } from '../../services/lib/process/errors.ts';
import { ServiceProcess, startSystem } from '../../services/supervisor.ts';
import { startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

const STALL_MS = 1_500;
/** Long enough to be struck in the middle. */
const LONG = 250;
const prompt = (length: number, seed = 1) => Array.from({ length }, (_, i) => ((i + 1) * 7919 * seed) % 500);
const greedy = (length: number, maxTokens: number, seed = 1): CompletionBody => ({
  prompt: prompt(length, seed),
  max_tokens: maxTokens,
  temperature: 0,
  ignore_eos: true,
  return_token_ids: true,
});

let system: TestSystem;
beforeAll(async () => {
  const workers = { slots: 4, capacity: 1024, drainTimeoutMs: 20_000 };
  system = await startTestSystem(TINY_CODER, workers, {
    prefill: 2,
    decode: 2,
    prefillOnly: { prefillChunkTokens: 32 },
    gateway: { stallTimeoutMs: STALL_MS },
  });
});
afterAll(() => system?.close());

const workers = (role: string) => system.processes.filter(({ name }) => name.startsWith(role));

/** A figure of a process, summed over its labels; 0 where it has none. */
async function figure({ metricsAddress }: Pick<ServiceProcess, 'metricsAddress'>, name: string): Promise<number> {
  const text = await (await fetch(`http://${metricsAddress}/metrics`)).text();
  const lines = text.matchAll(new RegExp(`^${name}(?:{[^}]*})? (\\S+)`, 'gm'));
  return [...lines].reduce((sum, [, value]) => sum + Number(value), 0);
}
const ofGateway = (name: string) => figure({ metricsAddress: new URL(system.url).host }, name);
const replays = () => ofGateway('llavacode:replays_total');

/** The worker of a role that has most work now; one that is just being started again has none. */
async function busy(role: string, gauge: string): Promise<ServiceProcess> {
  const loads = await Promise.all(workers(role).map((worker) => figure(worker, gauge).catch(() => 0)));
  return workers(role)[loads.indexOf(Math.max(...loads))]!;
}
const decoding = () => busy('decode', 'vllm:num_requests_running');

/** A stream during which something happens, once, when the client has `after` chunks. */
async function during(body: CompletionBody, after: number, happens: () => Promise<void>): Promise<StreamedCompletion> {
  let chunks = 0;
  let happening: Promise<void> | undefined;
  const onChunk = () => {
    if (++chunks === after) happening = happens();
  };
  const done = await streamCompletion(system.url, body, AbortSignal.timeout(40_000), { onChunk });
  expect(happening, 'the stream was over before anything happened').toBeDefined();
  await happening;
  return done;
}

const signal = (name: NodeJS.Signals, of: () => Promise<ServiceProcess>) => async () => {
  process.kill((await of()).pid!, name);
};
const plain = (body: CompletionBody) => streamCompletion(system.url, body, AbortSignal.timeout(20_000));
const essence = ({ text, tokenIds, finishReason, usage }: StreamedCompletion) => ({
  ...{ text, tokenIds, finishReason },
  ...{ prompt: usage.prompt_tokens, completion: usage.completion_tokens },
});

/** No worker holds KV for anybody. */
async function expectNothingStaged(processes: readonly ServiceProcess[]): Promise<void> {
  for (const worker of processes.filter(({ name }) => !name.startsWith('gateway'))) {
    for (const name of ['llavacode:kv_staged_bytes', 'llavacode:kv_staged_oldest_seconds']) {
      await expect.poll(() => figure(worker, name).catch(() => NaN), { timeout: 20_000 }).toBe(0);
    }
  }
}

/** Every worker is back, and nothing was left behind. */
async function expectRest(): Promise<void> {
  await expect.poll(() => ofGateway('llavacode:workers_usable'), { timeout: 20_000 }).toBe(4);
  await expectNothingStaged(system.processes);
}
afterEach(expectRest, 60_000);

describe('kill -9', () => {
  test('kill -9 of decode in the middle of a stream, greedy or random, does not change its output', async () => {
    for (const body of [greedy(40, LONG), { ...greedy(41, LONG), temperature: 1, seed: 7, frequency_penalty: 0.5 }]) {
      const expected = essence(await plain(body));
      const before = await replays();
      expect(essence(await during(body, 20, signal('SIGKILL', decoding)))).toEqual(expected);
      expect(await replays()).toBeGreaterThan(before);
    }
  });

  test('kill -9 of prefill after the first token does not change the output', async () => {
    const body = greedy(90, LONG);
    const expected = essence(await plain(body));
    const computed = () =>
      Promise.all(workers('prefill').map((worker) => figure(worker, 'vllm:request_prefill_time_seconds_count')));
    const before = await computed();
    const used = async () => {
      const after = await computed();
      return workers('prefill')[after.findIndex((count, i) => count > before[i]!)]!;
    };
    expect(essence(await during(body, 1, signal('SIGKILL', used)))).toEqual(expected);
  });
});

test.each(['SIGKILL', 'SIGSTOP'] as const)(
  '%s of prefill before the first token does not change the output',
  async (strike) => {
    const bodies = [greedy(200, 30, 1), greedy(200, 30, 2)];
    const expected = await Promise.all(bodies.map(async (body) => essence(await plain(body))));
    await expectRest();
    const before = await replays();
    const [struck, other] = workers('prefill').map(({ pid }) => pid!) as [number, number];
    // Both stand still, so that one request waits in each. No worker is preferred for a prompt that it has kept.
    for (const pid of [struck, other]) process.kill(pid, 'SIGSTOP');
    try {
      const answers = bodies.map((body, i) => plain({ ...body, cache_salt: `${strike} ${i}` }));
      await expect.poll(() => ofGateway('llavacode:requests_inflight')).toBe(2);
      process.kill(struck, strike);
      process.kill(other, 'SIGCONT');
      expect((await Promise.all(answers)).map(essence)).toEqual(expected);
      expect(await replays()).toBeGreaterThan(before);
    } finally {
      if (strike === 'SIGSTOP') process.kill(struck, 'SIGCONT');
    }
  },
);

test('SIGSTOP of decode in the middle of a stream does not change its output: others take over', async () => {
  const body = greedy(60, LONG);
  const expected = essence(await plain(body));
  let stopped: ServiceProcess | undefined;
  try {
    const done = await during(body, 20, async () => {
      stopped = await decoding();
      process.kill(stopped.pid!, 'SIGSTOP');
    });
    expect(essence(done)).toEqual(expected);
  } finally {
    if (stopped) process.kill(stopped.pid!, 'SIGCONT');
  }
});

test('the latest request of a session supersedes those before, through to the workers', async () => {
  const code = (asked: Promise<unknown>) => asked.then(() => 'ok').catch((error: ServingError) => error.code);
  const older = [1, 2, 3].map((seed) => code(plain({ ...greedy(500, LONG, seed), session: 'editor-1' })));
  const other = code(plain({ ...greedy(20, 5), session: 'editor-2' }));
  const latest = await plain({ ...greedy(50, 10), session: 'editor-1' });
  expect(await Promise.all(older)).toEqual(['superseded', 'superseded', 'superseded']);
  expect(await other).toBe('ok');
  expect(essence(latest)).toEqual(essence(await plain(greedy(50, 10))));
});

/** As a client behind a load balancer is answered: by a gateway that is ready, and by another where none was begun. */
async function askReady(urls: () => string[], body: CompletionBody): Promise<StreamedCompletion> {
  for (let attempt = 0; ; attempt++) {
    const url = urls()[attempt % 2]!;
    let begun = false;
    const onChunk = () => {
      begun = true;
    };
    const ready = () =>
      fetch(`${url}/readyz`).then(
        ({ ok }) => ok,
        () => false,
      );
    try {
      if (await ready()) return await streamCompletion(url, body, AbortSignal.timeout(20_000), { onChunk });
    } catch (error) {
      const refused = ['draining', 'ECONNREFUSED', 'ECONNRESET'].includes((error as { code: string }).code);
      // It is the gateway itself that drains, not a worker whose refusal should not have come this far.
      if (begun || !refused || (await ready())) throw error;
    }
    await sleep(20);
  }
}

/** Restarts processes in turn while two clients ask again and again; all their answers must be as before. */
async function restartUnderLoad(
  restarted: readonly ServiceProcess[],
  urls: () => string[],
  tokens = 120,
): Promise<void> {
  const bodies = Array.from({ length: 2 }, (_, i) => greedy(30 + 20 * i, tokens, i + 1));
  const expected = await Promise.all(bodies.map(async (body) => essence(await askReady(urls, body))));
  let restarting = true;
  const answers: unknown[] = [];
  const clients = bodies.map(async (body, i) => {
    while (restarting) {
      const answer = await askReady(urls, body).then(
        essence,
        (error: ServingError) => `${error.code}: ${error.message}`,
      );
      answers.push(answer);
      expect(answer).toEqual(expected[i]);
    }
  });
  try {
    for (const process of restarted) await process.restart();
  } finally {
    restarting = false;
  }
  await Promise.all(clients);
  expect(answers.length).toBeGreaterThanOrEqual(restarted.length);
}

describe('a rolling restart under load fails no request', () => {
  test('a rolling restart of every worker and of two gateways fails no request', async () => {
    const at = (role: string) =>
      workers(role)
        .map(({ address }) => address)
        .join();
    const flags = { model: join(system.dir, 'bundle'), port: 0, store: `lmdb:${join(system.dir, 'store')}` };
    const { rpcSecretFile } = system;
    const named = {
      prefillWorkers: at('prefill'),
      decodeWorkers: at('decode'),
      rpcSecretFile,
      stallTimeoutMs: STALL_MS,
    };
    const second = new ServiceProcess(
      'gateway-1',
      'gateway',
      { ...flags, ...named },
      { logs: join(system.dir, 'logs') },
    );
    await second.start();
    try {
      const gateways = [...workers('gateway'), second];
      const urls = () => gateways.map(({ address }) => `http://${address}`);
      await restartUnderLoad([...workers('prefill'), ...workers('decode'), ...gateways], urls);
    } finally {
      await second.stop();
    }
  });

  test('a rolling restart of colocated workers that have less time to drain than a stream takes fails no request', async () => {
    const model = join(system.dir, 'bundle');
    const colocated = await startSystem({
      ...{ mode: 'colocated', prefill: 2, decode: 0, logs: join(system.dir, 'logs', 'colocated') },
      gateway: { model, port: 0, store: `lmdb:${join(system.dir, 'store')}` },
      workers: { model, threads: 1, slots: 4, capacity: 1024, drainTimeoutMs: 1_000 },
    });
    try {
      const both = colocated.processes.filter(({ name }) => name.startsWith('colocated'));
      expect(both).toHaveLength(2);
      const before = await figure({ metricsAddress: new URL(colocated.url).host }, 'llavacode:replays_total');
      await restartUnderLoad(both, () => [colocated.url, colocated.url], 600);
      const after = await figure({ metricsAddress: new URL(colocated.url).host }, 'llavacode:replays_total');
      expect(after).toBeGreaterThan(before); // they moved
      await expectNothingStaged(both);
    } finally {
      await colocated.close();
    }
  });
});
