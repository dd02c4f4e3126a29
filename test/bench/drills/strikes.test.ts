/** Drills against a system that breaks its promise: each must say so. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { Vitals } from '../../../bench/drills/fleet.ts';
import type { Scene } from '../../../bench/drills/scene.ts';
import { readSlowly } from '../../../bench/drills/slow-readers.ts';
import { strikeEach } from '../../../bench/drills/strikes.ts';
import { strikeUploads } from '../../../bench/drills/struck-uploads.ts';
import { RandomStream } from '../../../bench/measure/arrivals.ts';
import type { Role } from '../../../services/supervisor.ts';
import { events, gateway, json, progress, refuse } from '../../support/fake-http.ts';

const BODY = { prompt: [1], max_tokens: 2, rag: { repo: 'shop', mode: 'compressed' } };
const REFERENCE = { body: BODY, tokenIds: [1, 2], withoutContext: [3, 4], tookMs: 1 };

interface Fake {
  readonly url?: string;
  readonly path?: string;
  readonly replays?: () => number;
  readonly running?: (role: Role) => number;
}

/** Two members of each role, which answer at once after whatever is done to them. */
function scene({ url = '', path = '', replays = () => 0, running = () => 1 }: Fake) {
  const done: string[] = [];
  const fleet = {
    url,
    of: (role: Role) => [0, 1].map((i) => ({ role, process: { name: `${role}-${i}` } })),
    vitals: async ({ role }: { role: Role }) => ({ running: running(role), stagedBytes: 0, rssBytes: 0 }) as Vitals,
    answers: async () => true,
    usable: async () => 2,
    replays: async () => replays(),
  };
  const mark = () => {
    done.push('marked');
    return () => done.push('mended');
  };
  const burst = async () => done.push('burst');
  const how = { count: 2, seconds: 1, random: new RandomStream(1), references: [REFERENCE], path, mark, burst };
  return { scene: { ...how, fleet } as unknown as Scene, done };
}

describe('a strike', () => {
  test('at each worker in turn, when it is busy, says how many requests went on', async () => {
    const struck: string[] = [];
    let replays = 0;
    const { scene: given, done } = scene({ replays: () => replays });
    const verdict = await strikeEach(given, 'decode', async ({ process }) => {
      struck.push(process.name);
      replays += struck.length;
    });
    expect(struck).toEqual(['decode-0', 'decode-1']);
    expect(verdict).toBe('1 + 2 requests went on at the other worker');
    expect(done).toEqual(['burst', 'marked', 'mended', 'burst', 'marked', 'mended']);
  });

  test('that hit nobody is a failure', async () => {
    let replays = 0;
    const { scene: given } = scene({ replays: () => replays });
    const strikes = strikeEach(given, 'prefill', async () => {
      replays ||= 3;
    });
    await expect(strikes).rejects.toThrow('3 + 0 requests went on at the other worker: a strike hit nobody');
  });
});

describe('an upload that is struck', () => {
  /** An index whose version is its last content; what becomes of the uploads that are struck, and what comes after. */
  async function strike(outcome: string | object, after: { tokens?: number[]; version?: string } = {}) {
    const path = await mkdtemp(join(tmpdir(), 'llavacode-struck-'));
    onTestFinished(() => rm(path, { recursive: true, force: true }));
    await writeFile(join(path, 'a.py'), 'print(1)\n');
    let version = '';
    let struck = () => {};
    let calm = true;
    const url = await gateway(async (body, { method, headers, url }, response: ServerResponse) => {
      if (method === 'POST') {
        const { repo } = (body as typeof BODY).rag;
        return events(response, (calm ? undefined : after.tokens) ?? [version.length, 2], {
          index_version: `${repo} ${version}`,
        });
      }
      const { changes } = body as { changes?: unknown };
      version = JSON.stringify(changes ?? '');
      const repo = url!.split('/').at(-1)!;
      if (!headers.accept?.includes('event-stream')) {
        return json(response, { version: (calm ? undefined : after.version) ?? `${repo} ${version}`, changed: true });
      }
      calm = false;
      if (outcome === 'early') return refuse(response, 'worker_lost');
      const report = typeof outcome === 'string' ? outcome : { version: `${repo} ${version}`, ...outcome };
      return progress(response, new Promise((resolve) => (struck = () => resolve(report))));
    });
    return strikeUploads(scene({ url, path }).scene, async () => struck(), 2);
  }

  test.each([
    ['worker_lost', 0],
    [{}, 2],
  ])('may end with %j; the next one must come through', async (outcome, succeeded) => {
    const verdict = `2 uploads struck, ${succeeded} of them succeeded; the next ones came through`;
    expect(await strike(outcome)).toBe(verdict);
  });

  test.each<[string, Parameters<typeof strike>, string]>([
    ['with an error that says not to try again', ['internal'], 'an upload ended with as the test wants it'],
    ['before it was struck', ['early'], 'every upload had ended before it was struck'],
    ['with another version', [{ version: 'other' }], 'the struck upload came to another version'],
    [
      'and the next one with another version',
      [{}, { version: 'other' }],
      'the upload after it came to another version',
    ],
    ['and completions are others', [{}, { tokens: [7, 7] }], 'its context gives another completion'],
  ])('must not end %s', async (_, given, broken) => {
    await expect(strike(...given)).rejects.toThrow(broken);
  });
});

describe('a client that does not read', () => {
  /** All comes to it, or a part; the gateway has done with its request when it is read, or before. */
  async function read(tokens: number, waits: boolean) {
    const url = await gateway((body, _, response) => {
      const { n } = body as { n: number };
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      for (let index = 0; index < n; index++) {
        const choices = [{ index, token_ids: Array.from({ length: tokens }, (_, i) => i) }];
        response.write(`data: ${JSON.stringify({ choices })}\n\n`);
      }
      const timeline = { last_token: waits ? 60_000 : 0 };
      response.end(`data: ${JSON.stringify({ choices: [], timeline })}\n\ndata: [DONE]\n\n`);
    });
    // Both decoders have half of it at the first look, and nothing at the next ones.
    let looks = 0;
    const running = (role: Role) => (role === 'decode' && looks++ < 2 ? 6 : 0);
    return readSlowly(scene({ url, running }).scene);
  }

  test('is waited for', async () => {
    expect(await read(650, true)).toMatch(/its request waited, all came when it was read$/);
  });

  test('must be waited for, and lose nothing', async () => {
    await expect(read(650, false)).rejects.toThrow('its request did not wait for it to be read');
    await expect(read(649, true)).rejects.toThrow('what was read at last is not whole');
  });
});
