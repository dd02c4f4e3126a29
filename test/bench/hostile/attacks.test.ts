import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { type AddressInfo, createServer } from 'node:net';
import { describe, expect, test, vi } from 'vitest';
import type { Attack } from '../../../bench/hostile/attack.ts';
import {
  BIG_BODIES,
  complete,
  FLOOD,
  LARGEST_ANSWERS,
  LEAVING,
  LEAVING_PIPELINES,
  LONGEST_PROMPTS,
  manyChoices,
  PIPELINING,
  SLOW_BODIES,
  unread,
} from '../../../bench/hostile/attacks.ts';
import { Meter } from '../../../bench/hostile/meter.ts';
import { RandomStream } from '../../../bench/measure/arrivals.ts';
import { gateway, json, refuse } from '../../support/fake-http.ts';

interface Asked {
  readonly prompt: readonly number[];
  readonly n?: number;
  readonly max_tokens: number;
  readonly stream?: boolean;
}

const event = (value: object) => `data: ${JSON.stringify(value)}\n\n`;

/** Streams two tokens for each choice. */
function serve({ prompt, n = 1, stream }: Asked, response: ServerResponse): void {
  if (!stream) {
    json(response, {});
    return;
  }
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  for (let index = 0; index < n; index++) {
    response.write(event({ choices: [{ index, text: '', finish_reason: null, token_ids: [1, 2] }] }));
  }
  const usage = { prompt_tokens: prompt.length, completion_tokens: 2 * n };
  response.end(`${event({ choices: [], usage })}data: [DONE]\n\n`);
}

/** Lets an attack go on until something has come of it. */
async function attack(of: Attack, url: string, enough: (meter: Meter) => boolean): Promise<Meter> {
  const over = new AbortController();
  const meter = new Meter();
  const door = { url, apiKey: 'hostile' };
  const running = of.run({ door, random: new RandomStream(1), meter, capacity: 64, until: over.signal });
  await vi.waitUntil(() => enough(meter), { timeout: 60_000 });
  over.abort();
  await running;
  return meter;
}

describe('attacks', () => {
  test.each<[Attack, number, number]>([
    [manyChoices(4, 2), 64, 4],
    [FLOOD, 16, 1],
    [LONGEST_PROMPTS, 48, 1],
    [PIPELINING, 32, 1],
  ])(
    'an attack of $name carries the key of its tenant, and counts what it is served',
    async (of, promptTokens, choices) => {
      const keys = new Set<unknown>();
      const url = await gateway((body, { headers }, response) => {
        keys.add(headers.authorization);
        serve(body as Asked, response);
      });
      const each = promptTokens + 2 * choices;
      const { tokens, sent } = (await attack(of, url, (meter) => meter.read().tokens > 20 * each)).read();
      expect(keys).toEqual(new Set(['Bearer hostile']));
      expect(tokens).toBeGreaterThan(20 * each);
      expect(tokens).toBeLessThanOrEqual(sent * each);
    },
  );

  test('a refusal ends no attack, and is counted by its code', async () => {
    let refusals = 3;
    const url = await gateway((body, _, response) => {
      if (refusals-- > 0) refuse(response, 'saturated');
      else serve(body as Asked, response);
    });
    const meter = await attack(FLOOD, url, (meter) => meter.read().tokens > 0 && meter.read().refused > 0);
    expect(meter.refusals).toMatchObject({ saturated: 3 });
  });

  test('the largest answers are found by asking for less until the gateway does not refuse', async () => {
    const asked: unknown[] = [];
    const url = await gateway((body, _, response) => {
      const { n } = body as { n: number };
      asked.push(n);
      json(response, {}, n > 32 ? 400 : 200);
    });
    const meter = await attack(LARGEST_ANSWERS, url, (meter) => meter.read().tokens > 0);
    expect(asked.slice(0, 3)).toEqual([128, 64, 32]);
    expect(meter.read()).toMatchObject({ tokens: 62, refused: 0 });
  });

  test.each([unread(2), LEAVING, LEAVING_PIPELINES, BIG_BODIES, SLOW_BODIES])(
    'an attack of $name reaches the gateway, and leaves nothing open',
    async (of) => {
      let [reached, open] = [0, 0];
      const server = createServer((socket) => {
        reached++;
        open++;
        socket.on('error', () => {}).on('close', () => open--);
        socket.resume(); // answers nobody
      }).listen(0, '127.0.0.1');
      await once(server, 'listening');
      const { port } = server.address() as AddressInfo;
      await attack(of, `http://127.0.0.1:${port}`, () => reached > 0);
      await vi.waitUntil(() => open === 0, { timeout: 60_000 });
      server.close();
    },
  );
});

test('a request of several choices waits until each has its first token', async () => {
  let response!: ServerResponse;
  const url = await gateway((_, __, own) => {
    response = own.writeHead(200, { 'content-type': 'text/event-stream' });
    response.write(event({ choices: [{ index: 1, text: '', finish_reason: null, token_ids: [7] }] }));
  });
  let nowMs = 0;
  const meter = new Meter(() => nowMs);
  const until = new AbortController();
  const body = { prompt: [1, 2, 3], n: 2, max_tokens: 1 };
  const request = complete({ door: { url }, meter, until: until.signal }, body).catch(() => {});
  await vi.waitUntil(() => meter.read().tokens === 4, { timeout: 60_000 });
  nowMs = 5;
  expect(meter.read().backlogMs).toBe(5);
  response.write(event({ choices: [{ index: 0, text: '', finish_reason: null, token_ids: [7] }] }));
  await vi.waitUntil(() => meter.read().tokens === 5, { timeout: 60_000 });
  nowMs = 9;
  expect(meter.read().backlogMs).toBe(5);
  until.abort();
  await request;
});
