/** Prepacked weights: they give the same logits, are made once, and are made again when they are unusable. */
import { createHash } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { CpuEngineKv } from '../../services/lib/engine/engine-kv.ts';
import type { PrepackedCache } from '../../services/lib/engine/ort-settings.ts';
import { prepackedGraph } from '../../services/lib/engine/prepacked.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import type { SourceNetwork } from '../../services/lib/model/checkpoint/source-network.ts';
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { synthesize } from '../../services/lib/model/checkpoint/synth.ts';
import { buildDecoder } from '../../services/lib/model/graph/decoder.ts';
import type { LayerFormats, TableFormat } from '../../services/lib/model/graph/linear.ts';
import { writeModel } from '../../services/lib/model/graph/onnx.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';

/** A model whose feed-forward matrices are large enough to be shared, while those of attention are not. */
const SHAPE = {
  model_type: 'qwen2',
  hidden_size: 512,
  intermediate_size: 4608,
  num_hidden_layers: 2,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  vocab_size: 4096,
  max_position_embeddings: 128,
  rms_norm_eps: 1e-6,
  rope_theta: 10_000,
  tie_word_embeddings: true,
  hidden_act: 'silu',
};
const INT4 = { bits: 4, block: 32 } as const;

let root: string;
let network: SourceNetwork & { readonly spec: DecoderSpec };
let spec: DecoderSpec;

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'llavacode-prepacked-'));
  await writeFile(join(root, 'config.json'), JSON.stringify(SHAPE));
  network = await synthesize(join(root, 'config.json'), 1);
  spec = network.spec;
});
afterAll(() => rm(root, { recursive: true, force: true }));

/** A decoder's graph in a folder `llm` of its own. */
async function decoder(name: string, layers: LayerFormats, vocabulary: TableFormat): Promise<string> {
  const dir = join(root, name, 'llm');
  await mkdir(dir, { recursive: true });
  await writeModel(buildDecoder(spec, network.weights, { layers, vocabulary, maxPositions: 64 }), dir);
  return join(dir, 'model.onnx');
}

/** A cache of its own, and what it logged. */
async function cache(name: string) {
  const dir = join(root, `${name}-cache`);
  const lines: { level: 'info' | 'warn'; fields: Record<string, unknown> }[] = [];
  const log = {
    info: (fields: Record<string, unknown>) => lines.push({ level: 'info', fields }),
    warn: (fields: Record<string, unknown>) => lines.push({ level: 'warn', fields }),
  } as unknown as PrepackedCache['log'];
  return {
    dir,
    fingerprint: 'f'.repeat(64),
    log,
    lines,
    /** A new one for every load, as if in another process. */
    get files() {
      return guard();
    },
  };
}

const guard = () => new FileGuard({ info: () => {}, warn: () => {}, error: () => {} });

/** What lies in a folder; the records of verified files come when those are old enough. */
const namesIn = async (folder: string) => (await readdir(folder)).filter((name) => name !== '.verified').sort();

/** Logits of a prompt and of three steps after it. */
async function logitsOf(graph: string, prepacked?: PrepackedCache): Promise<Float32Array[]> {
  const pool = new KvPool(new CpuEngineKv(spec, 2, 64));
  const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
  const session = await DecoderSession.load(graph, shape, pool, { threads: 1, prepacked });
  const ids = Int32Array.from({ length: 24 }, (_, i) => (i * 37) % spec.vocab);
  const logits = [await session.chunk({ slot: 0, past: 0, ids, soft: NO_SOFT_TOKENS, logitRows: [0, 23] })];
  for (const i of [0, 1, 2]) {
    logits.push(Float32Array.from(await session.step(Int32Array.of(i, i + 1), Int32Array.of(24 + i, i))));
  }
  await session.dispose();
  return logits;
}

describe.each<[name: string, layers: LayerFormats, vocabulary: TableFormat]>([
  ['int4', INT4, INT4],
  ['w8a8', 'w8a8', { bits: 8, block: 32 }],
  ['fp32', 'fp32', 'fp32'],
])('%s', (name, layers, vocabulary) => {
  test('prepacked weights give the same logits bit for bit, when they are made and when they are found', async () => {
    const graph = await decoder(name, layers, vocabulary);
    const kept = await cache(name);
    const plain = await logitsOf(graph);
    expect(await logitsOf(graph, kept)).toEqual(plain);
    expect(await logitsOf(graph, kept)).toEqual(plain);
    expect(plain.flatMap((logits) => Array.from(logits)).every(Number.isFinite)).toBe(true);
    expect(kept.lines.map(({ level, fields }) => [level, fields['reason']])).toEqual([['info', 'not there yet']]);
  });
});

test('all weights of a page and more are mapped, at offsets from which the kernels can read them', async () => {
  const graph = await decoder('mapped', INT4, INT4);
  const model = await prepackedGraph(graph, await cache('mapped'));
  const places = await placesOf(model);
  const { size } = await stat(join(model, '../model.bin'));
  expect(places.length).toBeGreaterThan(2 * 7 * spec.layers); // seven matrices of a layer: as they were, and packed
  expect(places.filter(({ offset }) => offset % 64 !== 0)).toEqual([]);
  expect(Math.max(...places.map(({ end }) => end))).toBeLessThanOrEqual(size);
  const ordered = places.toSorted((a, b) => a.offset - b.offset);
  expect(ordered.slice(1).filter(({ offset }, i) => offset < ordered[i]!.end)).toEqual([]);
  expect((await stat(model)).size).toBeLessThan(100 * 1024); // of the weights it has only those below a page
});

