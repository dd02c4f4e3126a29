/**
 * KV in int8: slots lose nothing on the way to the staging slot and back, and a model computes the same with
 * them however its prompts are divided, whether a token comes in a prompt or in a step, and wherever it was computed.
 */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { openPair, sampleKvScales } from '../../services/export.ts';
import { openCpuKv } from '../../services/lib/engine/bundle-kv.ts';
import { type CpuEngineKv, Int8Kv } from '../../services/lib/engine/engine-kv.ts';
import { prepackedCache } from '../../services/lib/engine/load.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { rowCount } from '../../services/lib/kv/layout.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import { assertRunsOn, type Bundle, filesOf, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { comparePosition, measureDivergence } from '../../services/lib/model/bundle/divergence.ts';
import { type ExportOptions, exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { FileGuard } from '../../services/lib/model/bundle/integrity.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { loadTokenizer } from '../../services/lib/text/tokenizer.ts';
import { TINY_CODER } from '../support/models.ts';

const SILENT = createLogger('test', 'silent');
const CAPACITY = 256;
const dir = await mkdtemp(join(tmpdir(), 'llavacode-levels-'));
afterAll(() => rm(dir, { recursive: true, force: true }));

const exported = (name: string, options: Partial<ExportOptions> = {}) =>
  exportBundle({ llm: TINY_CODER, to: join(dir, name), precision: 'fp32', kvScales: sampleKvScales, ...options });

describe('slots', () => {
  const layout = { layers: 2, kvHeads: 2, headDim: 4 };
  const rows = { rowStart: 0, rowEnd: rowCount(layout) };
  const level = fc.integer({ min: -127, max: 127 });
  const scale = fc.float({ min: Math.fround(1e-6), max: 1e3, noNaN: true });

  test('what goes to the staging slot and to another slot is what it was, and nothing else changes', () => {
    fc.assert(
      fc.property(
        fc.array(scale, { minLength: 32, maxLength: 32 }),
        fc.array(level, { minLength: 96, maxLength: 96 }),
        fc.nat(3),
        (scales, levels, start) => {
          const memory = new Int8Kv(layout, Float32Array.from(scales), 2, 3);
          memory.write(0, { start: 0, end: 3, ...rows }, new Uint8Array(Int8Array.from(levels).buffer));
          memory.copy(0, memory.staging!, 3);
          memory.copy(memory.staging!, 1, 3, start);
          const bytesOf = (slot: number, from: number) =>
            memory.read(slot, { start: from, end: 3, ...rows }).map(String);
          expect(bytesOf(1, start)).toEqual(bytesOf(0, start));
          const before = memory.read(1, { start: 0, end: start, ...rows }).flatMap((bytes) => [...bytes]);
          expect(before.every((byte) => byte === 0)).toBe(true);
        },
      ),
    );
  });

  test('where no prompts are computed there is no staging slot', () => {
    const memory = new Int8Kv(layout, new Float32Array(32).fill(1), 2, 3, false);
    expect(memory.staging).toBeUndefined();
    memory.write(0, { start: 0, end: 3, ...rows }, new Uint8Array(96).fill(7));
    memory.copy(0, 1, 3);
    expect(memory.read(1, { start: 0, end: 3, ...rows }).flatMap((bytes) => [...bytes])).toEqual(Array(96).fill(7));
  });
});

describe('tiny-coder', () => {
  let bundle: Bundle;
  let ids: Int32Array;

  beforeAll(async () => {
    await exported('fp32');
    bundle = await openBundle(join(dir, 'fp32'));
    const tokenizer = await loadTokenizer(TINY_CODER);
    const text = await readFile(join(import.meta.dirname, 'int8-kv.test.ts'), 'utf8');
    ids = Int32Array.from(tokenizer.encodeHead(text, CAPACITY - 56));
  });

  /** @param work what the session is to compute; both by default. */
  async function open(work: { readonly prompts?: boolean; readonly decodes?: boolean } = {}) {
    const { prompts = true, decodes = true } = work;
    const memory = (await openCpuKv(bundle, 3, CAPACITY, prompts)) as Int8Kv;
    const { session } = await load(bundle, memory, decodes);
    return { session, memory };
  }

  async function load(of: Bundle, memory: CpuEngineKv, decodes = true) {
    const { spec } = of.manifest.llm;
    const files = new FileGuard(SILENT);
    files.serveFrom(of.dir, filesOf(of.manifest, ['llm']));
    const options = { threads: 1, decodes, prepacked: prepackedCache(of, '', SILENT, files) };
    const shape = { vocabSize: spec.vocab, hiddenSize: spec.hidden };
    const session = await DecoderSession.load(of.llm, shape, new KvPool(memory), options);
    onTestFinished(() => session.dispose());
    return { session, options };
  }

  /** Computes a prompt in chunks that end at these positions, with logits of its last token. */
  async function prompt(session: DecoderSession, ends: readonly number[], slot = 0, start = 0, copyFrom?: number) {
    let logits: Float32Array = new Float32Array(0);
    let past = start;
    for (const end of ends) {
      const part = ids.subarray(past, end);
      const chunk = { slot, past, ids: part, soft: NO_SOFT_TOKENS, logitRows: [part.length - 1] };
      logits = await session.chunk({ ...chunk, ...(past === start && copyFrom !== undefined && { copyFrom }) });
      past = end;
    }
    return logits;
  }

  const levelsOf = (memory: CpuEngineKv, slot: number, end: number) =>
    memory
      .read(slot, { start: 0, end, rowStart: 0, rowEnd: rowCount(memory.layout) })
      .flatMap((bytes) => [...new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length)]);

  /**
   * The order of sums differs in the last bits, so that a value on the border of two levels may come to lie in either;
   * nothing else may differ.
   */
  function expectSame(found: readonly number[], expected: readonly number[]): void {
    const differing = found.filter((each, i) => each !== expected[i]);
    expect(found.every((each, i) => Math.abs(each - expected[i]!) <= 1)).toBe(true);
    expect(differing.length / found.length).toBeLessThan(1e-2);
  }

  test('a prompt in parts, or after a beginning from another slot, is the whole prompt', async () => {
    const { session, memory } = await open();
    const whole = (await prompt(session, [ids.length])).slice();
    const expected = levelsOf(memory, 0, ids.length);
    const parts = (await prompt(session, [1, 33, 64, 150, ids.length], 1)).slice();
    expectSame(levelsOf(memory, 1, ids.length), expected);
    const reused = await prompt(session, [ids.length], 2, 150, 0);
    expectSame(levelsOf(memory, 2, ids.length), expected);
    for (const logits of [parts, reused]) expect(comparePosition(whole, logits).kl).toBeLessThan(1e-5);
  });

  test('steps compute what prompts compute', async () => {
    const { session, memory } = await open();
    const [from, count] = [100, 40];
    let kl = 0;
    for (let end = from + 1; end <= from + count; end++) {
      const logits = (await prompt(session, [end], 1)).slice();
      if (end === from + 1) await prompt(session, [from]);
      const stepped = await session.step(ids.subarray(end - 1, end), Int32Array.of(end - 1));
      kl += comparePosition(logits, stepped).kl / count;
    }
    expect(kl).toBeLessThan(1e-5);
    expectSame(levelsOf(memory, 0, from + count), levelsOf(memory, 1, from + count));
  });

  test('what a session of prompts computed, a session of steps goes on with as if it had computed it', async () => {
    const [both, prompts, steps] = [await open(), await open({ decodes: false }), await open({ prompts: false })];
    const end = ids.length - 1;
    await prompt(both.session, [end]);
    await prompt(prompts.session, [end]);
    expect(levelsOf(prompts.memory, 0, end)).toEqual(levelsOf(both.memory, 0, end));
    const range = { start: 0, end, rowStart: 0, rowEnd: rowCount(both.memory.layout) };
    steps.memory.write(1, range, Buffer.concat(prompts.memory.read(0, range)));
    const step = [ids.subarray(end), Int32Array.of(end)] as const;
    const expected = (await both.session.step(...step)).slice();
    expect(await steps.session.step(...step, 1)).toEqual(expected);
    await expect(prompt(steps.session, [4])).rejects.toThrow(expect.objectContaining({ code: 'runtime_failed' }));
  });

  test('verify runs give the bits of steps where floats do', async () => {
    await exported('floats', { kvScales: undefined });
    const floats = await openBundle(join(dir, 'floats'));
    const verdictOf = async (of: Bundle) => {
      const { session, options } = await load(of, await openCpuKv(of, 3, CAPACITY));
      return session.openVerifier(of.llm, options);
    };
    expect(await verdictOf(bundle)).toBe(await verdictOf(floats));
  });

  test('levels cost little quality', async () => {
    const tokenizer = await loadTokenizer(TINY_CODER);
    const text = await readFile(join(import.meta.dirname, 'session.test.ts'), 'utf8');
    const sequences = [tokenizer.encodeHead(text, 400)];
    const { klMean, top1Agreement } = await measureDivergence({ bundle, llm: TINY_CODER, sequences, open: openPair });
    expect(klMean).toBeGreaterThan(0);
    expect(klMean).toBeLessThan(2e-3);
    expect(top1Agreement).toBeGreaterThan(0.97);
  });
});

describe('bundles', () => {
  test('scales are part of the fingerprint, and the same export gives the same ones', async () => {
    const [a, b] = [await exported('a', { precision: 'int4' }), await exported('b', { precision: 'int4' })];
    expect(a.fingerprint).toBe(b.fingerprint);
    const plain = await exported('plain', { precision: 'int4', kvScales: undefined });
    expect(plain.fingerprint).not.toBe(a.fingerprint);
    expect(plain.kv).toBeUndefined();
    const doubled = await exported('doubled', {
      precision: 'int4',
      kvScales: async (draft) => (await sampleKvScales(draft)).map((scale) => 2 * scale),
    });
    expect(doubled.fingerprint).not.toBe(a.fingerprint);
  });

  test('16-bit floats and devices are refused, with what to do', async () => {
    await expect(exported('half', { precision: 'fp16' })).rejects.toThrow(/--kv int8 is for the CPU/);
    const manifest = { name: 'm', precision: 'int4', kv: { form: 'int8', files: [] } } as const;
    expect(() => assertRunsOn(manifest as never, 'webgpu')).toThrow(
      /only the CPU computes: export it without --kv int8/,
    );
    expect(() => assertRunsOn(manifest as never, 'cpu')).not.toThrow();
  });

  test('a file that has no scales is refused, with what is wrong', async () => {
    await exported('damaged');
    const opened = await openBundle(join(dir, 'damaged'));
    const bytes = await readFile(opened.kvScales!);
    const scales = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
    scales[3] = Number.NaN;
    await writeFile(opened.kvScales!, new Uint8Array(scales.buffer));
    await expect(openCpuKv(opened, 1, 8)).rejects.toThrow(/scale 3 is NaN/);
    await writeFile(opened.kvScales!, bytes.subarray(4));
    await expect(openCpuKv(opened, 1, 8)).rejects.toThrow(/bytes, and scales of its KV have/);
  });
});
