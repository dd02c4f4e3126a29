/**
 * Every byte of a bundle is compared with its manifest: by command, and in the background of a process that serves it.
 */
import { cp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeEach, describe, expect, test, vi } from 'vitest';
import { runBundleVerify } from '../../../services/export.ts';
import { type Bundle, type Manifest, openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { type VerifyProgress, verifyBundle, verifyInBackground } from '../../../services/lib/model/bundle/integrity.ts';
import { GOLDENS, readJsonFile, temporaryFolder } from '../../support/models.ts';

const parent = await temporaryFolder();
const LLM = join(GOLDENS, 'qwen2-tied');
const original = join(parent, 'original');
await exportBundle({ llm: LLM, to: original, precision: 'fp32' });

let copies = 0;
async function copy(): Promise<string> {
  const dir = join(parent, `copy-${copies++}`);
  await cp(original, dir, { recursive: true });
  return dir;
}
/** @returns the SHA-256 that the manifest expects of the file. */
async function flipByte(dir: string, path: string): Promise<string> {
  const bytes = await readFile(join(dir, path));
  bytes[100]! ^= 1;
  await writeFile(join(dir, path), bytes);
  const { llm } = await readJsonFile<Manifest>(join(dir, 'manifest.json'));
  return llm.files.find((file) => file.path === path)!.sha256;
}
const invalid = (...parts: string[]) =>
  expect.objectContaining({ code: 'bundle_invalid', message: expect.stringMatching(new RegExp(parts.join('.*'))) });

describe('verifying a bundle', () => {
  test('verifying an intact bundle reads every byte and reports progress', async () => {
    const bundle = await openBundle(original);
    const seen: VerifyProgress[] = [];
    await verifyBundle(bundle, { onProgress: (progress) => seen.push(progress) });
    expect(new Set(seen.map(({ path }) => path))).toEqual(
      new Set(['llm/model.onnx', 'llm/model.bin', 'tokenizer.json']),
    );
    expect(seen.at(-1)).toMatchObject({ done: seen[0]!.total });
    expect(seen.map(({ done }) => done)).toEqual(seen.map(({ done }) => done).toSorted((a, b) => a - b));
  });

  test('verifying a bundle finds one flipped byte, and names the file and both digests', async () => {
    const dir = await copy();
    const expected = await flipByte(dir, 'llm/model.bin');
    const bundle = await openBundle(dir); // sizes are right
    await expect(verifyBundle(bundle)).rejects.toThrow(
      invalid('llm/model.bin', `SHA-256 (?!${expected})[0-9a-f]{64}`, expected),
    );
  });

  test('verifying a bundle refuses a manifest whose fingerprint is not that of its files', async () => {
    const dir = await copy();
    const manifest = await readJsonFile<Manifest>(join(dir, 'manifest.json'));
    await writeFile(join(dir, 'manifest.json'), JSON.stringify({ ...manifest, fingerprint: '0'.repeat(64) }));
    await expect(verifyBundle(await openBundle(dir))).rejects.toThrow(invalid('fingerprint', '0'.repeat(64)));
  });

  test('verifying a bundle names a file that cannot be read', async () => {
    const dir = await copy();
    const bundle = await openBundle(dir);
    await rm(join(dir, 'llm/model.bin'));
    await expect(verifyBundle(bundle)).rejects.toThrow(
      invalid('llm/model.bin cannot be read: it does not exist', 'ENOENT'),
    );
  });

  test('verifying a bundle ends with the reason of its signal when it is aborted', async () => {
    const abort = new AbortController();
    const verifying = verifyBundle(await openBundle(original), {
      signal: abort.signal,
      onProgress: () => abort.abort(new Error('stop')),
    });
    await expect(verifying).rejects.toThrow('stop');
  });
});

describe('the command bundle verify', () => {
  test('the command bundle verify says how many files and bytes it has read', async () => {
    const { fingerprint, llm, tokenizer } = await readJsonFile<Manifest>(join(original, 'manifest.json'));
    const files = [...llm.files, ...tokenizer.files];
    const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
    const found = await runBundleVerify(original);
    expect(found).toEqual({ name: 'qwen2-tied', fingerprint, files: files.length, bytes });
  });

  test('the command bundle verify fails for a damaged bundle', async () => {
    const dir = await copy();
    await flipByte(dir, 'llm/model.onnx');
    await expect(runBundleVerify(dir)).rejects.toThrow(invalid('llm/model.onnx is damaged'));
  });
});

describe('verifying in the background', () => {
  const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };
  const onDamage = vi.fn();
  const lines = () => [log.info, log.warn, log.error].map(({ mock }) => mock.calls.length);
  const inBackground = (bundle: Bundle, signal = new AbortController().signal) =>
    verifyInBackground(bundle, signal, log, onDamage);
  beforeEach(() => {
    for (const mock of [log.info, log.warn, log.error, onDamage]) mock.mockClear();
  });

  test('verifying in the background logs once that an intact bundle is intact', async () => {
    await inBackground(await openBundle(original));
    expect(lines()).toEqual([1, 0, 0]);
    expect(onDamage).not.toHaveBeenCalled();
  });

  test('verifying in the background reports a flipped byte, once', async () => {
    const dir = await copy();
    await flipByte(dir, 'llm/model.bin');
    await inBackground(await openBundle(dir));
    expect(lines()).toEqual([0, 0, 1]);
    expect(onDamage.mock.calls).toEqual([[invalid('llm/model.bin is damaged')]]);
  });

  test('verifying in the background leaves the event loop to others between small pieces', async () => {
    let turns = 0;
    let verifying = true;
    const count = () => {
      turns++;
      if (verifying) setImmediate(count);
    };
    setImmediate(count);
    await inBackground(await openBundle(original));
    verifying = false;
    expect(turns).toBeGreaterThan(3); // 3 files, with at least one rest each
  });

  test('verifying in the background ends at once and says nothing when the process stops', async () => {
    const dir = await copy();
    await flipByte(dir, 'llm/model.bin');
    const bundle = await openBundle(dir);
    const abort = new AbortController();
    const verifying = inBackground(bundle, abort.signal);
    abort.abort(new Error('draining'));
    await verifying;
    await inBackground(bundle, AbortSignal.abort(new Error('draining')));
    expect(lines()).toEqual([0, 0, 0]);
    expect(onDamage).not.toHaveBeenCalled();
  });

  test('verifying in the background does not take another export for damage', async () => {
    const dir = await copy();
    const bundle = await openBundle(dir);
    await exportBundle({ llm: LLM, to: dir, precision: 'int8' });
    await inBackground(bundle);
    expect(lines()).toEqual([0, 1, 0]);
    await rename(dir, `${dir}-moved`);
    await inBackground(bundle);
    expect(lines()).toEqual([0, 2, 0]);
    expect(onDamage).not.toHaveBeenCalled();
  });
});
