/** The load client against a server whose behaviour is known. Assertions are on counts, orders and lower bounds. */
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { type ClientRecord, summarise, ttft } from '../../../bench/measure/latency.ts';
import { type PlannedRequest, runOpenLoop } from '../../../bench/measure/load-client.ts';

/** A limit that no request reaches, however slow the machine is. */
const TIMEOUT_MS = 280_000;
vi.setConfig({ testTimeout: 300_000 });
afterEach(() => vi.restoreAllMocks());

async function serve(answer: (response: ServerResponse) => void | Promise<void>): Promise<string> {
  const server = createServer(async (request, response) => {
    request.resume();
    await answer(response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

const event = (value: unknown) => `data: ${JSON.stringify(value)}\n\n`;
const token = (finish: string | null) => event({ id: 'cmpl-1', choices: [{ text: 'x', finish_reason: finish }] });

/** Streams `tokens` tokens: the first one after `firstMs`, the others `nextMs` apart. */
async function stream(response: ServerResponse, tokens: number, firstMs = 0, nextMs = 0): Promise<void> {
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  for (let i = 0; i < tokens; i++) {
    await sleep(i === 0 ? firstMs : nextMs);
    response.write(token(i === tokens - 1 ? 'length' : null));
  }
  response.write(event({ choices: [], usage: { prompt_tokens: 5, completion_tokens: tokens } }));
  response.end('data: [DONE]\n\n');
}

const plan = (count: number, everyMs: number, cancelAfterMs?: number): PlannedRequest[] =>
  Array.from({ length: count }, (_, i) => ({
    atMs: i * everyMs,
    body: { prompt: 'x', max_tokens: 4 },
    ...(cancelAfterMs !== undefined && { cancelAfterMs }),
  }));
/** Timers may fire a little early by another clock. */
const SLACK_MS = 2;

describe('runOpenLoop', () => {
  it('a record has the counts of the server, and times at least as long as the server took', async () => {
    const url = await serve((response) => stream(response, 4, 40, 15));
    const records = await runOpenLoop(url, plan(5, 10), { timeoutMs: TIMEOUT_MS });
    expect(records.map(({ index }) => index)).toEqual([0, 1, 2, 3, 4]);
    for (const record of records) {
      expect(record).toMatchObject({ outcome: 'ok', promptTokens: 5, outputTokens: 4 });
      expect(record.chunksMs).toHaveLength(4);
      expect(record.chunksMs).toEqual(record.chunksMs.toSorted((a, b) => a - b));
      expect(ttft(record)).toBeGreaterThanOrEqual(40 - SLACK_MS);
      expect(record.sentMs).toBeGreaterThanOrEqual(record.intendedMs - SLACK_MS);
      expect(record.endedMs - record.sentMs).toBeGreaterThanOrEqual(85 - SLACK_MS);
    }
  });

  it('the client sends while the server is busy, so that the queue shows in the latency', async () => {
    let last = Promise.resolve();
    let arrived = 0;
    let allArrived = () => {};
    const all = new Promise<void>((resolve) => {
      allArrived = resolve;
    });
    const url = await serve((response) => {
      // The server answers nothing until all requests have arrived, and then one after the other.
      if (++arrived === 6) allArrived();
      last = Promise.all([last, all]).then(() => stream(response, 1, 40));
      return last;
    });
    const records = await runOpenLoop(url, plan(6, 1), { timeoutMs: TIMEOUT_MS });
    // The last one waited for five others, 40 ms each, though it was intended only 5 ms after the first.
    expect(Math.max(...records.map(ttft))).toBeGreaterThanOrEqual(5 * 40 - 5 * SLACK_MS);
  });

  it('the client hangs up when the plan says so, and the server notices', async () => {
    const afterMs = 123_456;
    const cancels: (() => void)[] = [];
    const real = globalThis.setTimeout;
    const fake = (run: () => void, ms?: number) => {
      if (ms === afterMs) cancels.push(run);
      return real(ms === afterMs ? () => {} : run, ms === afterMs ? 0 : ms);
    };
    vi.spyOn(globalThis, 'setTimeout').mockImplementation(fake as typeof setTimeout);
    let [arrived, closed] = [0, 0];
    const url = await serve((response) => {
      response.on('close', () => closed++);
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(token(null));
      // The time to hang up comes when the server has all requests.
      if (++arrived === 3) for (const cancel of cancels) cancel();
    });
    const records = await runOpenLoop(url, plan(3, 1, afterMs), { timeoutMs: TIMEOUT_MS });
    expect(records.map(({ outcome }) => outcome)).toEqual(['cancelled', 'cancelled', 'cancelled']);
    await vi.waitUntil(() => closed === 3, { timeout: TIMEOUT_MS });
  });

  it('a refusal is recorded by its code, and a broken stream with the tokens that came', async () => {
    const refusing = await serve((response) => {
      response.writeHead(429, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ error: { message: 'no room', code: 'saturated' } }));
    });
    const refused = await runOpenLoop(refusing, plan(2, 1), { timeoutMs: TIMEOUT_MS });
    expect(refused.map(({ outcome, code }) => [outcome, code])).toEqual(Array(2).fill(['failed', 'saturated']));
    const breaking = await serve(async (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(token(null));
      await new Promise<void>((written) => response.write(token(null), () => written()));
      await sleep(30);
      response.socket!.destroySoon();
    });
    const [broken] = (await runOpenLoop(breaking, plan(1, 1), { timeoutMs: TIMEOUT_MS })) as [ClientRecord];
    expect(broken).toMatchObject({ outcome: 'failed', code: 'worker_lost' });
    expect(broken.chunksMs).toHaveLength(2);
    expect(summarise([...refused, broken], { warmup: 0, slo: { ttft: 1e6 } }).attainment).toBe(0);
  });

  it('the client gives up on a request after its time limit', async () => {
    const url = await serve(() => {});
    const [record] = await runOpenLoop(url, plan(1, 0), { timeoutMs: 50 });
    expect(record).toMatchObject({ outcome: 'failed', code: 'deadline_exceeded' });
  });
});
