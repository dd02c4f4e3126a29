/** KV on disk: what is read is what was saved, whatever happens to the files, and the folder keeps to its bound. */
import { execFileSync } from 'node:child_process';
import {
  chmod,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { formOf, HEADER_BYTES, readHeader, writeHeader } from '../../../services/lib/kv/disk/extent.ts';
import type { KvDisk } from '../../../services/lib/kv/disk/kv-disk.ts';
import { BLOCK_TOKENS, chainOf, sharedBlocks } from '../../../services/lib/kv/prefix.ts';
import { metrics } from '../../../services/lib/process/metrics.ts';
import type { TokenPrompt } from '../../../services/lib/request/token-prompt.ts';
import { FakeEngine, HIDDEN, LAYOUT } from '../../support/fake-engine.ts';
import {
  bytesIn,
  openDisk,
  openFolder,
  promptOf,
  restoreAll,
  SLOW_ENGINE,
  saveAll,
  withFolder,
} from '../../support/kv-on-disk.ts';

const CAPACITY = 700;
/** Shrinking would take minutes: every step makes a folder. */
const RUNS = { numRuns: 30, endOnFailure: true };
const countOf = async (metric: { get(): Promise<{ values: { value: number }[] }> }) =>
  (await metric.get()).values.reduce((sum, { value }) => sum + value, 0);

/** Prompts that begin alike: each takes a part of one of two texts and goes on with a number of its own. */
const promptArbitrary = fc
  .tuple(fc.nat(1), fc.nat(620), fc.nat(60), fc.nat(28))
  .map(([text, begin, rest, own]) => [
    ...Array.from({ length: begin }, (_, i) => (i * (text + 3)) % 29),
    ...new Array<number>(rest).fill(own),
  ]);

/** Names of the files that hold a prompt. */
const extentsOf = (disk: KvDisk, prompt: TokenPrompt) => {
  const chain = chainOf(prompt, '');
  return disk.restorable(chain, 0, chain.length, SLOW_ENGINE)?.files.map(({ name }) => name) ?? [];
};

/** Blocks of a prompt that the others hold from its beginning on. */
const known = (prompt: readonly number[], others: readonly (readonly number[])[]) => {
  const chain = chainOf(promptOf(prompt), '');
  return Math.max(0, ...others.map((other) => sharedBlocks(chain, chainOf(promptOf(other), ''))));
};

test('any prompt gets back what was saved of its beginning, also after the folder was opened anew', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(promptArbitrary, { minLength: 1, maxLength: 5 }), promptArbitrary, (saved, asked) =>
      withFolder(async (dir) => {
        const engine = new FakeEngine(2, CAPACITY);
        const disk = await openDisk(engine, dir);
        for (const prompt of saved) {
          expect(await saveAll(engine, disk, promptOf(prompt))).toBe(Math.floor(prompt.length / BLOCK_TOKENS));
        }
        const expected = known(asked, saved);
        expect(await restoreAll(engine, disk, promptOf(asked))).toBe(expected);
        expect(await restoreAll(engine, await openDisk(engine, dir), promptOf(asked))).toBe(expected);
        const has = Math.floor(expected / 2);
        expect(await restoreAll(engine, disk, promptOf(asked), { has })).toBe(expected);
      }),
    ),
    RUNS,
  );
});

test('a prompt of another tenant, of other soft tokens or of another model gets nothing', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    const disk = await openDisk(engine, dir);
    const ids = Array.from({ length: 64 }, (_, i) => i % 29);
    const soft = {
      positions: Int32Array.of(0, 20),
      vectors: Float32Array.from({ length: 2 * HIDDEN }, (_, i) => i + 1),
    };
    await saveAll(engine, disk, promptOf(ids, soft), 'tenant');
    expect(await restoreAll(engine, disk, promptOf(ids, soft), { tenant: 'tenant' })).toBe(4);
    expect(await restoreAll(engine, disk, promptOf(ids, soft), { tenant: 'other' })).toBe(0);
    expect(await restoreAll(engine, disk, promptOf(ids), { tenant: 'tenant' })).toBe(0);
    const vectors = soft.vectors.slice();
    vectors[HIDDEN] = 1.5; // of the second one, in the second block
    expect(await restoreAll(engine, disk, promptOf(ids, { ...soft, vectors }), { tenant: 'tenant' })).toBe(1);
    const other = await openDisk(engine, dir, { fingerprint: 'g' });
    expect(await restoreAll(engine, other, promptOf(ids, soft), { tenant: 'tenant' })).toBe(0);
    const int8 = await openDisk(engine, dir, { type: 'int8' });
    expect(await restoreAll(engine, int8, promptOf(ids, soft), { tenant: 'tenant' })).toBe(0);
    expect(await bytesIn(dir)).toBeGreaterThan(0); // files of another model are not damaged ones
  }));