/** Where the weights of a graph's file lie, those in packed form too. */
async function placesOf(model: string): Promise<{ readonly offset: number; readonly end: number }[]> {
  const text = await readFile(model, 'latin1');
  const plain = text.matchAll(/offset\D{2}(\d+)[\s\S]*?length\D{2}(\d+)/g);
  const packed = text.matchAll(/(\d+);(\d+);\d+/g);
  return [...plain, ...packed].map(([, offset, length]) => ({
    offset: Number(offset),
    end: Number(offset) + Number(length),
  }));
}

describe('the folder', () => {
  let graph: string;
  beforeAll(async () => {
    graph = await decoder('folder', INT4, INT4);
  });

  test('processes that start together make one folder and leave nothing else', async () => {
    const kept = await cache('together');
    const paths = await Promise.all([1, 2, 3].map(() => prepackedGraph(graph, kept)));
    expect(new Set(paths).size).toBe(1);
    const folders = await readdir(kept.dir);
    expect(folders).toHaveLength(1);
    expect(await namesIn(join(kept.dir, folders[0]!))).toEqual(['key.json', 'model.bin', 'model.onnx']);
  });

  test.each([
    ['of another library version', 'made by ONNX Runtime 1.0.0', { runtime: '1.0.0' }],
    ['of another CPU', 'made for another CPU', { cpu: 'abacus' }],
  ])('a folder %s is made again', async (name, reason, change) => {
    const kept = await cache(name);
    const path = await prepackedGraph(graph, kept);
    const keyFile = join(path, '../key.json');
    const key = await readFile(keyFile, 'utf8');
    await writeFile(keyFile, JSON.stringify({ ...JSON.parse(key), ...change }));
    expect(await prepackedGraph(graph, kept)).toBe(path);
    expect(kept.lines.at(-1)?.fields['reason']).toBe(reason);
    expect(await readFile(keyFile, 'utf8')).toBe(key);
    expect(await readdir(kept.dir)).toHaveLength(1);
  });

  test('a folder with a shortened file is made again', async () => {
    const kept = await cache('short');
    const plain = await logitsOf(graph, kept);
    const path = await prepackedGraph(graph, kept);
    const weights = join(path, '../model.bin');
    const { size } = await stat(weights);
    await truncate(weights, size - 1);
    expect(await logitsOf(graph, kept)).toEqual(plain);
    expect(kept.lines.at(-1)?.fields['reason']).toMatch(/model\.bin is damaged/);
  });

  test('a folder with a flipped byte in its weights is made again', async () => {
    const kept = await cache('flipped');
    const plain = await logitsOf(graph, kept);
    const weights = join(await prepackedGraph(graph, kept), '../model.bin');
    const before = await readFile(weights);
    const after = Buffer.from(before);
    after[before.length >> 1]! ^= 1;
    await writeFile(weights, after);
    expect(await logitsOf(graph, kept)).toEqual(plain);
    expect(kept.lines.at(-1)?.fields['reason']).toMatch(/model\.bin is damaged: it has SHA-256/);
    expect((await readFile(weights)).equals(before)).toBe(true);
  });

  test('a folder is for its user alone, and one that others could have written is made again', async () => {
    const kept = await cache('wide');
    const folder = join(await prepackedGraph(graph, kept), '..');
    const modes = async () =>
      Promise.all(['', 'model.bin', 'key.json'].map(async (name) => (await stat(join(folder, name))).mode & 0o777));
    expect(await modes()).toEqual([0o700, 0o600, 0o600]);
    await chmod(folder, 0o770);
    await prepackedGraph(graph, kept);
    expect(kept.lines.at(-1)?.fields['reason']).toMatch(/alone/);
    expect(await modes()).toEqual([0o700, 0o600, 0o600]);
  });

  test('weights are not prepacked from files that are not as their digests say', async () => {
    const kept = await cache('damaged-source');
    const dir = join(graph, '..');
    const digest = createHash('sha256').update('other bytes').digest('hex');
    const files = guard();
    files.serveFrom(dir, [{ path: 'model.bin', bytes: (await stat(join(dir, 'model.bin'))).size, sha256: digest }]);
    expect(await prepackedGraph(graph, { ...kept, files })).toBe(graph);
    expect(kept.lines).toMatchObject([{ level: 'warn', fields: { err: { code: 'bundle_invalid' } } }]);
    expect(await readdir(kept.dir)).toEqual([]);
  });

  test('if the folder cannot be made, the graph is loaded without it, with a warning', async () => {
    const kept = await cache('unwritable');
    await writeFile(kept.dir, 'a file where the folder should be');
    expect(await prepackedGraph(graph, kept)).toBe(graph);
    expect(kept.lines.map(({ level }) => level)).toEqual(['warn']);
  });

  test('a folder that a killed process left half made is removed once it is old', async () => {
    const kept = await cache('abandoned');
    const path = await prepackedGraph(graph, kept);
    const folder = join(path, '..');
    const [young, old] = [`${folder}.young`, `${folder}.older`];
    for (const left of [young, old]) await mkdir(left);
    await utimes(old, 0, 0);
    await rm(folder, { recursive: true });
    await prepackedGraph(graph, kept);
    expect((await readdir(kept.dir)).sort()).toEqual([folder, young].map((left) => basename(left)).sort());
  });

  test('another graph or bundle has another folder', async () => {
    const kept = await cache('others');
    const paths = [
      await prepackedGraph(graph, kept),
      await prepackedGraph(graph, { ...kept, fingerprint: 'e'.repeat(64) }),
    ];
    expect(new Set(paths).size).toBe(2);
  });
});
