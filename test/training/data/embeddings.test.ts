/** Embeddings of chunks in a folder that several runs share. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { SafetensorsFile } from '../../../services/lib/model/checkpoint/safetensors.ts';
import { openSourceNetwork } from '../../../services/lib/model/checkpoint/source-network.ts';
import { Embeddings } from '../../../training/data/embeddings.ts';
import { GOLDENS, temporaryFolder } from '../../support/models.ts';
import { TRAINING_TIMEOUT_MS } from '../../support/training.ts';

const folder = await temporaryFolder();

test('a chunk has an embedding for each of its soft tokens, kept apart from those of other numbers', {
  timeout: TRAINING_TIMEOUT_MS,
}, async () => {
  await using network = await openSourceNetwork(join(GOLDENS, 'qwen2-tied'));
  const dir = join(folder, 'several');
  const chunks = ['a = 1\nb = 2', 'c'].map((text) => ({ path: 'a.py', text }));
  const opened = (softPerChunk?: 1 | 2) =>
    Embeddings.open(dir, network, { maxTokens: 32, softPerChunk }, { folder, threads: 1 });
  const digests: string[] = [];
  for (const softPerChunk of [undefined, 1, 2] as const) {
    const embeddings = await opened(softPerChunk);
    digests.push(embeddings.digest);
    const count = softPerChunk ?? 1;
    expect(embeddings.perChunk).toBe(count);
    await embeddings.add(chunks, () => {});
    const both = await embeddings.of(chunks);
    expect(both).toHaveLength(chunks.length * count * embeddings.dim);
    expect(await embeddings.of([chunks[1]!])).toEqual(both.slice(count * embeddings.dim));
    await embeddings.dispose();
  }
  expect(digests[1]).toBe(digests[0]);
  expect(digests[2]).not.toBe(digests[0]);
});

test('what is encoded is reported within a file, and kept file by file, so that a run that ends loses little', {
  timeout: TRAINING_TIMEOUT_MS,
}, async () => {
  await using network = await openSourceNetwork(join(GOLDENS, 'qwen2-tied'));
  const dir = join(folder, 'many');
  const chunks = Array.from({ length: 600 }, (_, i) => ({ path: `${i}.py`, text: `a = ${i}${' + b'.repeat(40)}` }));
  const opened = () => Embeddings.open(dir, network, { maxTokens: 32 }, { folder, threads: 1 });
  const embeddings = await opened();
  const files = async () => (await readdir(join(dir, embeddings.digest.slice(0, 16)))).length;
  const whole = join(folder, 'undisturbed');
  const other = await Embeddings.open(whole, network, { maxTokens: 32 }, { folder, threads: 1 });
  await other.add(chunks, () => {});
  const reports: number[] = [];
  const stop = new AbortController();
  const stopped = embeddings.add(
    chunks,
    (done) => {
      reports.push(done);
      if (done > 512) stop.abort(new Error('stopped'));
    },
    stop.signal,
  );
  try {
    await expect(stopped).rejects.toThrow('stopped');
    expect(reports.filter((done) => done <= 256).length).toBeGreaterThan(2);
    expect(reports).toEqual(reports.toSorted((a, b) => a - b));
    expect(await files()).toBe(2);
    const again = await opened();
    const left: number[] = [];
    await again.add(chunks, (done) => left.push(done));
    expect(left.at(-1)).toBe(600 - 512);
    expect(await again.of(chunks.toReversed())).toEqual(await other.of(chunks.toReversed()));
    await again.dispose();
  } finally {
    await embeddings.dispose();
    await other.dispose();
  }
});

test('a folder of more files than stay open is read', { timeout: TRAINING_TIMEOUT_MS }, async () => {
  await using network = await openSourceNetwork(join(GOLDENS, 'qwen2-tied'));
  const dir = join(folder, 'files');
  const chunks = Array.from({ length: 70 }, (_, i) => ({ path: `${i}.py`, text: `a = ${i}` }));
  const opened = () => Embeddings.open(dir, network, { maxTokens: 32 }, { folder, threads: 1 });
  const first = await opened();
  for (const chunk of chunks) await first.add([chunk], () => {});
  const second = await opened();
  try {
    expect(await readdir(join(dir, first.digest.slice(0, 16)))).toHaveLength(70);
    expect(await second.of(chunks)).toEqual(await first.of(chunks));
    for (const i of [0, 65, 69]) {
      expect(await second.of([chunks[i]!])).toEqual((await first.of(chunks)).slice(i * 64, (i + 1) * 64));
    }
    using openings = vi.spyOn(SafetensorsFile, 'open');
    await second.of(chunks); // those that were read last stay open
    openings.mockClear();
    await second.of(chunks.slice(-64));
    expect(openings).not.toHaveBeenCalled();
    await second.of([chunks[6]!]);
    await second.of([chunks[0]!]);
    expect(openings).toHaveBeenCalledTimes(1); // that of 0: the file of 6 was used
    openings.mockClear();
    await second.of([chunks[6]!]);
    expect(openings).not.toHaveBeenCalled();
    await second.of([chunks[7]!]); // the longest unused one was closed for that of 0
    expect(openings).toHaveBeenCalledTimes(1);
    // Files that are read at the same time stay open until they are read, however many they are.
    const alone = await Promise.all(chunks.map((chunk) => second.of([chunk])));
    expect(alone).toEqual(await Promise.all(chunks.map((_, i) => first.of([chunks[i]!]))));
  } finally {
    await first.dispose();
    await second.dispose();
  }
});

test('two runs that share a folder at the same time keep what both have encoded', {
  timeout: TRAINING_TIMEOUT_MS,
}, async () => {
  await using network = await openSourceNetwork(join(GOLDENS, 'qwen2-tied'));
  const dir = join(folder, 'embeddings');
  const opened = () => Embeddings.open(dir, network, { maxTokens: 32 }, { folder, threads: 1 });
  const chunk = (i: number) => ({ path: `${i}.py`, text: `a = ${i}` });
  const runs = [await opened(), await opened()];
  await Promise.all(runs.map((run, i) => run.add([chunk(i)], () => {})));
  const vectors = await Promise.all(runs.map((run, i) => run.of([chunk(i)])));
  for (const run of runs) await run.dispose();
  expect(vectors[0]).not.toEqual(vectors[1]);
  const later = await opened();
  try {
    let encoded = 0;
    await later.add([chunk(0), chunk(1)], (done) => {
      encoded = done;
    });
    expect(encoded).toBe(0);
    expect(await later.of([chunk(0), chunk(1)])).toEqual(Float32Array.from(vectors.flatMap((one) => [...one])));
    expect(await readdir(join(dir, later.digest.slice(0, 16)))).toHaveLength(2);
  } finally {
    await later.dispose();
  }
});
