/** What a soak sends, against a gateway that is made to answer wrongly. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { EditedRepository } from '../../../bench/drills/edited-repository.ts';
import { type ChoicesReference, Editor, sendChoices } from '../../../bench/drills/mix.ts';
import { reportSoak } from '../../../bench/drills/report.ts';
import { countMix } from '../../../bench/drills/soak.ts';
import { type Reference, type StreamRecord, sendStream } from '../../../bench/drills/streams.ts';
import { events, gateway, json, refuse } from '../../support/fake-http.ts';

const BODY = { prompt: [1], max_tokens: 2, rag: { repo: 'shop', mode: 'compressed' } };
const REFERENCE: Reference = { body: BODY, tokenIds: [1, 2], withoutContext: [3, 4], tookMs: 1 };

describe('several choices', () => {
  const expected: ChoicesReference = {
    body: { ...BODY, n: 2 },
    tokenIds: [
      [1, 2],
      [5, 6],
    ],
    withoutContext: [
      [3, 4],
      [7, 8],
    ],
  };
  const choice = (index: number, ...token_ids: number[]) => ({ index, token_ids });
  const usage = { prompt_tokens: 1, completion_tokens: 4 };

  test.each<[string, object, Partial<StreamRecord>]>([
    ['as they were', { choices: [choice(1, 5, 6), choice(0, 1, 2)], usage }, { outcome: 'ok', lost: 0, doubled: 0 }],
    [
      'without context',
      { choices: [choice(0, 3, 4), choice(1, 7, 8)], usage, rag: { degraded: 'store' } },
      { outcome: 'ok', lost: 0, doubled: 0, degraded: true },
    ],
    ['swapped', { choices: [choice(0, 5, 6), choice(1, 1, 2)], usage }, { outcome: 'ok', lost: 4, doubled: 4 }],
    ['one missing', { choices: [choice(0, 1, 2)], usage: { ...usage, completion_tokens: 2 } }, { lost: 2, doubled: 0 }],
    [
      'counted wrongly',
      { choices: [choice(0, 1, 2), choice(1, 5, 6)], usage: { ...usage, completion_tokens: 2 } },
      { outcome: 'failed', code: 'wrong_usage' },
    ],
  ])('%s', async (_, answer, record) => {
    const url = await gateway((_, __, response) => json(response, answer));
    expect(await sendChoices(url, expected, 0)).toMatchObject(record);
  });

  test('that are refused have failed by name', async () => {
    const url = await gateway((_, __, response) => refuse(response, 'worker_lost'));
    expect(await sendChoices(url, expected, 0)).toMatchObject({ outcome: 'failed', code: 'worker_lost' });
  });
});

describe('keystrokes of a session', () => {
  /** Each keystroke is given up when the next one comes; what becomes of the last is asked. */
  const type = async (last: (response: ServerResponse) => void) => {
    const sessions: unknown[] = [];
    let waiting: ServerResponse | undefined;
    const url = await gateway((body, _, response) => {
      if (waiting) refuse(waiting, 'superseded');
      waiting = response;
      if (sessions.push((body as { session: unknown }).session) === 3) last(response);
    });
    const records = await new Editor(url, 'editor', REFERENCE, 0).type();
    expect(sessions).toEqual(['editor', 'editor', 'editor']);
    return records.map(({ outcome, code }) => code ?? outcome);
  };

  test('may give way to the next one', async () => {
    expect(await type((response) => events(response, [1, 2]))).toEqual(['left', 'left', 'ok']);
  });

  test('must not all give way', async () => {
    expect(await type((response) => refuse(response, 'superseded'))).toEqual(['left', 'left', 'superseded']);
  });
});

describe('a stream from an index that changes', () => {
  const byVersion = new Map([
    ['a', [1, 2]],
    ['b', [1, 9]],
  ]);
  test.each([
    ['b', [1, 9], { lost: 0, doubled: 0 }],
    ['a', [1, 9], { lost: 1, doubled: 1 }],
    ['nobody’s', [1, 2], { lost: 0, doubled: 2 }],
  ])('of version %s with %j', async (version, tokenIds, found) => {
    const url = await gateway((_, __, response) => events(response, tokenIds, { index_version: version }));
    expect(await sendStream(url, { ...REFERENCE, byVersion }, 0)).toMatchObject({ outcome: 'ok', ...found });
  });
});

describe('a repository that is edited', () => {
  /** An index whose version is its last content; `spoil` makes of it what is answered. */
  async function edit(spoil: (version: string) => { version: string; changed: boolean }) {
    const dir = await mkdtemp(join(tmpdir(), 'llavacode-edited-'));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    await writeFile(join(dir, 'a.py'), 'print(1)\n');
    const over = new AbortController();
    let [version, uploads, calm] = ['', 0, true];
    const url = await gateway((body, { method }, response) => {
      if (method === 'POST') return events(response, [version.length], { index_version: version });
      version = JSON.stringify(body);
      if (!calm && ++uploads === 4) over.abort();
      json(response, calm ? { version, changed: true } : spoil(version));
    });
    const { repository, references } = await EditedRepository.make(url, dir, [REFERENCE]);
    expect(references[0]!.body.rag).toMatchObject({ repo: 'soak-edited', mode: 'compressed' });
    expect(references[0]!.byVersion!.size).toBe(3);
    calm = false;
    const records = await repository.edit({ rate: 1000, seed: 1 }, 0, over.signal);
    return records.map(({ outcome, code }) => code ?? outcome);
  }

  test('comes to the version that it had after the same edit', async () => {
    expect(await edit((version) => ({ version, changed: true }))).toEqual(['ok', 'ok', 'ok', 'ok']);
  });

  test.each([
    ['another version', () => ({ version: 'other', changed: true })],
    ['no change', (version: string) => ({ version, changed: false })],
  ])('must not come to %s', async (_, spoil) => {
    expect(new Set(await edit(spoil))).toEqual(new Set(['wrong_version']));
  });
});

test('a soak says what it was made of', () => {
  const record = (outcome: StreamRecord['outcome']) => ({
    ...{ sentMs: 0, firstMs: 1, endedMs: 2, outcome, lost: 0, doubled: 0 },
  });
  const records = (...outcomes: StreamRecord['outcome'][]) =>
    outcomes.map((outcome) => ({ ...record(outcome), longestGapMs: 0 }));
  const sent = {
    ...{ completions: records('ok', 'left'), keystrokes: records('left', 'left', 'ok') },
    ...{ choices: records('ok', 'failed'), uploads: [] },
  };
  const counts = { sent: 7, ok: 3, left: 3, failed: {}, lostTokens: 0, doubledTokens: 0, restarts: 0, kills: 0 };
  const { markdown } = reportSoak({
    result: { minutes: 1, ...counts, mix: countMix(sent), trends: [], differences: [], broken: '' },
  });
  expect(markdown).toContain('2 completions (1 ok, 1 left or superseded), 3 keystrokes (1 ok, 2 left or superseded)');
  expect(markdown).toContain('2 choices (1 ok, 0 left or superseded), 0 uploads (0 ok, 0 left or superseded)');
});
