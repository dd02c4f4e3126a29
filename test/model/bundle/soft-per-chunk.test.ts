/** Bundles that make several soft tokens of a chunk, and those that make one: they are what they were. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { openBundle, softPerChunkOf } from '../../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { GOLDENS, temporaryFolder } from '../../support/models.ts';
import { smallestBundle } from '../../support/smallest-bundle.ts';

const parent = await temporaryFolder();
const made = async (name: string, options: Parameters<typeof smallestBundle>[1] = {}) => {
  const dir = join(parent, name);
  await mkdir(dir);
  return smallestBundle(dir, options);
};
const manifestText = (dir: string) => readFile(join(dir, 'manifest.json'), 'utf8');
const manifestOf = async (dir: string) => JSON.parse(await manifestText(dir));

describe('a bundle with one soft token per chunk', () => {
  test('it has the fingerprints and graphs of the release before there could be more', async () => {
    const dir = await made('one');
    const manifest = await manifestOf(dir);
    expect(manifest.fingerprint).toBe('45870db37b0e0086bb23c42067e72b1e7364e5187a1e0021debad3161b4407ed');
    expect(manifest.context.fingerprint).toBe('c43fde8ac9db055ac326abbbe4b25b29df560b032dca008ffb3997d69dfa6c59');
    expect(Object.keys(manifest.context)).toEqual(['fingerprint', 'encoder', 'projector']);
    expect(softPerChunkOf((await openBundle(dir)).manifest)).toBe(1);
  });

  test('a 1 that is asked for changes no byte of its manifest', async () => {
    const dir = await made('asked', { softPerChunk: 1 });
    expect(await manifestText(dir)).toBe(await manifestText(await made('not-asked')));
  });
});

describe('a bundle with several soft tokens per chunk', () => {
  test.each([2, 4, 8] as const)('with %i it says so, and has fingerprints of its own', async (softPerChunk) => {
    const dir = await made(`with-${softPerChunk}`, { softPerChunk });
    const { context, fingerprint } = await manifestOf(dir);
    expect(context.soft_per_chunk).toBe(softPerChunk);
    expect(fingerprint).not.toBe('45870db37b0e0086bb23c42067e72b1e7364e5187a1e0021debad3161b4407ed');
    expect(context.fingerprint).not.toBe('c43fde8ac9db055ac326abbbe4b25b29df560b032dca008ffb3997d69dfa6c59');
    expect(softPerChunkOf((await openBundle(dir)).manifest)).toBe(softPerChunk);
  });

  test.each([
    ['another number', 8],
    ['none', undefined],
    ['one that nobody makes', 3],
  ])('a manifest that says %s is refused', async (_, soft_per_chunk) => {
    const dir = await made(`forged-${soft_per_chunk}`, { softPerChunk: 4 });
    const manifest = await manifestOf(dir);
    const forged = { ...manifest, context: { ...manifest.context, soft_per_chunk } };
    await writeFile(join(dir, 'manifest.json'), JSON.stringify(forged));
    await expect(openBundle(dir)).rejects.toMatchObject({ code: 'bundle_invalid' });
  });

  test('the projector says how many it was trained for, and the command line goes before it', async () => {
    const dir = await made('trained');
    const projector = join(parent, 'trained', 'projector');
    await writeFile(join(projector, 'config.json'), JSON.stringify({ encoder: { soft_per_chunk: 4 } }));
    const llm = join(GOLDENS, 'qwen2-tied');
    const exported = async (softPerChunk?: 1 | 2) => {
      const options = { llm, projector, to: dir, precision: 'fp32', ...(softPerChunk && { softPerChunk }) } as const;
      return softPerChunkOf(await exportBundle(options));
    };
    expect(await exported()).toBe(4);
    expect(await exported(2)).toBe(2);
    expect(await exported(1)).toBe(1);
    await writeFile(join(projector, 'config.json'), JSON.stringify({ encoder: { soft_per_chunk: 5 } }));
    await expect(exported()).rejects.toMatchObject({ code: 'projector_invalid' });
  });
});