test('a file that was cut, damaged or renamed gives nothing wrong, and is deleted', async () => {
  const prompt = Array.from({ length: 600 }, (_, i) => (i * 7) % 29);
  const damages = fc.oneof(
    fc.record({ kind: fc.constant('cut' as const), at: fc.nat() }),
    fc.record({ kind: fc.constant('flip' as const), at: fc.nat(), bit: fc.nat(7) }),
    fc.record({ kind: fc.constant('grow' as const), at: fc.nat(300) }),
    fc.record({ kind: fc.constant('swap' as const), at: fc.nat() }),
  );
  await fc.assert(
    fc.asyncProperty(damages, fc.nat(2), fc.boolean(), (damage, which, isOpen) =>
      withFolder(async (dir) => {
        const engine = new FakeEngine(2, CAPACITY);
        const disk = await openDisk(engine, dir);
        await saveAll(engine, disk, promptOf(prompt));
        const names = (await readdir(dir)).filter((name) => name.endsWith('.kv')).sort();
        expect(names).toHaveLength(3);
        const path = join(dir, names[which]!);
        const content = await readFile(path);
        if (damage.kind === 'cut') await truncate(path, damage.at % content.length);
        else if (damage.kind === 'grow') await writeFile(path, Buffer.alloc(damage.at + 1), { flag: 'a' });
        else if (damage.kind === 'flip') {
          content[damage.at % content.length]! ^= 1 << damage.bit;
          await writeFile(path, content);
        } else await rename(join(dir, names[(which + 1) % 3]!), path);
        const reader = isOpen ? disk : await openDisk(engine, dir);
        const blocks = await restoreAll(engine, reader, promptOf(prompt));
        const isPadding = damage.kind === 'grow' && isOpen; // whoever knows the length reads no more than that
        expect(blocks === 37).toBe(isPadding);
        if (isPadding) return;
        // Saved again it is whole, and no rest of the damage is left: a swap damages two files.
        await saveAll(engine, reader, promptOf(prompt));
        await restoreAll(engine, reader, promptOf(prompt));
        expect(await saveAll(engine, reader, promptOf(prompt))).toBe(37);
        expect(await restoreAll(engine, await openDisk(engine, dir), promptOf(prompt))).toBe(37);
      }),
    ),
    { ...RUNS, numRuns: 40 },
  );
});

test('a worker that was killed while it wrote leaves whole files and a rest that is deleted', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    const prompt = Array.from({ length: 600 }, (_, i) => (i * 7) % 29);
    await saveAll(engine, await openDisk(engine, dir), promptOf(prompt));
    const names = (await readdir(dir)).filter((name) => name.endsWith('.kv'));
    const chain = chainOf(promptOf(prompt), '');
    const last = Buffer.from(chain.at(-1)!, 'base64').toString('hex');
    const name = names.find((each) => each.includes(last))!;
    // Killed at any byte: the file has its temporary name until all of it is there.
    const content = await readFile(join(dir, name));
    for (const length of [0, 1, HEADER_BYTES - 1, HEADER_BYTES, content.length - 1, content.length]) {
      await rm(join(dir, name), { force: true });
      const temporary = join(dir, `${name}.00000000-0000-4000-8000-000000000000.tmp`);
      await writeFile(temporary, content.subarray(0, length));
      expect(await restoreAll(engine, await openDisk(engine, dir), promptOf(prompt))).toBe(32);
      expect(await readdir(dir)).toContain(`${name}.00000000-0000-4000-8000-000000000000.tmp`); // another may write it
      await utimes(temporary, 1000, 1000);
      await openDisk(engine, dir);
      expect(await readdir(dir)).not.toContain(`${name}.00000000-0000-4000-8000-000000000000.tmp`);
    }
  }));

