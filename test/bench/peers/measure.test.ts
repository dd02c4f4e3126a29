/** `bench peers` against servers whose behaviour is known. Assertions are on what they were sent, not on times. */
import type { ServerResponse } from 'node:http';
import { describe, expect, it, vi } from 'vitest';
import { defaultsOf } from '../../../bench/options.ts';
import { PEERS_COMMAND, peers } from '../../../bench/peers/command.ts';
import { type Measuring, measureServers } from '../../../bench/peers/measure.ts';
import { SERVERS } from '../../../bench/peers/servers-report.ts';
import { gateway, json } from '../../support/fake-http.ts';

vi.setConfig({ testTimeout: 300_000 });

const VOCABULARY = 100_000;
const OPTIONS: Measuring = {
  ...defaultsOf(PEERS_COMMAND.options),
  rounds: 2,
  prompts: [5, 9],
  streams: [1, 3],
  streamTokens: 7,
  keystrokeTokens: 6,
  timeoutMs: 280_000,
};

interface Asked {
  readonly server: string;
  readonly connection: string | undefined;
  readonly prompt: readonly number[];
  readonly max_tokens: number;
}

type Answer = (asked: Asked, response: ServerResponse) => void;

/** Answers with as many tokens as were asked for, as other servers do: the usage comes in a chunk of its own. */
const inFull: Answer = (asked, response) => stream(response, asked.prompt.length, asked.max_tokens);

function stream(response: ServerResponse, read: number, written: number): void {
  const event = (value: object) => response.write(`data: ${JSON.stringify(value)}\n\n`);
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  for (let i = 1; i <= written; i++) {
    event({ id: 'cmpl-1', choices: [{ index: 0, text: 'x', finish_reason: i === written ? 'length' : null }] });
  }
  event({ choices: [], usage: { prompt_tokens: read, completion_tokens: written } });
  response.end('data: [DONE]\n\n');
}

/** Starts a server that notes what it is asked, before it answers. */
async function start(name: string, asked: Asked[], answer: Answer = inFull, ours = false) {
  const url = await gateway((body, request, response) => {
    const { connection } = request.headers;
    const noted = { ...(body as Omit<Asked, 'server' | 'connection'>), server: name, connection };
    asked.push(noted);
    answer(noted, response);
  });
  return { name, url, ours };
}

const measure = (servers: Parameters<typeof measureServers>[0], options: Partial<Measuring> = {}) =>
  measureServers(servers, VOCABULARY, { ...OPTIONS, ...options }, () => {});

