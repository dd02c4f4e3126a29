/** The model that ships: its reference outputs from text to soft tokens, and the cost of quantising it. */
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { openPair } from '../../../services/export.ts';
import { OrtSession } from '../../../services/lib/engine/ort.ts';
import { type Bundle, openBundle } from '../../../services/lib/model/bundle/bundle.ts';
import type { Precision, PrefillPrecision } from '../../../services/lib/model/bundle/choices.ts';
import { type Divergence, measureDivergence } from '../../../services/lib/model/bundle/divergence.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { verifyBundle } from '../../../services/lib/model/bundle/integrity.ts';
import { loadTokenizer } from '../../../services/lib/text/tokenizer.ts';
import {
  DecoderRun,
  ids64,
  largestDifference,
  readExpected,
  readJsonFile,
  TINY_CODER,
  temporaryFolder,
} from '../../support/models.ts';

interface Prompt {
  readonly input_ids: number[];
  readonly greedy: number[];
}
interface Golden {
  readonly prefix: Prompt;
  readonly fim: Prompt;
  readonly loop: Prompt;
  readonly projector: { readonly chunks: string[] };
}

const CODE = `class Cache:
    def __init__(self, capacity):
        self.capacity = capacity
        self.items = {}

    def get(self, key, default=None):
        return self.items.get(key, default)

    def put(self, key, value):
        if len(self.items) >= self.capacity:
            oldest = next(iter(self.items))
            del self.items[oldest]
        self.items[key] = value

    def __len__(self):
        return len(self.items)
`;

const parent = await temporaryFolder();
const golden = await readJsonFile<Golden>(join(TINY_CODER, 'expected.json'));
const load = (path: string) => OrtSession.load(path, { threads: 1 });
const exported = async (precision: Precision, prefillPrecision?: PrefillPrecision, block?: number): Promise<Bundle> => {
  const to = join(parent, `${precision}-${prefillPrecision}-${block}`);
  await exportBundle({ llm: TINY_CODER, to, precision, prefillPrecision, block });
  return openBundle(to);
};

describe('in fp32', () => {
  let bundle: Bundle;
  beforeAll(async () => {
    bundle = await exported('fp32');
  });

  test('tiny-coder in fp32 is a sound bundle with compressed context', async () => {
    await verifyBundle(bundle);
    expect(bundle.manifest.name).toBe('tiny-coder');
    expect(bundle.manifest.context).toMatchObject({
      encoder: { kind: 'qwen2', dim: 256, maxTokens: 512, pooling: 'mean', normalize: true, addSpecialTokens: false },
      projector: { widths: [256, 512, 512, 256] },
    });
  });

  test.each(['prefix', 'fim', 'loop'] as const)(
    'tiny-coder continues the prompt %s like the reference',
    async (prompt) => {
      const session = await load(bundle.llm);
      const { input_ids, greedy } = golden[prompt];
      const decoder = new DecoderRun(session, bundle.manifest.llm.spec);
      expect(await decoder.greedy({ ids: input_ids }, greedy.length)).toEqual(greedy);
      session.dispose();
    },
  );

  test('chunks get the embeddings and soft tokens of the reference', async () => {
    const expected = await readExpected(join(TINY_CODER, 'projector/expected.safetensors'));
    const tokenizer = await loadTokenizer(bundle.context!.tokenizerDir);
    const { maxTokens } = bundle.manifest.context!.encoder;
    const rows = golden.projector.chunks.map((chunk) => tokenizer.encodeHead(chunk, maxTokens));
    const sequence = Math.max(...rows.map((row) => row.length));
    const [encoder, projector] = [await load(bundle.context!.encoder), await load(bundle.context!.projector)];
    const { embeddings } = await encoder.run({
      input_ids: ids64(
        [rows.length, sequence],
        rows.flatMap((row) => [...row, ...new Array<number>(sequence - row.length).fill(0)]),
      ),
      lengths: { type: 'int32', dims: [rows.length], data: Int32Array.from(rows, (row) => row.length) },
    });
    const { soft_tokens } = await projector.run({ embeddings: embeddings! });
    expect(largestDifference(embeddings!.data as Float32Array, expected.float32('embeddings'))).toBeLessThanOrEqual(
      1e-4,
    );
    expect(largestDifference(soft_tokens!.data as Float32Array, expected.float32('soft_tokens'))).toBeLessThanOrEqual(
      1e-3,
    );
    encoder.dispose();
    projector.dispose();
  });
});

describe('quantised', () => {
  const divergence = async (...of: Parameters<typeof exported>): Promise<Divergence> => {
    const bundle = await exported(...of);
    const tokenizer = await loadTokenizer(TINY_CODER);
    const sequences = [tokenizer.encode(CODE), golden.fim.input_ids];
    return measureDivergence({ bundle, llm: TINY_CODER, sequences, open: openPair });
  };

  test('int8 is close to fp32, and int4 less close', async () => {
    const [int8, int4] = [await divergence('int8'), await divergence('int4')];
    expect(int8.positions).toBeGreaterThan(100);
    expect(int8.klMean).toBeGreaterThan(0);
    expect(int8.klMean).toBeLessThan(0.01);
    expect(int8.klP99).toBeLessThan(0.1);
    expect(int8.top1Agreement).toBeGreaterThan(0.95);
    expect(int4.klMean).toBeGreaterThan(int8.klMean);
    expect(int4.klMean).toBeLessThan(0.3);
    expect(int4.top1Agreement).toBeGreaterThan(0.7);
  });

  test('half precision changes hardly anything', async () => {
    const fp16 = await divergence('fp16');
    expect(fp16.klMean).toBeLessThan(1e-4);
    expect(fp16.top1Agreement).toBeGreaterThan(0.99);
  });

  test.each([
    ['int8-fp16', 'int8', 5e-4],
    ['int4-fp16', 'int4', 5e-3],
  ] as const)('the CPU computes %s as well as %s', async (precision, counterpart, tolerance) => {
    const [half, full] = [await divergence(precision), await divergence(counterpart, 'same', 32)];
    expect(half.klMean).toBeGreaterThan(0);
    expect(Math.abs(half.klMean - full.klMean)).toBeLessThan(tolerance);
    expect(half.top1Agreement).toBeGreaterThan(full.top1Agreement - 0.02);
  });

  test('prompts in W8A8 diverge no more than prompts in int4, decoding from their KV included', async () => {
    const [own, same] = [await divergence('int4', 'w8a8'), await divergence('int4', 'same')];
    expect(own.klMean).toBeLessThanOrEqual(same.klMean);
    expect(own.top1Agreement).toBeGreaterThanOrEqual(same.top1Agreement);
  });

  test('a comparison on no code is refused', async () => {
    const bundle = await exported('fp32');
    const open = () => Promise.reject(new Error('must not be opened'));
    await expect(measureDivergence({ bundle, llm: TINY_CODER, sequences: [[]], open })).rejects.toThrow(
      expect.objectContaining({ code: 'config_invalid' }),
    );
  });
});