test('the folder never holds more than its bound, and the tenant with the most loses what it used least', async () => {
  const form = formOf({ fingerprint: 'f', computedBy: 'a test' }, LAYOUT, 'float32');
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 6 }),
      fc.array(fc.tuple(fc.constantFrom('a', 'b'), promptArbitrary), { minLength: 1, maxLength: 12 }),
      (files, prompts) =>
        withFolder(async (dir) => {
          const maxBytes = files * form.fileBytes;
          const engine = new FakeEngine(2, CAPACITY);
          const disk = await openDisk(engine, dir, { maxBytes });
          for (const [tenant, prompt] of prompts) {
            await saveAll(engine, disk, promptOf(prompt), tenant);
            expect(await bytesIn(dir)).toBeLessThanOrEqual(maxBytes);
          }
          const smaller = await openFolder(engine, dir, { maxBytes: form.fileBytes });
          expect(smaller.bytes).toBe(await bytesIn(dir));
          expect(smaller.bytes).toBeLessThanOrEqual(form.fileBytes);
        }),
    ),
    RUNS,
  );
  await withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    const disk = await openDisk(engine, dir, { maxBytes: 4 * form.fileBytes });
    const of = (own: number) => promptOf(new Array(256).fill(own));
    await saveAll(engine, disk, of(1), 'quiet');
    for (let own = 2; own < 9; own++) {
      await saveAll(engine, disk, of(own), 'busy');
      expect(await restoreAll(engine, disk, of(2), { tenant: 'busy' })).toBe(16); // used last each time
      await disk.used(chainOf(of(2), 'busy'));
    }
    expect(await restoreAll(engine, disk, of(1), { tenant: 'quiet' })).toBe(16);
    expect(await restoreAll(engine, disk, of(6), { tenant: 'busy' })).toBe(0);
    expect(await restoreAll(engine, disk, of(7), { tenant: 'busy' })).toBe(16);
    // The order outlives the process.
    const again = await openDisk(engine, dir, { maxBytes: 3 * form.fileBytes });
    expect(await restoreAll(engine, again, of(7), { tenant: 'busy' })).toBe(0);
    expect(await restoreAll(engine, again, of(8), { tenant: 'busy' })).toBe(16);
    expect(await restoreAll(engine, again, of(2), { tenant: 'busy' })).toBe(16);
  });
});

test('two workers share a folder: each reads what the other wrote, and misses what the other deleted', async () => {
  const form = formOf({ fingerprint: 'f', computedBy: 'a test' }, LAYOUT, 'float32');
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(fc.nat(1), promptArbitrary), { minLength: 2, maxLength: 10 }), (steps) =>
      withFolder(async (dir) => {
        const engines = [new FakeEngine(2, CAPACITY), new FakeEngine(2, CAPACITY)];
        const maxBytes = 4 * form.fileBytes;
        const disks = await Promise.all(engines.map((engine) => openDisk(engine, dir, { maxBytes })));
        expect(disks[0]!.folderId).toBe(disks[1]!.folderId);
        for (const [who, prompt] of steps) {
          const other = 1 - who;
          await disks[who]!.lookAround();
          await Promise.all([
            saveAll(engines[who]!, disks[who]!, promptOf(prompt)),
            restoreAll(engines[other]!, disks[other]!, promptOf(prompt)),
          ]);
          await disks[other]!.lookAround();
          const saved = disks[who]!.savedBlocks(chainOf(promptOf(prompt), ''));
          expect(saved).toBe(Math.floor(prompt.length / BLOCK_TOKENS));
          expect(await restoreAll(engines[other]!, disks[other]!, promptOf(prompt))).toBe(saved);
        }
      }),
    ),
    RUNS,
  );
});