describe('servers in turns', () => {
  it('all get the same requests, and each is the first one as often as the last one', async () => {
    const asked: Asked[] = [];
    const servers = [await start('a', asked, inFull, true), await start('b', asked)];
    const { cells, servers: measured } = await measure(servers);
    expect(cells).toEqual([
      { kind: 'prompt', tokens: 5 },
      { kind: 'prompt', tokens: 9 },
      { kind: 'keystroke', tokens: 6 },
      { kind: 'streams', streams: 1 },
      { kind: 'streams', streams: 3 },
    ]);
    for (const { ms } of measured) {
      expect(ms.map((samples) => samples.length)).toEqual([2, 2, 2, 2, 2]);
      expect(ms.flat().filter((value) => !(value >= 0))).toEqual([]);
    }
    const sentTo = (name: string) =>
      asked.filter(({ server }) => server === name).map(({ server, ...body }) => JSON.stringify(body));
    // The streams of one cell may arrive in any order.
    expect(sentTo('a').sort()).toEqual(sentTo('b').sort());
    expect(sentTo('a')).toHaveLength(3 * (1 + 1 + 2 + 1 + 3));
    expect(asked.filter(({ prompt }) => prompt.length === 5).map(({ server }) => server)).toEqual([...'baabba']);
  });

  it('each request has its own connection, and no prompt begins as another one, but for the token of a keystroke', async () => {
    const asked: Asked[] = [];
    await measure([await start('a', asked)], { rate: [1000], seconds: 0.005, promptTokens: 8 });
    const keystrokes = asked.filter(({ prompt }) => prompt.length === 7);
    expect(keystrokes).toHaveLength(3);
    const before = keystrokes.map((typed) => asked[asked.indexOf(typed) - 1]!.prompt);
    expect(keystrokes.map(({ prompt }) => prompt.slice(0, -1))).toEqual(before);
    const others = asked.filter((request) => !keystrokes.includes(request));
    expect(new Set(others.map(({ prompt }) => prompt[0])).size).toBe(others.length);
    expect(new Set(asked.map(({ connection }) => connection))).toEqual(new Set(['close']));
    expect(asked.flatMap(({ prompt }) => prompt).filter((id) => id >= 0.9 * VOCABULARY)).toEqual([]);
  });

  it('a keystroke can be left out', async () => {
    const { cells } = await measure([await start('a', [])], { keystrokeTokens: 0, streams: [2], prompts: [5] });
    expect(cells.map(({ kind }) => kind)).toEqual(['prompt', 'streams']);
  });

  it.each([
    ['ends a text early', (asked, response) => stream(response, asked.prompt.length, asked.max_tokens - 1)],
    [
      'reads a token that was not sent',
      (asked, response) => stream(response, asked.prompt.length + 1, asked.max_tokens),
    ],
  ] satisfies [string, Answer][])('a server that %s is refused by its name', async (_what, answer) => {
    const servers = [await start('ours', []), await start('another', [], answer)];
    const told = /^another \(a prompt of 5 tokens\): it read \d tokens and wrote \d, and was asked to write 4$/;
    await expect(measure(servers)).rejects.toMatchObject({
      code: 'invalid_request',
      message: expect.stringMatching(told),
    });
  });

  it('a server that fails is named, with what it said', async () => {
    const answer: Answer = (_asked, response) => json(response, { object: 'error', message: 'no such model' }, 404);
    const servers = [await start('another', [], answer)];
    await expect(measure(servers)).rejects.toMatchObject({
      message: expect.stringMatching(/^another .*HTTP 404.*no such model/),
      remedy: expect.stringContaining('log of another'),
    });
  });

  it('under a load, a failed request has missed its objective, and the others count', async () => {
    let requests = 0;
    const answer: Answer = (asked, response) =>
      asked.max_tokens === 3 && ++requests === 2 ? json(response, {}, 500) : inFull(asked, response);
    const servers = [await start('a', []), await start('b', [], answer)];
    const slo = { ttft: 280_000, tpot: 280_000 };
    const rate = [400, 800];
    const { load, servers: measured } = await measure(servers, { rate, seconds: 0.01, outputTokens: 3, slo });
    expect(load).toMatchObject({ rates: rate, slo, outputTokens: 3 });
    const told = measured.map(({ loads }) =>
      loads.map(({ summary: { ok, failed, attainment } }) => [ok, failed, attainment]),
    );
    expect(told).toEqual([
      [
        [4, 0, 1],
        [8, 0, 1],
      ],
      [
        [3, 1, 0.75],
        [8, 0, 1],
      ],
    ]);
  });
});

describe('the list of servers', () => {
  it('has names and URLs', () => {
    expect(peers('llama.cpp=http://127.0.0.1:8081/, vLLM=https://host/a')).toEqual([
      { name: 'llama.cpp', url: 'http://127.0.0.1:8081' },
      { name: 'vLLM', url: 'https://host/a' },
    ]);
  });

  it.each(['http://127.0.0.1:8081', '=http://host', 'a=host:80', 'a=http://', 'a=http://x,a=http://y'])(
    '%s is refused',
    (text) => {
      expect(() => peers(text)).toThrow(/must be like NAME=http:\/\/HOST:PORT|names two servers/);
    },
  );
});

it('the report has times, and those of others against the first server', async () => {
  const { cells, load } = await measure([await start('a', [])], { streams: [4], prompts: [500] });
  const server = (name: string, ours: boolean, ms: number[][]) => ({ name, ours, ms, loads: [] });
  const ours = server('ours', true, [[100, 120, 110], [10], [5, 5, 5]]);
  const other = server('other', false, [[250, 240, 220], [40], [5, 10, 5]]);
  const result = { model: 'm', cells, load, servers: [ours, other] };
  const { markdown } = SERVERS.report({ result });
  expect(markdown).toContain('| prompt of 500 | ours | 110 | 100–120 |  |');
  expect(markdown).toContain('| prompt of 500 | other | 240 | 220–250 | 2.00 × (2.00–2.50) |');
  expect(markdown).toContain('| keystroke after 6 | other | 40.0 | 40.0–40.0 | 4.00 × (4.00–4.00) |');
  expect(markdown).not.toContain('goodput');
  expect(SERVERS.headline(result)).toBe(
    'time against ours: other prompt of 500 2.00 ×, keystroke after 6 4.00 ×, 4 streams 1.00 ×',
  );
});
