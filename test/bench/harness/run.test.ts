import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, onTestFinished, vi } from 'vitest';
import { run } from '../../../bench/harness/run.ts';
import { INDEX } from '../../../bench/indexing/report.ts';
import { readArtifact } from '../../../bench/report/artifact.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { ARTIFACT } from '../../support/artifact.ts';

it('a run writes an artifact with its options, without passwords and paths of the machine, and prints the report', async () => {
  const out = await mkdtemp(join(tmpdir(), 'llavacode-run-'));
  onTestFinished(() => rm(out, { recursive: true, force: true }));
  const printed = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
  onTestFinished(() => printed.mockRestore());
  const options = {
    data: out,
    out,
    name: 'mine',
    json: join(out, 'copies', 'copy.json'),
    command: 'llavacode bench index --redis redis://me:pa@ss/word@host:6379/0 --slots 8 --url https://token@host/a',
  };
  const settings = {
    ...options,
    path: join(PACKAGE_ROOT, 'examples', 'shop'),
    redis: 'redis://:secret@host:6379',
    url: 'http://host:8000',
    slots: 8,
  };
  await run(INDEX, options, { models: [], settings }, async () => ARTIFACT.result);
  expect(await readdir(out)).toEqual(['copies', 'mine.json']);
  const artifact = await readArtifact(join(out, 'mine.json'));
  expect(artifact.settings).toEqual({ path: 'examples/shop', slots: 8 });
  expect(artifact.command).toBe(
    'llavacode bench index --redis redis://***@host:6379/0 --slots 8 --url https://***@host/a',
  );
  expect(artifact).toMatchObject({ bench: 'index', definitions: INDEX.definitions, result: ARTIFACT.result });
  expect(await readArtifact(options.json)).toEqual(artifact);
  expect(printed.mock.calls.join('')).toContain(
    '| m | e (28 layers, random weights) | first | 40 | 40 | 2.00 | 20.0 |',
  );
});
