import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { strikeUploads } from '../../../bench/drills/struck-uploads.ts';
import { type BODY, scene } from '../../support/drill-scene.ts';
import { events, gateway, json, progress, refuse } from '../../support/fake-http.ts';

describe('an upload that is struck', () => {
  /** What happens to uploads that are struck, one after the other. */
  let order: string[] = [];

  /**
   * Strikes uploads to an index whose version is the content of its last upload.
   * @param outcome what becomes of the struck uploads.
   * @param after what is wrong with the answers after them.
   * @param before is done before each of them begins.
   */
  async function strike(outcome: string | object, after: { tokens?: number[]; version?: string } = {}) {
    const path = await mkdtemp(join(tmpdir(), 'llavacode-struck-'));
    onTestFinished(() => rm(path, { recursive: true, force: true }));
    await writeFile(join(path, 'a.py'), 'print(1)\n');
    let version = '';
    order = [];
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
      order.push('begun');
      if (outcome === 'early') return refuse(response, 'worker_lost');
      const report = typeof outcome === 'string' ? outcome : { version: `${repo} ${version}`, ...outcome };
      return progress(response, new Promise((resolve) => (struck = () => resolve(report))));
    });
    const strikeOne = async () => {
      order.push('struck');
      struck();
    };
    return strikeUploads(scene({ url, path }).scene, strikeOne, 2);
  }

  test.each([
    ['worker_lost', 0],
    [{}, 2],
  ])('a struck upload may end with %j, and the next upload must succeed', async (outcome, succeeded) => {
    const verdict = `2 uploads struck, ${succeeded} of them succeeded; the next uploads succeeded`;
    expect(await strike(outcome)).toBe(verdict);
  });

  test('each upload is under way when it is struck', async () => {
    await strike({});
    expect(order).toEqual(['begun', 'struck', 'begun', 'struck']);
  });

  test.each<[string, Parameters<typeof strike>, string]>([
    ['end with an error that is not retryable', ['internal'], 'an upload ended with as the test wants it'],
    ['end before it was struck', ['early'], 'every upload had ended before it could be struck'],
    ['lead to another version', [{ version: 'other' }], 'the struck upload led to another version'],
    [
      'be followed by an upload that leads to another version',
      [{}, { version: 'other' }],
      'the upload after it led to another version',
    ],
    [
      'change the completions of its version',
      [{}, { tokens: [7, 7] }],
      'the context of the new version gives another completion',
    ],
  ])('a struck upload must not %s', async (_, given, broken) => {
    await expect(strike(...given)).rejects.toThrow(broken);
  });
});
