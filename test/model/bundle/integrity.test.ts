/**
 * Every byte of a bundle is compared with its manifest: by command, and before and while a process serves it.
 */
import { chmod, cp, readdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { runBundleVerify } from '../../../services/export.ts';
import { filesOf, type Manifest, openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { FileGuard, type VerifyProgress, verifyBundle } from '../../../services/lib/model/bundle/integrity.ts';
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

  test('a manifest whose fingerprint is not that of its files is refused when the bundle is opened', async () => {
    const dir = await copy();
    const manifest = await readJsonFile<Manifest>(join(dir, 'manifest.json'));
    const [first, ...rest] = manifest.llm.files;
    const forged = [
      { ...manifest, fingerprint: '0'.repeat(64) },
      { ...manifest, llm: { ...manifest.llm, files: [{ ...first!, sha256: '0'.repeat(64) }, ...rest] } },
    ];
    for (const each of forged) {
      await writeFile(join(dir, 'manifest.json'), JSON.stringify(each));
      await expect(openBundle(dir)).rejects.toThrow(invalid('fingerprint', 'the manifest says', each.fingerprint));
    }
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

describe('the files that a process serves from', () => {
  const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };
  const onDamage = vi.fn();
  const abort = new AbortController();
  const bytesRead = () => log.info.mock.calls.map(([fields]) => (fields as { bytes_read: number }).bytes_read);
  /** A guard of a bundle's weights, as a process that has just started has it. */
  async function guardOf(dir: string): Promise<FileGuard> {
    const { manifest } = await openBundle(dir);
    const guard = new FileGuard(log);
    guard.serveFrom(dir, filesOf(manifest, ['llm']));
    return guard;
  }
  const weightBytes = async (dir: string) =>
    filesOf((await openBundle(dir)).manifest, ['llm']).reduce((sum, { bytes }) => sum + bytes, 0);
  /** Makes all files look as if nobody had written them for a while. */
  const settle = () => vi.spyOn(Date, 'now').mockReturnValue(Date.now() + 60_000);

  beforeEach(() => {
    for (const mock of [log.info, log.warn, log.error, onDamage]) mock.mockClear();
    vi.restoreAllMocks();
  });
  afterAll(() => abort.abort());

  test('files are read at the first start, and not again while nobody has changed them', async () => {
    const dir = await copy();
    settle();
    for (let start = 1; start <= 3; start++) await (await guardOf(dir)).settled();
    expect(bytesRead()).toEqual([await weightBytes(dir), 0, 0]);
    const folder = join(dir, '.verified');
    expect((await stat(folder)).mode & 0o777).toBe(0o700);
    for (const name of await readdir(folder)) expect((await stat(join(folder, name))).mode & 0o777).toBe(0o600);
  });

  test('a file that was written a moment ago is read at the next start, too', async () => {
    const dir = await copy();
    for (let start = 1; start <= 2; start++) await (await guardOf(dir)).settled();
    expect(bytesRead()).toEqual([await weightBytes(dir), await weightBytes(dir)]);
  });

  test('a byte that is flipped between two starts is found, even if size and mtime are as before', async () => {
    const dir = await copy();
    settle();
    await (await guardOf(dir)).settled();
    const weights = join(dir, 'llm/model.bin');
    const { atime, mtime } = await stat(weights);
    await flipByte(dir, 'llm/model.bin');
    await utimes(weights, atime, mtime);
    const guard = await guardOf(dir);
    await expect(guard.damaged).rejects.toThrow(invalid('llm/model.bin is damaged'));
    await expect(guard.settled()).rejects.toThrow(invalid('llm/model.bin is damaged'));
    expect(log.error).toHaveBeenCalledOnce();
  });

  test('a record that others could have written does not count', async () => {
    const dir = await copy();
    settle();
    await (await guardOf(dir)).settled();
    await chmod(join(dir, '.verified', 'llm%2Fmodel.bin'), 0o666);
    await (await guardOf(dir)).settled();
    expect(bytesRead()[1]).toBe((await stat(join(dir, 'llm/model.bin'))).size);
  });

  test('a byte that is flipped while the file is loaded is found before anything is served', async () => {
    const dir = await copy();
    const guard = await guardOf(dir);
    await guard.settled();
    await flipByte(dir, 'llm/model.bin');
    await expect(guard.settled()).rejects.toThrow(invalid('llm/model.bin is damaged'));
  });

  test('a byte that is flipped while a process serves is damage, told once', async () => {
    const dir = await copy();
    const guard = await guardOf(dir);
    await guard.settled();
    const watching = guard.watch(abort.signal, onDamage);
    await flipByte(dir, 'llm/model.bin');
    await watching;
    expect(onDamage.mock.calls).toEqual([[invalid('llm/model.bin is damaged')]]);
  });

  test('a file that was touched, removed, or replaced by another export is not damage', async () => {
    const dir = await copy();
    const guard = await guardOf(dir);
    await guard.settled();
    const over = new AbortController();
    const watching = guard.watch(over.signal, onDamage);
    await utimes(join(dir, 'llm/model.bin'), 1, 1);
    await exportBundle({ llm: LLM, to: dir, precision: 'int8' });
    await vi.waitUntil(() => log.warn.mock.calls.length === 2, { timeout: 60_000 });
    await rename(dir, `${dir}-moved`);
    over.abort();
    await watching;
    expect(onDamage).not.toHaveBeenCalled();
    expect(log.error).not.toHaveBeenCalled();
  });
});
