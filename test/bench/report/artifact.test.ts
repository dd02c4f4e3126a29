import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { readArtifact, writeArtifact } from '../../../bench/report/artifact.ts';
import { ARTIFACT } from '../../support/artifact.ts';

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-artifact-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

describe('artifacts', () => {
  it('an artifact comes back as it was, except for digits that nobody can measure', async () => {
    const raw = { ...ARTIFACT, result: { chunksMs: [[1.23456789, 2], [3]], share: 0.123456789, n: 7 } };
    const file = await writeArtifact(dir, 'index', raw);
    const back = await readArtifact(file);
    expect(back.result).toEqual({ chunksMs: [[1.235, 2], [3]], share: 0.123457, n: 7 });
    expect(back.environment).toEqual(ARTIFACT.environment);
  });

  it('a file of another format is refused', async () => {
    await writeFile(join(dir, 'x.json'), '{"format": 2}');
    await expect(readArtifact(join(dir, 'x.json'))).rejects.toThrow(/x\.json is not a bench artifact of format 1/);
  });
});
