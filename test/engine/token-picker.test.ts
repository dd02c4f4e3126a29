/** Greedy tokens that are chosen on a device: the graph, who may use it, and the decoder on the tests' software GPU. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { CPU } from '../../services/lib/engine/device.ts';
import { OrtSession, type SessionOptions } from '../../services/lib/engine/ort.ts';
import { runtime } from '../../services/lib/engine/ort-api.ts';
import { OutputHistory, sample } from '../../services/lib/engine/sampler.ts';
import { NO_TOKEN } from '../../services/lib/engine/session.ts';
import { NO_CHOICE, takesLikeliest } from '../../services/lib/engine/token-picker.ts';
import { type Bundle, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { Graph } from '../../services/lib/model/graph/graph.ts';
import { buildGreedy } from '../../services/lib/model/graph/greedy.ts';
import { GREEDY, type Sampling } from '../../services/lib/request/next-token.ts';
import { NO_SOFT_TOKENS } from '../../services/lib/request/token-prompt.ts';
import { decoderOn, softwareGpu } from '../support/device-decoder.ts';
import { largestDifference } from '../support/models.ts';
import { smallestBundle } from '../support/smallest-bundle.ts';
import { COMPILING_MS } from '../support/vulkan.ts';

const gpu = softwareGpu();
let dir: string;
let bundle: Bundle;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-picker-'));
  bundle = await openBundle(await smallestBundle(dir));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

describe.each(['cpu', 'webgpu'] as const)('the graph on %s', (kind) => {
  test(
    'the token is the one that the sampler takes: ties go to the lowest id',
    async () => {
      const [rows, vocab] = [5, 300];
      const options: SessionOptions = kind === 'cpu' ? { threads: 1 } : { threads: 1, device: gpu(), whole: true };
      const session = await OrtSession.build(buildGreedy(vocab), options);
      const logit = fc.oneof(fc.constantFrom(-2, 0, 3, 3.5), fc.float({ noNaN: true, noDefaultInfinity: true }));
      const property = fc.asyncProperty(
        fc.array(logit, { minLength: rows * vocab, maxLength: rows * vocab }),
        async (values) => {
          const data = Float32Array.from(values, Math.fround);
          const { tokens, largest } = await session.run({ logits: { type: 'float32', dims: [rows, vocab], data } });
          for (let row = 0; row < rows; row++) {
            const logits = data.slice(row * vocab, (row + 1) * vocab);
            const { id } = sample(logits, GREEDY, 0, new OutputHistory());
            expect(tokens!.data[row]).toBe(id);
            expect(largest!.data[row]).toBe(logits[id]);
          }
        },
      );
      await fc.assert(property, { numRuns: 10 });
      session.dispose();
    },
    COMPILING_MS,
  );
});

test('only those choices are left to the device that need nothing but the largest logit', () => {
  const change = fc.record(
    {
      temperature: fc.constantFrom(0, 0.7),
      logprobs: fc.constantFrom(-1, 0, 2),
      frequencyPenalty: fc.constantFrom(0, 0.5, -9),
      presencePenalty: fc.constantFrom(0, 9),
      logitBias: fc.constantFrom(new Map(), new Map([[3, 50]])),
      stopTokenIds: fc.constantFrom([], [5]),
      minTokens: fc.constantFrom(0, 2),
    },
    { requiredKeys: [] },
  );
  const logits = Float32Array.of(0, 1, 2, 3, 4, 9, 8.5, 8);
  let left = 0;
  fc.assert(
    fc.property(change, fc.nat(3), (changed, position) => {
      const sampling: Sampling = { ...GREEDY, ...changed };
      const token = sample(logits.slice(), sampling, position, new OutputHistory([5, 6]));
      if (takesLikeliest(sampling, position)) {
        left++;
        expect(token).toEqual({ id: 5 });
      }
    }),
  );
  expect(left).toBeGreaterThan(0);
  expect(takesLikeliest({ ...GREEDY, minTokens: 2, stopTokenIds: [5] }, 1)).toBe(false);
  expect(takesLikeliest({ ...GREEDY, minTokens: 2, stopTokenIds: [5] }, 2)).toBe(true);
});

test.each([
  ['must compute it whole', { whole: true }, 'fallback to CPU'],
  ['is to record it', { graphCapture: true }, 'graph capture'],
])('a graph with a node for the CPU is refused where the device %s', async (_, options, message) => {
  const graph = new Graph();
  const x = graph.input('x', 'float32', ['n']);
  const size = graph.node('Cast', 'size', [graph.node('Shape', 'shape', [x])], { to: 'float32' });
  graph.output(graph.node('Add', 'sum', [x, size]), 'float32', ['n']);
  const session = await OrtSession.build(graph, { device: gpu(), threads: 1 });
  session.dispose();
  await expect(OrtSession.build(graph, { device: gpu(), threads: 1, ...options })).rejects.toThrow(message);
});

test.each([
  ['', false],
  [', also where steps are recorded and replayed', true],
])(
  'a decoder on a device picks the tokens that its logits give, whatever slots ride along, and says where there is none%s',
  async (_, graphCapture) => {
    const plain = await decoderOn(CPU, bundle);
    onTestFinished(plain.dispose);
    const decoder = await decoderOn(gpu(), bundle, { graphCapture });
    onTestFinished(decoder.dispose);
    const [onCpu, session] = [plain.session, decoder.session];
    expect([onCpu.picksTokens, session.picksTokens]).toEqual([false, true]);
    const prompt = Int32Array.from({ length: 9 }, (__, i) => 1 + ((i * 7) % 50));
    const soft = NO_SOFT_TOKENS;
    for (const computing of [onCpu, session]) {
      for (const slot of [0, 2]) await computing.chunk({ slot, past: 0, ids: prompt, soft, logitRows: [] });
    }
    let newest = 7;
    for (let i = 0; i < 4; i++) {
      // Slot 0 is idle and rides along in slot 2's step; the step is repeated, which writes the same position again.
      const inputs = [Int32Array.of(newest), Int32Array.of(9 + i), 2] as const;
      const [token] = await session.pick(...inputs);
      const logits = await session.step(...inputs);
      expect(largestDifference(logits, await onCpu.step(...inputs))).toBeLessThan(1e-4);
      expect(token).toBe(sample(logits.slice(), GREEDY, 0, new OutputHistory()).id);
      newest = token!;
      // A prompt and a batch of another size between two steps. (Riding along has changed slot 0: the pool of this
      // test knows of no prompt there.)
      const chunk = { slot: 0, past: 0, ids: prompt, soft, logitRows: [8] };
      expect(largestDifference(await session.chunk(chunk), await onCpu.chunk(chunk))).toBeLessThan(1e-4);
      const alone = [Int32Array.of(newest), Int32Array.of(9), 0] as const;
      expect(largestDifference(await session.step(...alone), await onCpu.step(...alone))).toBeLessThan(1e-4);
    }
    const both = [Int32Array.of(7, NO_TOKEN, 7), Int32Array.of(9, 9, 9), 0] as const;
    const tokens = await session.pick(...both);
    expect(tokens[0]).toBe(tokens[2]);
    // What stays the same from step to step is given to the device once. Steps that are recorded copy to its tensors.
    const binds = vi.spyOn(runtime().api, 'bindInput');
    onTestFinished(binds.mockRestore);
    await session.pick(...both);
    const changing = ['input_ids', 'seqlens_k', 'total_sequence_length'];
    expect(binds.mock.calls.map(([, name]) => name)).toEqual(graphCapture ? [] : changing);

    const bytes = new Uint8Array(4 * decoder.store.layout.headDim).fill(0xff); // NaN
    await decoder.store.write(0, { start: 0, end: 1, rowStart: 0, rowEnd: 1 }, bytes);
    const [damaged, , sound] = await session.pick(...both);
    expect([damaged, sound]).toEqual([NO_CHOICE, tokens[2]]);
  },
  COMPILING_MS,
);