test('the folder is for its user alone, and so is every file; what is not its own is left alone', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    await mkdir(dir, { mode: 0o755 });
    await chmod(dir, 0o755);
    const prompt = promptOf(new Array(64).fill(5));
    await saveAll(engine, await openDisk(engine, dir), prompt);
    expect((await stat(dir)).mode & 0o777).toBe(0o700);
    for (const name of await readdir(dir)) expect((await stat(join(dir, name))).mode & 0o077).toBe(0);

    // Hostile: a link, a pipe and a folder under the names of extents; and something of somebody else.
    const [name] = (await readdir(dir)).filter((each) => each.endsWith('.kv'));
    const [form] = name!.split('-');
    const named = (digit: string) => `${form}-${'0'.repeat(16)}-${digit.repeat(64)}.kv`;
    await symlink('/etc/passwd', join(dir, named('1')));
    execFileSync('mkfifo', [join(dir, named('2'))]);
    await mkdir(join(dir, named('3')));
    await writeFile(join(dir, 'notes.txt'), 'mine');
    const disk = await openDisk(engine, dir);
    expect(await restoreAll(engine, disk, prompt)).toBe(4);
    expect(await readFile('/etc/passwd', 'utf8')).toContain('root');
    expect(await readFile(join(dir, 'notes.txt'), 'utf8')).toBe('mine');
  }));

test('a folder that others can use, or a bound that is too small, is refused with a remedy', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    await mkdir(dir);
    await writeFile(join(dir, 'notes.txt'), 'a folder that holds other things too is not narrowed');
    await chmod(dir, 0o755);
    await expect(openFolder(engine, dir)).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringMatching(/--kv-disk-dir .* chmod it to 700/),
    });
    await expect(openFolder(engine, dir, { maxBytes: 100 })).rejects.toMatchObject({ code: 'config_invalid' });
    await expect(openFolder(engine, join(dir, 'notes.txt'))).rejects.toMatchObject({ code: 'path_unusable' });
  }));

test('a disk that fails is counted, and left alone after some failures', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    const disk = await openDisk(engine, dir);
    const prompt = promptOf(new Array(600).fill(5));
    await saveAll(engine, disk, prompt);
    const before = await countOf(metrics.kvDiskErrors);
    await rm(dir, { recursive: true });
    await writeFile(dir, 'where the folder was');
    expect(await restoreAll(engine, disk, prompt)).toBe(0);
    expect(await saveAll(engine, disk, promptOf(new Array(600).fill(6)))).toBe(0);
    expect(await countOf(metrics.kvDiskErrors)).toBeGreaterThan(before);
    // A look at it that succeeds is enough for it to be read again.
    for (let i = 0; i < 4; i++) await disk.lookAround();
    await rm(dir);
    await disk.lookAround();
    expect(await saveAll(engine, await openDisk(engine, dir), prompt)).toBe(37);
    await disk.lookAround();
    expect(await restoreAll(engine, disk, prompt)).toBe(37);
  }));

test('a folder that is deleted while a worker runs is made again, under its old name', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    const disk = await openDisk(engine, dir);
    const prompt = promptOf(new Array(600).fill(5));
    await saveAll(engine, disk, prompt);
    await rm(dir, { recursive: true });
    await disk.lookAround();
    expect(disk.savedBlocks(chainOf(prompt, ''))).toBe(0);
    expect((await stat(dir)).mode & 0o777).toBe(0o700);
    expect(await saveAll(engine, disk, prompt)).toBe(37);
    const again = await openDisk(engine, dir);
    expect(again.folderId).toBe(disk.folderId);
    expect(await restoreAll(engine, again, prompt)).toBe(37);
  }));

test('a folder that others can use by now is neither read nor written', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    const disk = await openDisk(engine, dir);
    const prompt = promptOf(new Array(600).fill(5));
    await saveAll(engine, disk, prompt);
    const before = await readdir(dir);
    await chmod(dir, 0o777);
    await disk.lookAround();
    expect(await restoreAll(engine, disk, prompt)).toBe(0);
    expect(await saveAll(engine, disk, promptOf(new Array(600).fill(6)))).toBe(0);
    expect(await readdir(dir)).toEqual(before);
    await chmod(dir, 0o700);
    await disk.lookAround();
    expect(await restoreAll(engine, disk, prompt)).toBe(37);
  }));

test('what one worker uses is not what another one deletes', () =>
  withFolder(async (dir) => {
    const form = formOf({ fingerprint: 'f', computedBy: 'a test' }, LAYOUT, 'float32');
    const engine = new FakeEngine(2, CAPACITY);
    const of = (own: number) => promptOf(new Array(256).fill(own));
    const maxBytes = 2 * form.fileBytes;
    const [reads, writes] = [await openDisk(engine, dir, { maxBytes }), await openDisk(engine, dir, { maxBytes })];
    await saveAll(engine, writes, of(1));
    await saveAll(engine, writes, of(2));
    await reads.lookAround();
    // The first is the older one, for whoever does not see that somebody uses it. All of this happens within a ms.
    const later = Date.now() / 1000 + 10;
    const [used] = extentsOf(reads, of(1));
    await utimes(join(dir, used!), later, later);
    await saveAll(engine, writes, of(3));
    await reads.lookAround();
    expect(await restoreAll(engine, reads, of(1))).toBe(16);
    expect(await restoreAll(engine, reads, of(2))).toBe(0);
    expect(await restoreAll(engine, reads, of(3))).toBe(16);
  }));

