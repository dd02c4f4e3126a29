import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { EditedRepository } from '../../../bench/drills/edited-repository.ts';
import { REFERENCE } from '../../support/drill-scene.ts';
import { events, gateway, json } from '../../support/fake-http.ts';

describe('a repository that is edited', () => {
  /** An index whose version is the content of its last upload; `spoil` turns the version into the answer. */
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
    const { repository, references } = await EditedRepository.make({ url }, dir, [REFERENCE]);
    expect(references[0]!.body.rag).toMatchObject({ repo: 'soak-edited', mode: 'compressed' });
    expect(references[0]!.byVersion!.size).toBe(3);
    calm = false;
    const records = await repository.edit({ rate: 1000, seed: 1 }, 0, over.signal);
    return records.map(({ outcome, code }) => code ?? outcome);
  }

  test('an upload must lead to the version that the same edit led to before', async () => {
    expect(await edit((version) => ({ version, changed: true }))).toEqual(['ok', 'ok', 'ok', 'ok']);
  });

  test.each([
    ['another version', () => ({ version: 'other', changed: true })],
    ['no change', (version: string) => ({ version, changed: false })],
  ])('an upload that leads to %s has failed', async (_, spoil) => {
    expect(new Set(await edit(spoil))).toEqual(new Set(['wrong_version']));
  });
});
