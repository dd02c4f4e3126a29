/** Against a server that answers after delays that we know: what is asserted is counts, orders and lower bounds. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { type RequestRecord, summarise, ttft } from '../../../bench/measure/latency.ts';
import { runOpenLoop } from '../../../bench/measure/load-client.ts';

interface Behaviour {
  /** Before the first token, and between two. */
  readonly firstMs: number;
  readonly nextMs: number;
  readonly tokens: number;
  /** Requests that are answered at a time; others wait. */
  readonly concurrency?: number;
  readonly status?: number;
  /** Tokens after which the connection breaks off. */
  readonly breaksAfter?: number;
}

let server: Server | undefined;
afterEach(() => {
  server?.closeAllConnections();
  server?.close();
});

async function serve(behaviour: Behaviour): Promise<{ url: string; aborted: () => number }> {
  const { firstMs, nextMs, tokens, concurrency = Number.POSITIVE_INFINITY, status, breaksAfter } = behaviour;
  const waiting: (() => void)[] = [];
  let running = 0;
  let aborted = 0;
  server = createServer(async (request, response) => {
    request.resume();
    if (status !== undefined) {
      response.writeHead(status, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ error: { message: 'no room', code: 'saturated' } }));
      return;
    }
    let open = true;
    response.on('close', () => {
      if (!response.writableFinished) aborted++;
      open = false;
    });
    if (running >= concurrency) await new Promise<void>((resolve) => waiting.push(resolve));
    running++;
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    const send = (value: unknown) => response.write(`data: ${JSON.stringify(value)}\n\n`);
    for (let i = 0; i < tokens && open; i++) {
      await new Promise((resolve) => setTimeout(resolve, i === 0 ? firstMs : nextMs));
      if (i === breaksAfter) response.destroy();
      else send({ id: 'cmpl-1', choices: [{ text: 'x', finish_reason: i === tokens - 1 ? 'length' : null }] });
    }
    send({ choices: [], usage: { prompt_tokens: 5, completion_tokens: tokens } });
    response.end('data: [DONE]\n\n');
    running--;
    waiting.shift()?.();
  });
  await new Promise<void>((resolve) => server!.listen(0, '127.0.0.1', resolve));
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, aborted: () => aborted };
}

const plan = (count: number, everyMs: number, cancelAfterMs?: number) =>
  Array.from({ length: count }, (_, i) => ({
    atMs: i * everyMs,
    body: { prompt: 'x', max_tokens: 4 },
    ...(cancelAfterMs !== undefined && { cancelAfterMs }),
  }));
/** Timers may fire a little early by another clock. */
const SLACK_MS = 2;

describe('runOpenLoop', () => {
  it('counts what the server counts, and waits at least as long as it makes us wait', async () => {
    const { url } = await serve({ firstMs: 40, nextMs: 15, tokens: 4 });
    const records = await runOpenLoop(url, plan(5, 10), { timeoutMs: 10_000 });
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

  it('sends on while the server is busy: the queue shows in the latency', async () => {
    const { url } = await serve({ firstMs: 40, nextMs: 1, tokens: 1, concurrency: 1 });
    const records = await runOpenLoop(url, plan(6, 1), { timeoutMs: 10_000 });
    // The last one waited for five others, 40 ms each, though it was intended only 5 ms after the first.
    expect(Math.max(...records.map(ttft))).toBeGreaterThanOrEqual(5 * 40 - 5 * SLACK_MS);
    const sent = records.map(({ sentMs }) => sentMs);
    const firstEnd = Math.min(...records.map(({ endedMs }) => endedMs));
    expect(sent.filter((at) => at < firstEnd).length).toBeGreaterThan(1);
  });

  it('hangs up where the plan says so, and the server notices', async () => {
    const { url, aborted } = await serve({ firstMs: 5, nextMs: 200, tokens: 50 });
    const records = await runOpenLoop(url, plan(3, 1, 60), { timeoutMs: 30_000 });
    expect(records.map(({ outcome }) => outcome)).toEqual(['cancelled', 'cancelled', 'cancelled']);
    await expect.poll(aborted).toBe(3);
  });

  it('records refusals by their code, and lost streams with the tokens that came', async () => {
    const refusing = await serve({ firstMs: 0, nextMs: 0, tokens: 0, status: 429 });
    const refused = await runOpenLoop(refusing.url, plan(2, 1), { timeoutMs: 10_000 });
    expect(refused.map(({ outcome, code }) => [outcome, code])).toEqual(Array(2).fill(['failed', 'saturated']));
    server!.close();
    const breaking = await serve({ firstMs: 1, nextMs: 30, tokens: 4, breaksAfter: 2 });
    const [broken] = (await runOpenLoop(breaking.url, plan(1, 1), { timeoutMs: 10_000 })) as [RequestRecord];
    expect(broken).toMatchObject({ outcome: 'failed', code: 'worker_lost' });
    expect(broken.chunksMs).toHaveLength(2);
    expect(summarise([...refused, broken], { warmup: 0, slo: { ttft: 1e6 } }).attainment).toBe(0);
  });

  it('gives up on a request after its time', async () => {
    const { url } = await serve({ firstMs: 60_000, nextMs: 1, tokens: 1 });
    const [record] = await runOpenLoop(url, plan(1, 0), { timeoutMs: 50 });
    expect(record).toMatchObject({ outcome: 'failed', code: 'deadline_exceeded' });
  });
});