test('KV is read only where that is thought to be quicker than computing, and for no longer than that takes', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    const disk = await openDisk(engine, dir);
    const prompt = promptOf(new Array(600).fill(5));
    const chain = chainOf(prompt, '');
    await saveAll(engine, disk, prompt);
    expect(disk.restorable(chain, 0, chain.length, SLOW_ENGINE)).toMatchObject({ blocks: 37 });
    expect(disk.restorable(chain, 0, 20, SLOW_ENGINE)).toMatchObject({ blocks: 20 });
    expect(disk.restorable(chain, 37, chain.length, SLOW_ENGINE)).toBeUndefined();
    expect(disk.restorable(chain, 0, chain.length, 1e9)).toBeUndefined();
    expect(disk.restorable(chain, 0, chain.length, 0)).toBeUndefined(); // not known yet
    const found = disk.restorable(chain, 0, chain.length, SLOW_ENGINE)!;
    const gone = AbortSignal.abort(new Error('hung up'));
    expect(await disk.restore(1, 3, found, gone)).toBe(3);
  }));

test('before it serves a worker reads some of what is there, and all its slots stay free', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    const restored = async () => countOf(metrics.kvDiskRestored);
    const before = await restored();
    await (await openDisk(engine, dir)).warmUp(); // nothing is there
    await saveAll(engine, await openDisk(engine, dir), promptOf(new Array(600).fill(5)));
    engine.write(1, 0, new Array(CAPACITY).fill(9));
    const disk = await openDisk(engine, dir);
    await disk.warmUp();
    expect(engine.read(1, 592)).toEqual(new Array(592).fill(5));
    engine.pool.assertConserved(0);
    expect(await restored()).toBe(before); // no prompt was spared anything
    // An extent that ends beyond a slot is not read into it.
    const small = new FakeEngine(1, 300);
    await (await openDisk(small, dir)).warmUp();
    expect(small.read(0, 256)).toEqual(new Array(256).fill(5));
    small.pool.assertConserved(0);
  }));

test('a prompt that has left its slot is not saved', () =>
  withFolder(async (dir) => {
    const engine = new FakeEngine(2, CAPACITY);
    const disk = await openDisk(engine, dir);
    const chain = chainOf(promptOf(new Array(600).fill(5)), '');
    const saved = await disk.save({ slot: 0, chain, tenant: '' }, 0, chain.length, () => false);
    expect(saved).toEqual({ blocks: 0, bytes: 0 });
    expect(await bytesIn(dir)).toBe(0);
  }));

test('a header of any bytes is read as what was written or refused', () => {
  const form = formOf({ fingerprint: 'f', computedBy: 'a test' }, LAYOUT, 'float32');
  const hash = (i: number) => Buffer.alloc(32, i).toString('base64');
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: form.blocks }),
      fc.nat(99),
      fc.nat(HEADER_BYTES - 1),
      fc.nat(255),
      (n, k, at, byte) => {
        const header = { first: k * form.blocks, hashes: Array.from({ length: n }, (_, i) => hash(i)), crc32: 7 };
        const bytes = Buffer.alloc(HEADER_BYTES);
        writeHeader(form, header, bytes);
        const fileBytes = HEADER_BYTES + (n * (form.fileBytes - HEADER_BYTES)) / form.blocks;
        expect(readHeader(form, bytes, fileBytes)).toEqual(header);
        expect(readHeader(form, bytes, fileBytes + 1)).toBeUndefined();
        const isSame = bytes[at] === byte;
        bytes[at] = byte;
        expect(readHeader(form, bytes, fileBytes) !== undefined).toBe(isSame);
      },
    ),
  );
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 2048 }),
      (bytes) => readHeader(form, Buffer.from(bytes), bytes.length) === undefined,
    ),
  );
});
