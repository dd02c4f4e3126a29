/** What the CPU computes in the check of a device: computed once, and again whenever what is kept cannot be trusted. */
import { chmod, mkdtemp, readdir, readFile, rename, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { assertReferenceFits } from '../../services/lib/engine/memory.ts';
import type { PrepackedCache } from '../../services/lib/engine/ort-settings.ts';
import { keptReference, referenceName } from '../../services/lib/engine/reference.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';

const LOGITS = Float32Array.from({ length: 30 }, (_, i) => Math.sin(i) * 9);
const FINGERPRINT = 'ab'.repeat(32);

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'llavacode-reference-'));
});
afterAll(() => rm(root, { recursive: true, force: true }));

/** A folder of its own, what was logged, and how often the CPU had to compute. */
async function place(name: string, dir = join(root, name)) {
  const lines: string[] = [];
  const log = {
    info: ({ reason }: { reason: string }) => lines.push(reason),
    warn: (_: object, text: string) => lines.push(text),
  } as unknown as PrepackedCache['log'];
  const files = new FileGuard({ info: () => {}, warn: () => {}, error: () => {} });
  let computed = 0;
  const ask = (fingerprint = FINGERPRINT, count = LOGITS.length) =>
    keptReference({ dir, fingerprint, log, files }, count, async () => {
      computed++;
      return LOGITS;
    });
  return { dir, path: join(dir, referenceName(FINGERPRINT)), lines, ask, computed: () => computed };
}

test('it is computed once, and what is kept is the same, for this user alone', async () => {
  const { dir, path, lines, ask, computed } = await place('once');
  for (let i = 0; i < 3; i++) expect(await ask()).toEqual(LOGITS);
  expect(computed()).toBe(1);
  expect(lines).toEqual(['not there yet']);
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  expect(await readdir(dir)).toEqual([referenceName(FINGERPRINT)]);
});

test.each<[string, (path: string) => Promise<unknown>, RegExp]>([
  ['a changed byte', async (path) => flip(path, 40), /^damaged/],
  ['a changed digest', async (path) => flip(path, 3), /^damaged/],
  ['a part that is missing', async (path) => truncate(path, 100), /^100 bytes are not its length/],
  ['another user who can write it', async (path) => chmod(path, 0o666), /alone$/],
  ['a link in its place', async (path) => link(path), /^cannot be read/],
])('with %s it is computed again, and kept anew', async (name, damage, reason) => {
  const { path, lines, ask, computed } = await place(name);
  await ask();
  await damage(path);
  expect(await ask()).toEqual(LOGITS);
  expect(await ask()).toEqual(LOGITS);
  expect(computed()).toBe(2);
  expect(lines).toEqual(['not there yet', expect.stringMatching(reason)]);
});

async function flip(path: string, at: number): Promise<void> {
  const bytes = await readFile(path);
  bytes[at]! ^= 1;
  await writeFile(path, bytes);
}

async function link(path: string): Promise<void> {
  await rename(path, `${path}.elsewhere`);
  await symlink(`${path}.elsewhere`, path);
}

test('what was computed for another bundle does not count, whatever its file is called', async () => {
  const { dir, path, lines, ask, computed } = await place('foreign');
  const other = 'cd'.repeat(32);
  await ask(other);
  await rename(join(dir, referenceName(other)), path);
  await ask();
  expect(computed()).toBe(2);
  expect(lines.at(-1)).toMatch(/of another bundle/);
});

test('where nothing can be kept it is computed each time, with a warning', async () => {
  await writeFile(join(root, 'a-file'), '');
  const { lines, ask, computed } = await place('blocked', join(root, 'a-file', 'within'));
  for (let i = 0; i < 2; i++) expect(await ask()).toEqual(LOGITS);
  expect(computed()).toBe(2);
  expect(lines).toEqual(Array(2).fill(expect.stringMatching(/^cannot keep what the CPU computes/)));
  expect(await keptReference(undefined, LOGITS.length, async () => LOGITS)).toBe(LOGITS);
});

test('a machine that cannot hold the model for the comparison is told so, with the arithmetic and a way out', () => {
  const need = {
    weights: 2 ** 53,
    kv: 0,
    slots: 1,
    perToken: 1,
    staged: 0,
    stepRows: 1,
    logits: 0,
    verify: 0,
    scratch: 0,
  };
  const check = (weights: number) => () => assertReferenceFits({ ...need, weights }, 'the test GPU', 'reference-x.bin');
  expect(check(2 ** 20)).not.toThrow();
  expect(check(2 ** 53)).toThrowError(
    expect.objectContaining({
      code: 'provider_unavailable',
      message: expect.stringMatching(
        /^the test GPU cannot be checked here: .*takes 8388608\.0 GiB .*it has \d+\.\d GiB\. .*bring reference-x\.bin .*use --provider cpu/,
      ),
    }),
  );
});
